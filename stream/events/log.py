"""Event logs: files of events, one JSON line each, in arrival order; ``.jsonl``, ``.jsonl.gz`` or ``.jsonl.zst``."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import zstandard


def open_log(path: Path, mode: str) -> IO[bytes]:
    """Open a log for reading (``"rb"``) or writing (``"wb"``), compressed as its suffix says.

    Raises
    ------
    ValueError
        If the name ends in none of ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``.
    """
    name = path.name
    if name.endswith(".jsonl"):
        return cast("IO[bytes]", path.open(mode))
    if name.endswith(".jsonl.gz"):
        return cast("IO[bytes]", _Gzip(path, mode))
    if name.endswith(".jsonl.zst"):
        if mode == "rb":
            return cast("IO[bytes]", io.BufferedReader(zstandard.open(path, "rb"), 1 << 20))
        return cast("IO[bytes]", zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=3)))
    msg = f"{path}: an event log ends in .jsonl, .jsonl.gz or .jsonl.zst"
    raise ValueError(msg)


@contextmanager
def new_log(path: Path) -> Iterator[IO[bytes]]:
    """Open a log to write that has its name when it is whole, and is gone when what writes it fails.

    Raises
    ------
    ValueError
        If the name ends in none of ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        with open_log(unfinished, "wb") as log:
            yield log
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


class _Gzip(gzip.GzipFile):
    """Without name and time in its header, so that the same events give the same bytes; closes the file below it."""

    def __init__(self, path: Path, mode: str) -> None:
        self._file = path.open(mode)
        super().__init__(filename="", fileobj=self._file, mode=mode, compresslevel=1, mtime=0)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._file.close()


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a log without their newlines; empty lines are skipped."""
    with open_log(path, "rb") as lines:
        for line in lines:
            stripped = line.rstrip(b"\r\n")
            if stripped:
                yield stripped
