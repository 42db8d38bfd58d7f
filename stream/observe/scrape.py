"""One look at the metrics of a running worker, for the demo, the benchmarks and the tests."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    r"""One look at a worker's metrics.

    Parameters
    ----------
    text
        The answer of ``/metrics``; empty where there was none.

    Examples
    --------
    >>> look = Scrape('shown_total{of="a",at="0"} 2.5\nshown_total{of="a",at="1"} 3\nshown_total{of="b",at="0"} 1')
    >>> look.total("shown_total", of="a"), look.by("of", "shown_total", at="0")
    (5.5, {'a': 2.5, 'b': 1.0})
    """

    def __init__(self, text: str = "") -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @classmethod
    def at(cls, port: int) -> Scrape:
        """Read the metrics of the worker at this port of this machine; without an answer the scrape is empty."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return cls(answer.read().decode())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return cls()  # not up yet, or busy: whoever asks will ask again in a second

    @property
    def answered(self) -> bool:
        """Whether the worker is up and returned any metric."""
        return bool(self._values)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all its samples that have these labels; 0 without any."""
        wanted = set(labels.items())
        return sum(value for (metric, has), value in self._values.items() if metric == name and wanted <= has)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return these sums, one for each value of ``label``."""
        wanted, sums = set(labels.items()), dict[str, float]()
        for (metric, has), value in self._values.items():
            if metric == name and wanted <= has:
                of = dict(has).get(label, "")
                sums[of] = sums.get(of, 0.0) + value
        return sums

    def delay_quantile(self, stage: str, q: float) -> float:
        """Return an upper bound of a quantile of a stage's delay: the end of its histogram bucket, in seconds.

        NaN before anything was measured.
        """
        buckets = sorted(
            (float(dict(has)["le"]), value)
            for (metric, has), value in self._values.items()
            if metric == "heft_stage_delay_seconds_bucket" and ("stage", stage) in has
        )
        return next((bound for bound, n in buckets if n and n >= q * buckets[-1][1]), float("nan"))
