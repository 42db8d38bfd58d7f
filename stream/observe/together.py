"""The pages of several processes as one: what Prometheus and probes see of a worker whose stages run apart.

A family of metrics comes once, with the samples of all processes. Where two processes have the same sample, counts and
sizes are added; of other gauges the largest stands, and of the time of export the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from heft.stream.observe.health import Readiness

_ADDED = ("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds")
_OLDEST = ("heft_exported_timestamp_seconds",)


def metrics_together(pages: Iterable[str]) -> str:
    r"""Return one page of metrics in the text format of Prometheus, given those of several processes.

    Examples
    --------
    >>> page = "# HELP a_total Things\n# TYPE a_total counter\na_total{of=\"x\"} "
    >>> print(metrics_together([page + "1", page + "2.5"]), end="")
    # HELP a_total Things
    # TYPE a_total counter
    a_total{of="x"} 3.5
    """
    families: dict[str, tuple[list[str], dict[str, float]]] = {}
    for page in pages:
        samples: dict[str, float] = {}
        kind, family = "untyped", ""
        for line in page.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads, samples = families.setdefault(family, ([], {}))
                if not heads:
                    heads.append(line)
            elif line.startswith("# TYPE "):
                kind = line.rpartition(" ")[2]
                heads = families[family][0]
                if len(heads) == 1:
                    heads.append(line)
            elif line:
                name, _, value = line.rpartition(" ")
                now = float(value)
                samples[name] = _both(family, kind, samples[name], now) if name in samples else now
    lines = [
        line
        for heads, samples in families.values()
        for line in (*heads, *(f"{name} {value!r}" for name, value in samples.items()))
    ]
    return "\n".join(lines) + "\n"


def _both(family: str, kind: str, one: float, other: float) -> float:
    if kind in ("counter", "histogram") or family in _ADDED:
        return one + other
    return min(one, other) if family in _OLDEST else max(one, other)


def readiness_together(processes: Sequence[tuple[str, Readiness | None]]) -> Readiness:
    """Return what is said of all, given each process's name and what it says; None: it does not answer."""
    said = [(name, each) for name, each in processes if each is not None]
    missing = [f"{name}: {what}" for name, each in said for what in each.missing]
    missing += [f"{name}: its process does not answer" for name, each in processes if each is None]
    lags = [each.lag for _, each in said]
    errors = sorted((each.error_seconds or 0.0, f"{name}: {each.error}") for name, each in said if each.error)
    ages = [each.snapshot_seconds for _, each in said if each.snapshot_seconds is not None]
    return Readiness(
        ready=len(said) == len(processes) and all(each.ready for _, each in said),
        state=next((f"{name}: {each.state}" for name, each in said if each.state != "running"), "running"),
        missing=missing,
        held=[key for _, each in said for key in each.held],
        restored=[key for _, each in said for key in each.restored],
        lag=None if len(said) < len(processes) or None in lags else sum(lag for lag in lags if lag is not None),
        error=errors[0][1] if errors else "",
        error_seconds=errors[0][0] if errors else None,
        snapshot_seconds=max(ages, default=None),
    )
