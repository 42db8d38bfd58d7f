"""The score stage of one partition with its Kafka around it: what comes in `samples` goes on to shards of `scored`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from heft.stream.events import due_header, messages
from heft.stream.events.messages import Message, ScoredReader
from heft.stream.kafka.batch_consumer import TP, Batch, Received
from heft.stream.score.scorer import Scorer
from heft.stream.state.store import Name
from heft.stream.worker.stage import (
    Connections,
    PendingSnapshot,
    RecoveryError,
    TopicFingerprint,
    healthy_or_broken,
    read_message,
    read_records,
)

_MOST_RESUME_POINTS = 64

_MERGED_BYTES = 200_000
"""Of the compressed messages that become one: it stays well below the largest that a topic takes."""


class _ResumePoint(NamedTuple):
    """An offset at which a stage can go on, with its state there."""

    due_ms: int
    offset: int
    state: dict[str, Any]


class _Outgoing:
    """What goes to one shard: messages, and since when their records are due. Each takes in what follows it."""

    def __init__(self) -> None:
        self.messages: list[tuple[Message, int]] = []
        self._bytes = 0

    def add(self, message: Message, record: Received) -> None:
        """Add a message made of a record, to the last one if that is of the same writer and not large yet."""
        size = len(record.value or b"")
        if self.messages:
            last, due_since_ms = self.messages[-1]
            same_writer = (last.epoch, last.writer) == (message.epoch, message.writer)
            if same_writer and not (last.marker or message.marker) and self._bytes + size <= _MERGED_BYTES:
                last.records.extend(message.records)
                self.messages[-1] = msgspec.structs.replace(last, offsets=message.offsets), due_since_ms
                self._bytes += size
                return
        self.messages.append((message, record.due_since_ms))
        self._bytes = size


class ScoreStage:
    """Passes the records of one partition of `samples` on to the shards of `scored`, with reference scores.

    Parameters
    ----------
    connections
        What the stages of a worker share.
    partition, samples, scored, shards
        The partition of the topic ``samples`` to read; the topic ``scored`` to write, and its number of shards.
    scorer
        Adds the scores.
    open_for_ms
        How long a slate can wait for scores, in milliseconds: the click window; 0 without a teacher. A snapshot holds
        the newest point such that no slate before it waits: a stage that starts there asks again for all that wait.
    """

    def __init__(
        self,
        connections: Connections,
        partition: int,
        samples: str,
        scored: str,
        shards: int,
        scorer: Scorer,
        open_for_ms: int = 0,
    ) -> None:
        self.connections, self.partition = connections, partition
        self.healthy, self.dirty = False, False
        self.tp = TP(samples, partition)
        self._scored = scored
        self.scorer = scorer
        self._open_for_ms = open_for_ms
        self._due_ms = 0
        self._resume_points: list[_ResumePoint] = []
        self._fingerprint = TopicFingerprint(self.tp)
        self._offset: int | None = None
        self._rollbacks = 0
        self.readers = [ScoredReader() for _ in range(shards)]

    async def open(self) -> Mapping[TP, int | None]:
        """Go on at the snapshot. Readers drop the records that are forwarded once more then."""
        found = await self.connections.store.latest(f"score-{self.partition}", "score")
        if found is not None:
            name, state, _ = found
            if len(state["readers"]) != len(self.readers):
                made_for, configured = len(state["readers"]), len(self.readers)
                msg = f"{name.file}: made for {made_for} shards, the configuration names {configured}"
                raise RecoveryError(msg)
            self.readers = [ScoredReader.restore(reader) for reader in state["readers"]]
            self._fingerprint = TopicFingerprint(self.tp, *state["seen"])
            self._offset = state["offset"]
            self._rollbacks = name.rollbacks
        gaps = self.connections.losses.of(self.tp)
        self._offset = await self._fingerprint.verify(self.connections, self._offset)
        self._rollbacks += self.connections.losses.of(self.tp) > gaps
        self._resume_points = [self._resume_point()]
        self.healthy = True
        return self.offsets()

    def offsets(self) -> Mapping[TP, int | None]:
        """Return where the partition goes on."""
        return {self.tp: self._offset}

    async def take(self, batches: Sequence[Batch]) -> None:
        """Forward the messages of batches to their shards, many of them as one."""
        with healthy_or_broken(self):
            outgoing = [_Outgoing() for _ in self.readers]
            for batch in batches:
                for record in batch.records:
                    message = read_message(self.connections, self.tp, record)
                    if message is not None:
                        self._forward(record, message, outgoing)
                        await asyncio.sleep(0)  # a message may hold thousands of slates: others must have a turn
                    self._fingerprint.note(record)
            # One message to a shard is on its way at a time: the readers take a later one that comes first for a gap.
            await asyncio.gather(*[self._send_all(shard, each.messages) for shard, each in enumerate(outgoing)])
            self._offset = batches[-1].end_offset

    def _forward(self, record: Received, message: Message, outgoing: Sequence[_Outgoing]) -> None:
        if message.marker:
            for reader, of_shard in zip(self.readers, outgoing, strict=True):
                reader.read(message)
                of_shard.add(message, record)
            return
        if message.shard >= len(self.readers):
            msg = f"{self.tp.topic}: a message of shard {message.shard}, the configuration names {len(self.readers)}"
            raise RecoveryError(msg)
        new = read_records(self.connections, self.tp, record, message, self.readers[message.shard])
        if new:
            self._due_ms = max(self._due_ms, new[-1].due_ms)
            scored = [self.scorer.score(each) for each in new]
            outgoing[message.shard].add(msgspec.structs.replace(message, records=scored, marks=[]), record)

    async def _send_all(self, shard: int, waiting: Sequence[tuple[Message, int]]) -> None:
        for message, due_since_ms in waiting:
            value, headers = messages.encode(message), due_header.headers(due_since_ms)
            await self.connections.producer.send(self._scored, value, shard, headers)

    async def pending(self) -> PendingSnapshot:
        """Return the newest point before which no slate waits for scores."""
        now, points = self._resume_point(), self._resume_points
        if len(points) > 1 and points[-1].due_ms == now.due_ms:
            points.pop()
        elif len(points) > _MOST_RESUME_POINTS:
            del points[1::2]
        points.append(now)
        while len(points) > 1 and points[1].due_ms <= now.due_ms - self._open_for_ms:
            points.pop(0)
        self.dirty = False
        name = Name(f"score-{self.partition}", self._rollbacks, points[0].offset, "score")
        return PendingSnapshot(name, points[0].state, ())

    def _resume_point(self) -> _ResumePoint:
        offset = self._offset or 0
        state = {
            "offset": offset,
            "seen": self._fingerprint.state(),
            "readers": [reader.state() for reader in self.readers],
        }
        return _ResumePoint(self._due_ms, offset, state)
