"""What people see in a terminal: progress over long work, and reports as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from heft.stream.events.log import read_lines

console = Console(stderr=True)

_COLUMNS = {
    "auc": "auc",
    "ne": "ne",
    "calibration": "calibr.",
    "gauc": "gauc",
    "ndcg_at_10": "ndcg",
    "mrr": "mrr",
    "auc_rank": "auc rank",
    "ess": "ess",
}  # what fits into 80 columns; report.json has all


@contextmanager
def progress_over(logs: Sequence[Path], title: str) -> Iterator[Callable[[int], None]]:
    """Show a bar over the lines of logs; yield what to tell the number of lines done."""
    total = sum(sum(1 for _ in read_lines(path)) for path in logs)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda lines: progress.advance(task, lines)


def show_report(report: dict[str, Any]) -> None:
    """Print a replay's report: what came in, and each policy on the second half of the log."""
    events = ", ".join(f"{n:,} {kind}s" for kind, n in report["events"].items())
    fates = ", ".join(f"{n:,} {fate}" for fate, n in report["fates"].items())
    console.print(f"{events}: {fates}")
    speed = f"{report['samples']:,} samples in {report['seconds']:.1f} s, {report['samples_per_second']:,.0f} a second"
    console.print(f"{speed}; digest {report['digest']}")
    for name, head in report["heads"].items():
        if head["samples"]:
            console.print(_table(name, head))


def _table(name: str, head: dict[str, Any]) -> Table:
    half = head["second_half"]
    title = f"{name}, second half: {half['samples']:,} samples, {half['positives']:,} positive"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("policy")
    for column in _COLUMNS.values():
        table.add_column(column, justify="right", no_wrap=True)
    for policy, metrics in head["policies"].items():
        values = {**metrics, **metrics["second_half"]}
        table.add_row(policy, *(_number(values.get(column, math.nan)) for column in _COLUMNS))
    return table


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
