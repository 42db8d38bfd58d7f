"""What a worker waits for, topics that are made after its start, and what it does not: a broker, when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kafka import KafkaAdminClient

from heft.stream.cli.status import ask
from heft.stream.kafka.local_broker import Broker
from tests.support.live import NEVER_IDLE, Shop
from tests.support.live_traffic import traffic

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def shop(broker: Broker, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(broker.bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", idle_after_ms=NEVER_IDLE)
    yield shop
    shop.close()


def test_topics_that_are_made_after_the_start_are_waited_for_by_name(shop: Shop) -> None:
    admin = KafkaAdminClient(bootstrap_servers=shop.bootstrap)
    admin.delete_topics([shop.topic("clicks"), shop.topic("rejected")])
    shop.until(lambda: shop.topic("clicks") not in admin.list_topics())
    admin.close()
    worker = shop.worker()
    url = shop.url(worker)

    def told() -> Any:
        return ask(url).readiness

    names = f"{shop.topic('clicks')}, {shop.topic('rejected')}"
    shop.until(lambda: told() and told().state == f"waiting for topics: {names}")
    shop.create("clicks", "rejected")
    shop.publish(traffic(300, seed=15))
    shop.until(lambda: len(shop.scored()) > 600)
    shop.ends_well(worker)


@pytest.mark.parametrize("broker", ["kafka"], indirect=True)  # Tansu keeps its log in memory
def test_a_worker_stops_well_without_its_broker_and_the_next_does_the_rest(shop: Shop, broker: Broker) -> None:
    log = traffic(600, seed=16)
    shop.publish(log[:700])
    worker = shop.worker()
    shop.until(lambda: len(shop.scored()) > 300)
    shop.publish(log[700:])
    shop.hang_up()
    broker.kill()
    shop.stop(worker)
    broker.start()
    shop.ends_well(shop.worker())


@pytest.mark.parametrize("broker", ["kafka"], indirect=True)  # Tansu keeps its log in memory
def test_a_broker_that_goes_while_partitions_are_opened_is_waited_for(shop: Shop, broker: Broker) -> None:
    log = traffic(900, seed=17)
    shop.publish(log[:900])
    first = shop.worker()
    shop.until(lambda: len(shop.scored()) > 300)
    shop.stop(first)
    shop.publish(log[900:])
    shop.hang_up()
    second = shop.worker()
    url = shop.url(second)
    shop.until(lambda: (said := ask(url).readiness) and said.held)
    broker.kill()
    shop.until(lambda: (said := ask(url).readiness) and said.error)
    broker.start()
    shop.ends_well(second)
