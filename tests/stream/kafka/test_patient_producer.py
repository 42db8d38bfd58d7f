"""Records that brokers do not take are sent again until they do, or until that lasts too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, MessageSizeTooLargeError

from heft.stream.kafka.connection_errors import BrokerAwayError
from heft.stream.kafka.patient_producer import PatientProducer


class Broker:
    """What aiokafka's producer is, with brokers that answer as told: an error, or None for an acknowledgement."""

    def __init__(self, answers: Iterator[Exception | None]) -> None:
        self.taken: list[bytes] = []
        self.attempts = 0
        self._answers = answers

    async def send_and_wait(self, _topic: str, value: bytes, **_: Any) -> Any:
        self.attempts += 1
        error = next(self._answers)
        if error is not None:
            raise error
        self.taken.append(value)
        return SimpleNamespace(offset=len(self.taken) - 1)


def producer(broker: Broker, seconds: Callable[[], float], retries: list[None] | None = None) -> PatientProducer:
    noted: list[None] = [] if retries is None else retries
    return PatientProducer(cast(AIOKafkaProducer, broker), 60_000, lambda: noted.append(None), seconds)


def test_a_record_that_brokers_did_not_take_is_sent_again_and_counted() -> None:
    broker = Broker(iter([KafkaConnectionError("away"), KafkaTimeoutError(), None]))
    retries: list[None] = []
    assert asyncio.run(producer(broker, lambda: 0.0, retries).send("samples", b"a")) == 0
    assert (broker.taken, len(retries)) == ([b"a"], 2)


def test_brokers_that_stay_away_are_an_error_that_says_how_long_and_what_to_do() -> None:
    broker, clock = Broker(repeat(KafkaConnectionError("nobody there"))), count(0.0, 40.0)
    with pytest.raises(BrokerAwayError, match=r"samples: .* for 80 s, longer than kafka.patience; .*nobody there"):
        asyncio.run(producer(broker, lambda: next(clock)).send("samples", b"a"))
    assert broker.attempts == 2


def test_what_waiting_does_not_mend_is_raised_at_once() -> None:
    broker = Broker(chain([MessageSizeTooLargeError()], repeat(None)))
    with pytest.raises(MessageSizeTooLargeError):
        asyncio.run(producer(broker, lambda: 0.0).send("samples", b"a"))
    assert broker.attempts == 1


def test_a_worker_that_stops_waits_for_no_broker() -> None:
    async def stopped() -> None:
        patient = producer(Broker(repeat(KafkaConnectionError("away"))), lambda: 0.0)
        patient.stop_waiting()
        with pytest.raises(KafkaConnectionError):
            await patient.send("samples", b"a")

    asyncio.run(stopped())


class SilentBroker(Broker):
    """Brokers that do not even refuse."""

    async def send_and_wait(self, _topic: str, value: bytes, **_: Any) -> Any:  # noqa: ARG002
        self.attempts += 1
        await asyncio.Event().wait()


def test_a_worker_that_stops_does_not_wait_for_brokers_that_say_nothing() -> None:
    async def stopped() -> None:
        patient = PatientProducer(cast(AIOKafkaProducer, SilentBroker(iter([]))), 60_000, lambda: None, grace=0.01)
        on_its_way = asyncio.create_task(patient.send("samples", b"a"))
        await asyncio.sleep(0)
        patient.stop_waiting()
        for sending in (on_its_way, patient.send("samples", b"b")):
            with pytest.raises(
                BrokerAwayError, match=r"samples: .* the worker stops; what was not written is made anew"
            ):
                await sending

    asyncio.run(asyncio.wait_for(stopped(), 20))


def test_a_worker_that_stops_still_writes_where_brokers_answer() -> None:
    async def stopped() -> int:
        patient = PatientProducer(cast(AIOKafkaProducer, Broker(iter([None]))), 60_000, lambda: None)
        patient.stop_waiting()
        return await patient.send("samples", b"a")

    assert asyncio.run(stopped()) == 0
