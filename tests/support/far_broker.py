"""A producer without a broker: it acknowledges only once nothing more is sent, all at once, as a round trip does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import KafkaTimeoutError


class FarBroker:
    """What `PatientProducer` needs of aiokafka's producer.

    ``sent`` holds topic, partition and value of each record; ``failing`` is the number of one that is never taken.
    """

    def __init__(self, failing: int = -1) -> None:
        self.sent: list[tuple[str, int | None, bytes]] = []
        self.round_trips = 0
        self._failing = failing
        self._waiting: list[asyncio.Future[Any]] = []

    def values(self, topic: str, partition: int | None = None) -> list[bytes]:
        """Return what was sent to a partition of a topic, in its order."""
        return [value for name, number, value in self.sent if (name, number) == (topic, partition)]

    async def send_and_wait(self, topic: str, value: bytes, partition: int | None = None, **_: Any) -> Any:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._acknowledge)
        acknowledged = loop.create_future()
        self._waiting.append(acknowledged)
        self.sent.append((topic, partition, value))
        return await acknowledged

    def _acknowledge(self) -> None:
        self.round_trips += 1
        first = len(self.sent) - len(self._waiting)
        for number, future in enumerate(self._waiting, first):
            if number == self._failing:
                future.set_exception(KafkaTimeoutError())
            else:
                future.set_result(SimpleNamespace(offset=number))
        self._waiting = []
