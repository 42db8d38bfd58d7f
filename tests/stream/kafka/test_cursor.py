"""Reading a range of a partition when nothing comes: it is missing, or the brokers are away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError

from heft.stream.kafka import partition_log
from heft.stream.kafka.batch_consumer import TP
from heft.stream.kafka.partition_log import Cursor, MissingRecordsError

SAMPLES = TP("samples", 0)


class Silent:
    """A consumer to which nothing comes. ``away``: its brokers do not answer either."""

    def __init__(self, away: bool) -> None:
        self.away = away

    async def getmany(self, *_: Any, **__: Any) -> dict[Any, Any]:
        await asyncio.sleep(0.001)
        return {}

    async def position(self, _: Any) -> int:
        return 3

    async def beginning_offsets(self, tps: list[Any]) -> dict[Any, int]:
        if self.away:
            raise KafkaTimeoutError
        return dict.fromkeys(tps, 0)


async def read() -> None:
    async for _ in Cursor({}, SAMPLES, 3).up_to(5):
        pass


@pytest.mark.parametrize(("away", "error"), [(False, MissingRecordsError), (True, KafkaTimeoutError)])
def test_records_are_missing_only_where_brokers_answer(
    away: bool, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_log, "PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(partition_log, "AIOKafkaConsumer", lambda **_: Silent(away))
    with pytest.raises(error):
        asyncio.run(read())
