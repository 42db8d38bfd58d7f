"""The join's stage without a broker: what it sends, and what it waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError

from heft.stream.join.config import JoinConfig
from heft.stream.kafka.batch_consumer import TP, Batch, Received
from heft.stream.kafka.connection_errors import BrokerAwayError
from heft.stream.kafka.patient_producer import PatientProducer
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.store import SnapshotStore
from heft.stream.worker.join_stage import JoinStage
from heft.stream.worker.stage import Connections, LossPolicy

CLICKS = TP("clicks", 0)


class FarBroker:
    """A producer that acknowledges only once nothing more is sent, all at once: a round trip. ``failing``: not this."""

    def __init__(self, failing: int = -1) -> None:
        self.sent: list[bytes] = []
        self.round_trips = 0
        self._failing = failing
        self._waiting: list[asyncio.Future[Any]] = []

    async def send(self, topic: str, value: bytes) -> asyncio.Future[Any]:
        assert topic == "rejected"
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._acknowledge)
        self._waiting.append(loop.create_future())
        self.sent.append(value)
        return self._waiting[-1]

    async def send_and_wait(self, topic: str, value: bytes, **_: Any) -> Any:
        return await (await self.send(topic, value))

    def _acknowledge(self) -> None:
        self.round_trips += 1
        first = len(self.sent) - len(self._waiting)
        for number, future in enumerate(self._waiting, first):
            if number == self._failing:
                future.set_exception(KafkaTimeoutError())
            else:
                future.set_result(SimpleNamespace(offset=number))
        self._waiting = []


def stage(broker: Any, folder: Path) -> JoinStage:
    producer, store = PatientProducer(cast(AIOKafkaProducer, broker), 0, lambda: None), SnapshotStore(str(folder))
    connections = Connections({}, producer, PatientStore(store, 1_000), LossPolicy())
    return JoinStage(connections, JoinConfig(), None, 0, ["clicks"], "samples", "rejected")


def wrong(records: int) -> Batch:
    return Batch(CLICKS, [Received(n, 0, None, b"no event", 0) for n in range(records)], records, 0)


def test_all_rejected_records_of_a_batch_wait_for_one_round_trip_and_keep_their_order(tmp_path: Path) -> None:
    broker = FarBroker()
    joining = stage(broker, tmp_path)
    asyncio.run(joining.take(wrong(500)))
    assert broker.round_trips == 1
    assert [msgspec.json.decode(value)["offset"] for value in broker.sent] == list(range(500))
    assert joining.healthy
    assert joining.joiner.rejected == []


def test_a_batch_is_done_only_when_every_rejected_record_is_acknowledged(tmp_path: Path) -> None:
    joining = stage(FarBroker(failing=3), tmp_path)
    with pytest.raises(BrokerAwayError, match="rejected: the brokers took no record for"):
        asyncio.run(joining.take(wrong(5)))
    assert not joining.healthy
