"""Events of a table in the order of their times: arrival order, for a log that never lost or delayed anything.

Sources come sorted by time, by user, or not at all, and an impression is dated before the click that proves it. So the
events are sorted in runs that fit in memory, and the runs merged from temporary files. Equal times keep their order.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from heft.stream.events.log import new_log
from heft.stream.events.wire import Event, encode

RUN_BYTES = 64 * 1024 * 1024
"""Lines sorted in memory at a time."""

_TIME = 14  # digits of the time before each line: more cannot be on the wire


def in_order(events: Iterable[Event], run_bytes: int = RUN_BYTES) -> Iterator[bytes]:
    """Yield the events as lines without newlines, sorted by ``at_ms``; memory stays within a few ``run_bytes``."""
    with ExitStack() as stack:
        runs: list[Iterable[bytes]] = []
        run: list[bytes] = []
        size = 0
        for event in events:
            line = b"%014d%s\n" % (event.at_ms, encode(event))
            run.append(line)
            size += len(line)
            if size >= run_bytes:
                file = stack.enter_context(tempfile.TemporaryFile(buffering=1 << 20))
                run.sort(key=_time)
                file.writelines(run)
                file.seek(0)
                runs.append(file)
                run, size = [], 0
        run.sort(key=_time)
        for line in heapq.merge(*runs, run, key=_time):
            yield line[_TIME:-1]


def write_log(lines: Iterable[bytes], out: Path) -> int:
    """Write lines to a log, whole or not at all, and return how many there were.

    Raises
    ------
    ValueError
        If the name ends in none of ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``.
    """
    count = 0
    with new_log(out) as log:
        for line in lines:
            log.write(line + b"\n")
            count += 1
    return count


def _time(line: bytes) -> bytes:
    return line[:_TIME]
