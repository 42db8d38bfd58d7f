"""One import from end to end: events of a table, put in order, written as a log, with a bar over the bytes read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from heft.stream.events.wire import Event
from heft.stream.importers.ordered import in_order, write_log
from heft.stream.importers.table import Table
from heft.stream.terminal.progress import BAR_WIDTH
from heft.stream.terminal.report_tables import open_console

_EVERY = 1_000  # events between two moves of the bar


def import_log(source: Table, events: Iterable[Event], out: Path) -> Counter[str]:
    """Write the events of a source to a log, show how far it is, and return how many of each type were written."""
    console = open_console(stderr=True)
    counts: Counter[str] = Counter()
    title = TextColumn("{task.description}", table_column=Column(overflow="fold"))  # a file's name may be long
    columns = (title, BarColumn(BAR_WIDTH), DownloadColumn(), TimeRemainingColumn())
    with source, Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Reading {source.path.name}", total=source.size)

        def counted() -> Iterator[Event]:
            for number, event in enumerate(events):
                counts[str(event.__struct_config__.tag)] += 1
                if number % _EVERY == 0:
                    progress.update(task, completed=source.consumed)
                yield event
            progress.update(task, completed=source.size, description=f"Writing {out.name}")

        write_log(in_order(counted()), out)
    console.print(f"{out}: {', '.join(f'{n:,} {kind}s' for kind, n in sorted(counts.items())) or 'no events'}")
    for reason, rows in sorted(source.skipped.items()):
        console.print(f"left out: {rows:,} rows, {reason}")
    return counts
