"""What people see in a terminal: progress over long work, and reports as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from heft.stream.events.log import read_lines
from heft.stream.terminal.progress import bar_columns
from heft.stream.terminal.table import Column, Fitted, number

_NO_LIMIT = 10_000

_MEASURES = {
    "ne": "ne",
    "auc": "auc",
    "calibration": "calibr.",
    "ess": "ess",
    "gauc": "gauc",
    "ndcg_at_10": "ndcg@10",
    "mrr": "mrr",
    "auc_rank": "auc rank",
    "logloss": "logloss",
    "ne_raw": "ne raw",
    "ece": "ece",
    "pr_auc": "pr auc",
    "ess_positive": "ess pos.",
    "ess_negative": "ess neg.",
}  # the most important first; those down to auc_rank fit into 80 columns


def open_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, and without a limit where it writes into a file or a pipe.

    Who sends a report there wants all of it: every column, and no line broken.
    """
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=_NO_LIMIT)


@contextmanager
def progress_over(logs: Sequence[Path], title: str) -> Iterator[Callable[[int], None]]:
    """Show a bar over the lines of logs; yield what to tell the number of lines done."""
    total = sum(sum(1 for _ in read_lines(path)) for path in logs)
    with Progress(*bar_columns(title), console=open_console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda lines: progress.advance(task, lines)


def show_report(report: dict[str, Any], console: Console) -> None:
    """Print a replay's report: what came in, and each arm on the second half of the log."""
    events = ", ".join(f"{n:,} {kind}s" for kind, n in report["events"].items())
    fates = ", ".join(f"{n:,} {fate}" for fate, n in report["fates"].items())
    console.print(f"{events}: {fates}")
    speed = f"{report['samples']:,} samples in {report['seconds']:.1f} s, {report['samples_per_second']:,.0f} a second"
    console.print(f"{speed}\ndigest {report['digest']}")
    for name, head in report["heads"].items():
        if head["samples"]:
            half = head["second_half"]
            title = f"{name}, second half: {half['samples']:,} samples, {half['positives']:,} positive"
            console.print(f"\n[italic]{title}", _arms(head["arms"]), sep="\n")
    console.print()


class _Arm(NamedTuple):
    name: str
    measures: Mapping[str, float | None]


def _arms(found: Mapping[str, Mapping[str, Any]]) -> Fitted[_Arm]:
    arms = [_Arm(name, {**measures, **measures["second_half"]}) for name, measures in found.items()]
    columns = [Column[_Arm]("arm", lambda arm: arm.name, "left")]
    return Fitted([*columns, *(_measured(key, heading) for key, heading in _MEASURES.items())], arms)


def _measured(key: str, heading: str) -> Column[_Arm]:
    return Column(heading, lambda arm: number(arm.measures.get(key)))
