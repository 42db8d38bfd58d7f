"""The score stage of one partition with its Kafka around it: `samples` passes on to the shards of `scored`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from heft.stream.events import due_header as due
from heft.stream.events import messages
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

_MOST_PLACES = 64


class StageKey(NamedTuple):
    """Where the stage was when a snapshot was taken."""

    due_ms: int
    offset: int
    state: dict[str, Any]


class ScoreStage:
    """One partition of `samples` passes on to the shards of `scored`, taking reference scores along.

    Parameters
    ----------
    connections, partition, samples, scored, shards
        Connections, and what is read and written.
    scorer
        What adds the scores.
    open_for_ms
        How long a slate can wait for scores: the click window; 0 without a teacher. A snapshot holds the newest place
        before which no slate is open: a stage that starts there asks again for all that is.
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
        self._places: list[StageKey] = []
        self._seen = TopicFingerprint(self.tp)
        self._offset: int | None = None
        self._rollbacks = 0
        self.readers = [ScoredReader() for _ in range(shards)]

    async def open(self) -> Mapping[TP, int | None]:
        """Go on at the snapshot; what is then forwarded again, readers drop."""
        found = await self.connections.store.latest(f"score-{self.partition}", "score")
        if found is not None:
            name, state, _ = found
            if len(state["readers"]) != len(self.readers):
                had, now = len(state["readers"]), len(self.readers)
                msg = f"{name.file}: made for {had} shards, the configuration names {now}"
                raise RecoveryError(msg)
            self.readers = [ScoredReader.restore(reader) for reader in state["readers"]]
            self._seen = TopicFingerprint(self.tp, *state["seen"])
            self._offset = state["offset"]
            self._rollbacks = name.rollbacks
        gaps = self.connections.losses.of(self.tp)
        self._offset = await self._seen.verify(self.connections, self._offset)
        self._rollbacks += self.connections.losses.of(self.tp) > gaps
        self._places = [self._here()]
        self.healthy = True
        return {self.tp: self._offset}

    async def take(self, batch: Batch) -> None:
        """Forward a batch, shard by shard."""
        with healthy_or_broken(self):
            for record in batch.records:
                message = read_message(self.connections, self.tp, record)
                if message is not None:
                    await self._forward(record, message)
                self._seen.note(record)
            self._offset = batch.end_offset

    async def _forward(self, record: Received, message: Message) -> None:
        if message.marker:
            for shard, reader in enumerate(self.readers):
                reader.read(message)
                await self._send(shard, message, record.due_since_ms)
            return
        if message.shard >= len(self.readers):
            msg = f"{self.tp.topic}: a message of shard {message.shard}, the configuration names {len(self.readers)}"
            raise RecoveryError(msg)
        new = read_records(self.connections, self.tp, record, message, self.readers[message.shard])
        if new:
            self._due_ms = max(self._due_ms, new[-1].due_ms)
            scored = [self.scorer.score(each) for each in new]
            scores = msgspec.structs.replace(message, records=scored, marks=[])
            await self._send(message.shard, scores, record.due_since_ms)

    async def _send(self, shard: int, message: Message, due_since_ms: int) -> None:
        await self.connections.producer.send_and_wait(
            self._scored, messages.encode(message), partition=shard, headers=due.headers(due_since_ms)
        )

    async def pending(self) -> PendingSnapshot:
        """Return the newest place before which no slate is open."""
        here, places = self._here(), self._places
        if len(places) > 1 and places[-1].due_ms == here.due_ms:
            places.pop()
        elif len(places) > _MOST_PLACES:
            del places[1::2]
        places.append(here)
        while len(places) > 1 and places[1].due_ms <= here.due_ms - self._open_for_ms:
            places.pop(0)
        self.dirty = False
        name = Name(f"score-{self.partition}", self._rollbacks, places[0].offset, "score")
        return PendingSnapshot(name, places[0].state, (), {self.tp: places[0].offset})

    def _here(self) -> StageKey:
        offset = self._offset or 0
        state = {"offset": offset, "seen": self._seen.state(), "readers": [reader.state() for reader in self.readers]}
        return StageKey(self._due_ms, offset, state)
