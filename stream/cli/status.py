"""`heft status`: any worker is asked how it is, and says it in a table."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
from rich.console import Console, Group
from rich.text import Text

from heft.stream.config.settings import MetricsConfig
from heft.stream.observe.health import Readiness
from heft.stream.terminal.table import Column, Fitted

_PATIENCE = 5.0
_EVERYWHERE = ("0.0.0.0", "::", "")  # addresses to listen on; who asks must name one


class Code(IntEnum):
    """Exit codes."""

    READY = 0
    NOT_READY = 1
    NOT_REACHED = 2


class Answer(NamedTuple):
    """What a worker said, or why it said nothing."""

    url: str
    readiness: Readiness | None
    problem: str = ""

    @property
    def code(self) -> Code:
        """What this worker alone makes the exit code."""
        if self.readiness is None:
            return Code.NOT_REACHED
        return Code.READY if self.readiness.ready else Code.NOT_READY


def own_url(metrics: MetricsConfig) -> str:
    """Return where the worker of this configuration answers on this host.

    Examples
    --------
    >>> own_url(MetricsConfig(address="0.0.0.0", port=9465))
    'http://127.0.0.1:9465'
    """
    address = "127.0.0.1" if metrics.address in _EVERYWHERE else metrics.address
    return f"http://[{address}]:{metrics.port}" if ":" in address else f"http://{address}:{metrics.port}"


def ask(url: str) -> Answer:
    """Ask a worker for its readiness; ``host:port`` is enough."""
    base = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        try:
            with urllib.request.urlopen(f"{base}/readyz", timeout=_PATIENCE) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:  # 503 has the reasons in its body
            with error:
                body = error.read()
        return Answer(base, msgspec.json.decode(body, type=Readiness))
    except urllib.error.URLError as error:
        return Answer(base, None, _advice(base, str(getattr(error.reason, "strerror", None) or error.reason)))
    except (OSError, ValueError) as error:  # ValueError: no URL, or an answer that is none of a worker's
        what = "what answers there is no worker of heft" if isinstance(error, msgspec.MsgspecError) else str(error)
        return Answer(base, None, _advice(base, what))


def _advice(base: str, reason: str) -> str:
    return (
        f"{base}: no worker could be asked ({reason}). Does one run there (`heft worker`), on this port "
        "([metrics] port, HEFT_METRICS__PORT), and is it open to this host ([metrics] address)?"
    )


def worst(answers: Sequence[Answer]) -> Code:
    """Return the exit code of all answers together: that of the worst."""
    return max((answer.code for answer in answers), default=Code.READY)


def show(answers: Sequence[Answer], console: Console) -> None:
    """Print a table of the workers that answered, what each lacks, and why others did not answer."""
    said = [(answer.url, answer.readiness) for answer in answers if answer.readiness is not None]
    columns: list[Column[tuple[str, Readiness]]] = [
        Column("worker", lambda row: row[0], "left"),
        Column("ready", lambda row: "yes" if row[1].ready else "no", "left"),
        Column("state", lambda row: row[1].state, "left"),
        Column("partitions", lambda row: str(len(row[1].held))),
        Column("restored", lambda row: str(len(row[1].restored))),
        Column("lag", lambda row: "" if row[1].lag is None else f"{row[1].lag:,}"),
        Column("snapshot age", lambda row: _age(row[1].snapshot_seconds)),
        Column("last error", lambda row: _error(row[1]), "left"),
    ]
    if said:
        console.print(Fitted(columns, said, lambda row: "" if row[1].ready else "yellow"))
    lines = [Text(f"{url}: {what}", "yellow") for url, each in said for what in each.missing]
    lines += [Text(answer.problem, "red") for answer in answers if answer.problem]
    if lines:
        console.print(Group(*lines))


def _age(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.0f} s"


def _error(readiness: Readiness) -> str:
    return f"{readiness.error} ({_age(readiness.error_seconds)} ago)" if readiness.error else ""
