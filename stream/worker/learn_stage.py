"""The learn stage of one shard with its Kafka around it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from heft.models.records import Record
from heft.stream.events.messages import ScoredReader
from heft.stream.kafka.batch_consumer import TP, Batch
from heft.stream.learn.learner import Learner, LearnerConfig
from heft.stream.state.store import Name
from heft.stream.worker.stage import (
    Connections,
    PendingSnapshot,
    TopicFingerprint,
    healthy_or_broken,
    read_message,
    read_records,
)

_STEP = 32
"""Labels, or records, until the event loop has a turn: each takes up to a millisecond."""


class LearnStage:
    """Learns one shard of `scored`.

    Parameters
    ----------
    connections
        What the stages of a worker share.
    config
        The learner's configuration.
    shard, scored
        The partition of the topic ``scored`` to read.
    """

    def __init__(self, connections: Connections, config: LearnerConfig, shard: int, scored: str) -> None:
        self.connections, self.config, self.shard = connections, config, shard
        self.healthy, self.dirty = False, False
        self.tp = TP(scored, shard)
        self.learner = Learner(config)
        self.reader = ScoredReader()
        self._rollbacks = 0
        self._fingerprint = TopicFingerprint(self.tp)
        self._offset: int | None = None

    async def open(self) -> Mapping[TP, int | None]:
        """Restore the newest snapshot of this lineage."""
        found = await self.connections.store.latest(f"learn-{self.shard}", self.config.lineage)
        if found is not None:
            name, state, segments = found
            # Beside the event loop: the other stages, and the producer, go on meanwhile.
            self.learner = await asyncio.to_thread(Learner.restore, self.config, state["learner"], segments)
            self.reader = ScoredReader.restore(state["reader"])
            self._fingerprint = TopicFingerprint(self.tp, *state["seen"])
            self._offset, self._rollbacks = state["offset"], name.rollbacks
        gaps = self.connections.losses.of(self.tp)
        self._offset = await self._fingerprint.verify(self.connections, self._offset)
        self._rollbacks += self.connections.losses.of(self.tp) > gaps
        self.healthy = True
        return self.offsets()

    def offsets(self) -> Mapping[TP, int | None]:
        """Return where the shard goes on."""
        return {self.tp: self._offset}

    async def take(self, batches: Sequence[Batch]) -> None:
        """Learn batches."""
        with healthy_or_broken(self):
            for batch in batches:
                for record in batch.records:
                    message = read_message(self.connections, self.tp, record)
                    if message is not None:
                        records = read_records(self.connections, self.tp, record, message, self.reader)
                        await self._learn(message.source, records)
                    self._fingerprint.note(record)
                self._offset = batch.end_offset

    async def _learn(self, source: int, records: Sequence[Record]) -> None:
        """Learn in steps of some 20 ms: other stages, the producer and whoever asks for our health must have a turn."""
        for number, record in enumerate(records, 1):
            while self.learner.catch_up(record.due_ms, _STEP):
                await asyncio.sleep(0)
            self.learner.apply(source, record)
            if number % _STEP == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def pending(self) -> PendingSnapshot:
        """Return a copy of the model, to be encoded and written later."""
        offset = self._offset or 0
        learner, segments = self.learner.state()
        state = {
            "learner": learner,
            "reader": self.reader.state(),
            "seen": self._fingerprint.state(),
            "offset": self._offset,
        }
        name = Name(f"learn-{self.shard}", self._rollbacks, offset, self.config.lineage)
        self.dirty = False
        return PendingSnapshot(name, state, segments)
