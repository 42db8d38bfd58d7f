"""The join's stage without a broker: what it sends, and what it waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from heft.stream.join.config import JoinConfig
from heft.stream.kafka.batch_consumer import TP, Batch, Received
from heft.stream.kafka.connection_errors import BrokerAwayError
from heft.stream.kafka.patient_producer import PatientProducer
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.store import SnapshotStore
from heft.stream.worker.join_stage import JoinStage
from heft.stream.worker.stage import Connections, LossPolicy
from tests.support.far_broker import FarBroker

CLICKS = TP("clicks", 0)


def stage(broker: Any, folder: Path) -> JoinStage:
    producer, store = PatientProducer(cast(AIOKafkaProducer, broker), 0, lambda: None), SnapshotStore(str(folder))
    connections = Connections({}, producer, PatientStore(store, 1_000), LossPolicy())
    return JoinStage(connections, JoinConfig(), None, 0, ["clicks"], "samples", "rejected")


def wrong(records: int) -> Batch:
    return Batch(CLICKS, [Received(n, 0, None, b"no event", 0) for n in range(records)], records, 0)


def test_all_rejected_records_of_a_batch_wait_for_one_round_trip_and_keep_their_order(tmp_path: Path) -> None:
    broker = FarBroker()
    joining = stage(broker, tmp_path)
    asyncio.run(joining.take([wrong(500)]))
    assert broker.round_trips == 1
    assert [msgspec.json.decode(value)["offset"] for value in broker.values("rejected")] == list(range(500))
    assert joining.healthy
    assert joining.joiner.rejected == []


def test_a_batch_is_done_only_when_every_rejected_record_is_acknowledged(tmp_path: Path) -> None:
    joining = stage(FarBroker(failing=3), tmp_path)
    with pytest.raises(BrokerAwayError, match="rejected: the brokers took no record for"):
        asyncio.run(joining.take([wrong(5)]))
    assert not joining.healthy
