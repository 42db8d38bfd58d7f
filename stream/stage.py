"""What the three stages have in common, one object a partition; their Kafka is around them, Faust itself is in app.py.

A stage takes a batch, does what its pure class says, writes, and only then takes the next. Its snapshot holds its
state and the offsets it belongs to. Each method leaves the stage whole or raises; a stage that raised writes no
snapshot, so the one before it is where the next worker goes on.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from aiokafka import AIOKafkaProducer

from stream.driver import TP, Batch, Received
from stream.fence import Cursor
from stream.snapshot import Name, SnapshotStore, State


class RecoveryError(RuntimeError):
    """What is in a topic is not what the snapshot says; the message names both."""


class Unsaved(NamedTuple):
    """A snapshot that is still to be written, and the offsets that may be committed then."""

    name: Name
    state: State
    segments: Iterable[tuple[str, Callable[[], State]]]
    offsets: Mapping[TP, int]


class Wires(NamedTuple):
    """What the stages of a worker share."""

    client: Mapping[str, Any]
    producer: AIOKafkaProducer
    store: SnapshotStore


class Stage(Protocol):
    """One partition of one stage. ``whole``: nothing was broken off; ``changed``: since the last snapshot."""

    whole: bool
    changed: bool

    async def open(self) -> Mapping[TP, int | None]:
        """Restore what was; return where to go on in each input."""
        ...

    async def take(self, batch: Batch) -> None:
        """Deal with a batch."""
        ...

    async def unsaved(self) -> Unsaved:
        """Return a snapshot of now."""
        ...


class Seen:
    """The last record read of an input, so that a topic made anew is noticed."""

    def __init__(self, tp: TP, offset: int = -1, checksum: int = 0) -> None:
        self.tp, self.offset, self.checksum = tp, offset, checksum

    def note(self, record: Received) -> None:
        """Remember a record."""
        self.offset, self.checksum = record.offset, zlib.crc32(record.value or b"")

    def state(self) -> tuple[int, int]:
        """Return what to remember in a snapshot."""
        return self.offset, self.checksum

    async def verify(self, client: Mapping[str, Any]) -> None:
        """Check that the topic still holds this record, unless retention has taken it.

        Raises
        ------
        RecoveryError
            If another record is in its place.
        """
        if self.offset < 0:
            return
        async with Cursor(client, self.tp, -1) as log:
            if log.offset > self.offset:
                return
        async with Cursor(client, self.tp, self.offset) as log:
            async for record in log.up_to(self.offset + 1):
                found = zlib.crc32(record.value or b"")
                if record.offset == self.offset and found != self.checksum:
                    msg = (
                        f"{self.tp.topic}-{self.tp.partition}: expected the record at offset {self.offset} with "
                        f"checksum {self.checksum:08x}, found {found:08x}: the topic was made anew. Remove the "
                        f"snapshots to start with the new topic"
                    )
                    raise RecoveryError(msg)


@contextlib.contextmanager
def whole_or_broken(stage: Stage) -> Iterator[None]:
    """Leave a stage marked as broken when what happens inside does not end well."""
    stage.whole = False
    stage.changed = True
    yield
    stage.whole = True
