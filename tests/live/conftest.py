"""What the tests with real processes share, unless one of them says otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from heft.stream.kafka.local_broker import Broker, kafka_available


@pytest.fixture(scope="module", params=["tansu", "kafka"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "kafka" and not kafka_available():
        pytest.skip("Apache Kafka is not to be had: no Java, or no Maven")
    broker = Broker(request.param)
    broker.start()
    yield broker
    broker.close()
