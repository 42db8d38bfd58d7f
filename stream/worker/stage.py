"""What the three stages have in common, one object a partition; their Kafka is around them, Faust itself is in app.py.

A stage takes a batch, does what its pure class says, writes, and only then takes the next. Its snapshot holds its
state and the offsets it belongs to. Each method leaves the stage whole or raises; a stage that raised writes no
snapshot, so the one before it is where the next worker goes on.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from aiokafka import AIOKafkaProducer

from heft.models.records import Record
from heft.stream.events import messages
from heft.stream.events.messages import GapError, Message, MessageError, ScoredReader
from heft.stream.kafka.batch_consumer import TP, Batch, Received
from heft.stream.kafka.offsets import OffsetGoneError
from heft.stream.kafka.partition_log import Cursor
from heft.stream.state.codec import State
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.store import Name

log = logging.getLogger("heft.stage")


class RecoveryError(RuntimeError):
    """What is in a topic is not what the snapshot says; the message names both."""


class PendingSnapshot(NamedTuple):
    """A snapshot that is still to be written, and the offsets that may be committed then."""

    name: Name
    state: State
    segments: Iterable[tuple[str, Callable[[], State]]]
    offsets: Mapping[TP, int]


class LossPolicy:
    """Decides what happens where a topic does not hold what a stage expects: end, or go on and count.

    Parameters
    ----------
    accepted
        Whether to go on (``--accept-loss``).
    """

    def __init__(self, accepted: bool = False) -> None:
        self.accepted = accepted
        self.gaps: Counter[TP] = Counter()

    def of(self, *tps: TP) -> int:
        """Return how often something was missing of these partitions."""
        return sum(self.gaps[tp] for tp in tps)

    def accept(self, tp: TP, error: Exception) -> None:
        """Count that something is missing of a partition; raise the error if that is not accepted."""
        if not self.accepted:
            raise error
        self.gaps[tp] += 1
        log.warning("loss accepted: %s", error)


class Connections(NamedTuple):
    """What the stages of a worker share."""

    client: Mapping[str, Any]
    producer: AIOKafkaProducer
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
    """Return the records of a message that are new; over a gap only when losses are accepted."""
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
    """One partition of one stage. ``healthy``: nothing was broken off; ``dirty``: changed since the last snapshot."""

    healthy: bool
    dirty: bool

    async def open(self) -> Mapping[TP, int | None]:
        """Restore what was; return where to go on in each input."""
        ...

    async def take(self, batch: Batch) -> None:
        """Deal with a batch."""
        ...

    async def pending(self) -> PendingSnapshot:
        """Return a snapshot of now."""
        ...


class TopicFingerprint:
    """The last record of a partition that a stage knows, and of how many partitions: is the topic still the same."""

    def __init__(self, tp: TP, offset: int = -1, checksum: int = 0, partitions: int = 0) -> None:
        self.tp, self.offset, self.checksum, self.partitions = tp, offset, checksum, partitions

    def note(self, record: Received) -> None:
        """Remember a record."""
        self.offset, self.checksum = record.offset, zlib.crc32(record.value or b"")

    def state(self) -> tuple[int, int, int]:
        """Return what to remember in a snapshot."""
        return self.offset, self.checksum, self.partitions

    async def verify(self, connections: Connections, at: int | None) -> int:
        """Check that the topic is the one that was read, and holds what comes next; return where to go on.

        Parameters
        ----------
        connections
            Connections, and whether losses are accepted.
        at
            Where to go on if it is; None: at the beginning.

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
    """Leave a stage marked as broken when what happens inside does not end well."""
    stage.healthy = False
    stage.dirty = True
    yield
    stage.healthy = True
