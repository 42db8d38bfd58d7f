"""A table as wide as the terminal allows: of its columns, the most important first, as many as fit; no cell is cut.

A number with its end cut off, "0.87…", is worse than none. So a column is there whole, or it is named below the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isnan
from typing import Generic, Literal, TypeVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

Row = TypeVar("Row")

_GAP = 2


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column: its heading, how its value is written, and at which side of the column that stands."""

    heading: str
    write: Callable[[Row], str | Text]
    side: Literal["left", "right"] = "right"


class Fitted(Generic[Row]):
    """Rows under as many columns as the console is wide; what found no room is named in a line below.

    Parameters
    ----------
    columns
        In order of importance. The first is always shown: on a console narrower than that its cells are folded.
    rows
        What the columns write.
    style
        Returns the style of a row, for rich; empty for none.
    """

    def __init__(
        self, columns: Sequence[Column[Row]], rows: Sequence[Row], style: Callable[[Row], str] = lambda _: ""
    ) -> None:
        self.columns, self.rows, self.style = columns, rows, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table and the line below it."""
        cells = [[_literal(column.write(row)) for row in self.rows] for column in self.columns]
        widths = [
            max(Text(column.heading).cell_len, *(cell.cell_len for cell in written), 0)
            for column, written in zip(self.columns, cells, strict=True)
        ]
        n = fitting(widths, options.max_width)
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        for column in self.columns[:n]:
            table.add_column(Text(column.heading), justify=column.side, overflow="fold")
        for number, row in enumerate(self.rows):
            table.add_row(*(written[number] for written in cells[:n]), style=self.style(row))
        yield table
        if left_out := [column.heading for column in self.columns[n:]]:
            yield Text(f"wider terminals show: {', '.join(left_out)}", style="dim", overflow="fold")


def fitting(widths: Sequence[int], width: int) -> int:
    """Return how many of the first columns of these widths fit, a gap between each two; the first always does.

    Examples
    --------
    >>> fitting([10, 6, 6], 26), fitting([10, 6, 6], 25), fitting([10, 6, 6], 5)
    (3, 2, 1)
    """
    ends = accumulate(widths, lambda end, each: end + _GAP + each)
    return max(1, sum(end <= width for end in ends))


def number(value: float | None) -> str:
    """Write a measure with four digits after the point, a tiny one by its power of ten, none as nothing.

    Examples
    --------
    >>> number(0.87654), number(-12345.0), number(1e-5), number(0.0), number(float("nan"))
    ('0.8765', '-12,345.0000', '1.0e-05', '0.0000', '')
    """
    if value is None or isnan(value):
        return ""
    return f"{value:.1e}" if 0.0 < abs(value) < 0.00005 else f"{value:,.4f}"


def _literal(cell: str | Text) -> Text:
    """A name may hold brackets that rich would take for markup."""
    return cell if isinstance(cell, Text) else Text(cell)
