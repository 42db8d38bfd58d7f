"""Progress bars for long work on the terminal: how many, how fast, how long still. All fit into 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

BAR_WIDTH = 15
"""Rich's own bar of 40 leaves the numbers beside it too little room in 80 columns."""


def bar_columns(title: str) -> tuple[ProgressColumn, ...]:
    """Return a title, a bar, how many of how many, and the time that has passed and is left."""
    return TextColumn(title), BarColumn(BAR_WIDTH), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a count and its speed while the block runs; the value is called with each step's size, from any thread."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} {task.description}"),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, pace="")

        def advance(n: int) -> None:
            bar.update(task, advance=n)
            speed = bar.tasks[0].speed
            bar.update(task, pace=f"{speed:,.0f}/s" if speed else "")

        yield advance
