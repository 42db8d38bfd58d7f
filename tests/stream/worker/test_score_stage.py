"""The score stage without a broker: many messages go on as one to each shard, and are read as if they had not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from aiokafka import AIOKafkaProducer

from heft.models.records import FIRST_KEY, Clicked, Key, Record
from heft.stream.events import messages
from heft.stream.events.messages import Message, ScoredReader
from heft.stream.kafka.batch_consumer import TP, Batch, Received
from heft.stream.kafka.patient_producer import PatientProducer
from heft.stream.score.scorer import Scorer
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.store import SnapshotStore
from heft.stream.worker.score_stage import ScoreStage
from heft.stream.worker.stage import Connections, LossPolicy
from tests.support.far_broker import FarBroker

SAMPLES = TP("samples", 3)


class Join:
    """What the join of one partition writes: each message follows the one before of its shard."""

    def __init__(self, writer: str = "w1", epoch: int = 1, keys: dict[int, Key] | None = None) -> None:
        self.writer, self.epoch, self.keys = writer, epoch, keys if keys is not None else {}

    def marker(self) -> Message:
        return Message(3, 0, self.epoch, self.writer, FIRST_KEY, (0,), marker=True)

    def message(self, shard: int, *at_ms: int) -> Message:
        records: list[Record] = [Clicked(at, f"r{at}", "a") for at in at_ms]
        after = self.keys.get(shard, FIRST_KEY)
        self.keys[shard] = records[-1].key
        return Message(3, shard, self.epoch, self.writer, after, (at_ms[-1],), records=records)


def passed_on(broker: FarBroker, folder: Path, batches: Sequence[Sequence[Message]], shards: int = 2) -> None:
    producer = PatientProducer(cast(AIOKafkaProducer, broker), 0, lambda: None)
    store = PatientStore(SnapshotStore(str(folder)), 1_000)
    stage = ScoreStage(
        Connections({}, producer, store, LossPolicy()), 3, "samples", "scored", shards, Scorer()
    )  # fmt: skip
    received, offset = [], 0
    for batch in batches:
        records = [Received(offset + n, 0, None, messages.encode(each), 7) for n, each in enumerate(batch)]
        offset += len(records)
        received.append(Batch(SAMPLES, records, offset, 1))
    asyncio.run(stage.take(received))
    assert stage.offsets() == {SAMPLES: offset}


def read(broker: FarBroker, shard: int) -> list[int]:
    reader = ScoredReader()
    return [r.due_ms for raw in broker.values("scored", shard) for r in reader.read(messages.decode(raw))]


def test_what_has_come_goes_on_in_one_message_for_each_shard(tmp_path: Path) -> None:
    broker, join = FarBroker(), Join()
    first = [join.marker(), join.message(0, 1, 2), join.message(1, 3)]
    second = [join.message(0, 4), join.message(1, 5, 6), join.message(0, 7)]
    passed_on(broker, tmp_path, [first, second])
    assert [len(broker.values("scored", shard)) for shard in (0, 1)] == [2, 2], "a marker and one message each"
    assert [read(broker, shard) for shard in (0, 1)] == [[1, 2, 4, 7], [3, 5, 6]]
    assert broker.round_trips == 2, "the shards do not wait for each other"


def test_messages_of_two_writers_stay_apart_with_the_marker_between_them(tmp_path: Path) -> None:
    broker, join = FarBroker(), Join()
    first = [join.marker(), join.message(0, 1)]
    taken_over = Join("w2", 2, dict(join.keys))
    second = [taken_over.marker(), taken_over.message(0, 2), taken_over.message(0, 3)]
    stalled = [join.message(0, 9)]  # its writer has been replaced
    passed_on(broker, tmp_path, [first, [*second, *stalled]], shards=1)
    decoded = [messages.decode(raw) for raw in broker.values("scored", 0)]
    assert [(each.marker, each.writer, len(each.records)) for each in decoded] == [
        (True, "w1", 0), (False, "w1", 1), (True, "w2", 0), (False, "w2", 2),
    ]  # fmt: skip
    assert read(broker, 0) == [1, 2, 3]


def test_a_message_that_has_become_large_is_followed_by_another(tmp_path: Path) -> None:
    broker, join = FarBroker(), Join()
    large = [join.message(0, *range(start, start + 40_000)) for start in range(0, 120_000, 40_000)]
    assert all(len(messages.encode(each)) > 70_000 for each in large)
    passed_on(broker, tmp_path, [[join.marker(), *large]], shards=1)
    assert len(broker.values("scored", 0)) > 2
    assert all(len(raw) <= messages.MAX_MESSAGE_BYTES for raw in broker.values("scored", 0))
    assert read(broker, 0) == list(range(120_000))
