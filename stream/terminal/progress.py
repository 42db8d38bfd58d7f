"""A progress bar for long work on the terminal: how many, how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


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
