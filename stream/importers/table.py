"""A table of somebody else's log: CSV, plain or gzipped, read once from its start with constant memory."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, Self, cast


class SourceError(ValueError):
    """A source that is not what the importer reads. The message says what was expected, where, and what to do."""


class Table:
    """Rows of a CSV file, by column name; to be used in a ``with`` block.

    Parameters
    ----------
    path
        The file, gzipped if its name ends in ``.gz``.
    columns
        Columns it must have.

    Attributes
    ----------
    size : int
        Bytes of the file.
    skipped : Counter[str]
        How many rows the importer left out, by reason.

    Raises
    ------
    SourceError
        If a column is missing, or the file is no text.
    """

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.skipped: Counter[str] = Counter()
        self._raw = path.open("rb")
        self._line = 0
        try:
            data = cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw)) if path.suffix == ".gz" else self._raw
            self._text = io.TextIOWrapper(data, encoding="utf-8-sig", newline="")
            self._reader = csv.DictReader(self._text)
            try:
                found = self._reader.fieldnames or []
            except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
                self.refuse(f"expected lines of comma-separated text; {error}")
            missing = [column for column in columns if column not in found]
            if missing:
                self.refuse(f"expected columns {', '.join(missing)}; got {', '.join(found) or 'an empty file'}")
        except BaseException:
            self._raw.close()
            raise

    @property
    def consumed(self) -> int:
        """Bytes of the file read so far."""
        return self._raw.tell()

    def refuse(self, what: str) -> NoReturn:
        """Raise an error that names the file and, once rows have been read, the line."""
        where = f"{self.path}, line {self._line}" if self._line > 1 else str(self.path)
        msg = f"{where}: {what}"
        raise SourceError(msg) from None

    def __iter__(self) -> Iterator[dict[str, str]]:
        try:
            for row in self._reader:
                self._line = self._reader.line_num
                if None in row or None in row.values():
                    self.refuse(f"expected {len(self._reader.fieldnames or [])} cells, as in the first line")
                yield row
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            self.refuse(f"the file is damaged or not a table; {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._text.close()
        self._raw.close()
