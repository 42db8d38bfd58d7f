"""What the three stages have in common. A stage is one partition of a pure class with its Kafka around it.

A stage takes the batches that have come, passes them through its pure class, writes the result, and only then takes
the next. Its
snapshot holds its state and the input offsets that belong to it. Each method leaves the stage healthy or raises; a
stage that raised writes no snapshot, so the next worker goes on from the one before.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from heft.models.records import Record
from heft.stream.events import messages
from heft.stream.events.messages import GapError, Message, MessageError, ScoredReader
from heft.stream.kafka.batch_consumer import TP, Batch, Received
from heft.stream.kafka.offsets import OffsetGoneError
from heft.stream.kafka.partition_log import Cursor
from heft.stream.kafka.patient_producer import PatientProducer
from heft.stream.state.codec import State
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.store import Name

log = logging.getLogger("heft.stage")


class RecoveryError(RuntimeError):
    """A topic does not hold what the snapshot says. The message names both."""


class PendingSnapshot(NamedTuple):
    """A snapshot that is still to be written."""

    name: Name
    state: State
    segments: Iterable[tuple[str, Callable[[], State]]]


class LossPolicy:
    """Decides what happens where a topic does not hold what a stage expects: an error, or a count and a warning.

    ``gaps`` counts by partition how often a loss was accepted.

    Parameters
    ----------
    accepted
        Whether to go on (``--accept-loss``).
    """

    def __init__(self, accepted: bool = False) -> None:
        self.accepted = accepted
        self.gaps: Counter[TP] = Counter()

    def of(self, *tps: TP) -> int:
        """Return how often a loss of these partitions was accepted."""
        return sum(self.gaps[tp] for tp in tps)

    def accept(self, tp: TP, error: Exception) -> None:
        """Count a loss of a partition; raise the error where losses are not accepted."""
        if not self.accepted:
            raise error
        self.gaps[tp] += 1
        log.warning("loss accepted: %s", error)


class Connections(NamedTuple):
    """What the stages of a worker share: clients' settings, the producer, the snapshot store, and the loss policy."""

    client: Mapping[str, Any]
    producer: PatientProducer
    store: PatientStore
    losses: LossPolicy


def read_message(connections: Connections, tp: TP, record: Received) -> Message | None:
    """Return the message of a record; None for a damaged one when losses are accepted."""
    try:
        return messages.decode(record.value or b"")
    except MessageError as error:
        connections.losses.accept(tp, _located(tp, record, error))
        return None


def read_records(
    connections: Connections, tp: TP, record: Received, message: Message, reader: ScoredReader
) -> list[Record]:
    """Return the records of a message that are new; with a gap before it only when losses are accepted."""
    try:
        return reader.read(message)
    except GapError as error:
        connections.losses.accept(tp, _located(tp, record, error))
        reader.skip_gap(message)
        return reader.read(message)


def _located(tp: TP, record: Received, error: MessageError) -> RecoveryError:
    return RecoveryError(
        f"{tp.topic}-{tp.partition} at offset {record.offset}: {error}. "
        f"Restore the topic, or start with --accept-loss to go on without what is missing"
    )


class Stage(Protocol):
    """One partition of one stage.

    ``healthy``: every method that began has also ended well. ``dirty``: the state has changed since the last snapshot.
    """

    healthy: bool
    dirty: bool

    async def open(self) -> Mapping[TP, int | None]:
        """Restore the newest snapshot; return where to go on in each input."""
        ...

    def offsets(self) -> Mapping[TP, int | None]:
        """Return where each input goes on now."""
        ...

    async def take(self, batches: Sequence[Batch]) -> None:
        """Pass batches through the stage, those of each partition in their order, and write what comes out."""
        ...

    async def pending(self) -> PendingSnapshot:
        """Return a snapshot of the state as it is now; the stage is not dirty afterwards."""
        ...


class TopicFingerprint:
    """Tells whether a topic is still the one that a stage has read: its last record, and its number of partitions.

    Parameters
    ----------
    tp
        The partition.
    offset, checksum
        Offset and CRC-32 of the last record read; an offset of -1: none is known.
    partitions
        How many partitions the topic had; 0: not known.
    """

    def __init__(self, tp: TP, offset: int = -1, checksum: int = 0, partitions: int = 0) -> None:
        self.tp, self.offset, self.checksum, self.partitions = tp, offset, checksum, partitions

    def note(self, record: Received) -> None:
        """Remember a record as the last one read."""
        self.offset, self.checksum = record.offset, zlib.crc32(record.value or b"")

    def state(self) -> tuple[int, int, int]:
        """Return what to remember in a snapshot."""
        return self.offset, self.checksum, self.partitions

    async def verify(self, connections: Connections, at: int | None) -> int:
        """Check that the topic is the one that was read and holds the next records; return where to go on.

        Parameters
        ----------
        connections
            How to connect, and whether losses are accepted.
        at
            The next offset to read if all is well; None: the beginning.

        Raises
        ------
        RecoveryError
            If the topic was made anew or has another number of partitions.
        OffsetGoneError
            If the records to go on from are not there.
        """
        async with Cursor(connections.client, self.tp, -1) as log:
            bounds, partitions = await log.bounds(-1 if at is None else at), log.partitions
        if self.partitions not in (0, partitions):
            connections.losses.accept(self.tp, self._repartitioned(partitions))
        self.partitions = partitions
        if at is None:
            return bounds.beginning
        if not bounds.can_go_on_at(at):
            gone = OffsetGoneError(self.tp, at, bounds)
            connections.losses.accept(self.tp, gone)
            self.offset = -1
            return gone.nearest
        if bounds.beginning <= self.offset:
            async with Cursor(connections.client, self.tp, self.offset) as log:
                async for record in log.up_to(self.offset + 1):
                    found = zlib.crc32(record.value or b"")
                    if record.offset == self.offset and found != self.checksum:
                        connections.losses.accept(self.tp, self._made_anew(found))
                        self.offset = -1
                        return bounds.beginning
        return at

    def _repartitioned(self, now: int) -> RecoveryError:
        return RecoveryError(
            f"{self.tp.topic}: had {self.partitions} partitions, now it has {now}: users have moved between "
            f"partitions. Go back to {self.partitions}, or start with --accept-loss to go on: what is open for a user "
            f"who has moved is not joined"
        )

    def _made_anew(self, found: int) -> RecoveryError:
        return RecoveryError(
            f"{self.tp.topic}-{self.tp.partition}: expected the record at offset {self.offset} with checksum "
            f"{self.checksum:08x}, found {found:08x}: the topic was made anew. Restore the topic, or start with "
            f"--accept-loss to go on at the beginning of the new one"
        )


@contextlib.contextmanager
def healthy_or_broken(stage: Stage) -> Iterator[None]:
    """Mark a stage as not healthy while the block runs, and for good if it raises; mark it as dirty."""
    stage.healthy = False
    stage.dirty = True
    yield
    stage.healthy = True
