"""A worker whose state takes a while to load comes back within one session of its group, however short that is."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from kafka import KafkaConsumer, TopicPartition

from heft.stream.kafka.local_broker import kafka_available, running_broker
from tests.support.builders import HOUR, MINUTE, impression
from tests.support.live import INPUTS, NEVER_IDLE, Shop
from tests.support.live_traffic import closing

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
SLATES = 20_000


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with running_broker("kafka" if kafka_available() else "tansu") as bootstrap:
        shop = Shop(
            bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", interval="5s", session="6s", idle_after_ms=NEVER_IDLE
        )
        yield shop
        shop.close()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def all_taken(shop: Shop) -> None:
    """What the group has committed says, soon and whatever snapshots there are, that nothing is left to take."""
    consumer = KafkaConsumer(bootstrap_servers=shop.bootstrap, group_id=shop.name, enable_auto_commit=False)
    tps = [TopicPartition(shop.topic(topic), 0) for topic in (*INPUTS, "samples", "scored")]
    shop.until(lambda: [consumer.committed(tp) for tp in tps] == [consumer.end_offsets([tp])[tp] for tp in tps])
    consumer.close()


def test_twenty_thousand_open_slates_come_back_in_one_assignment(shop: Shop) -> None:
    """Slates 20 ms apart, all within one click window; the topics' last records move every watermark past them."""
    shop.publish(
        [impression(f"r{n}", f"u{n % 997}", n * 20, [f"i{n % 5000}-{row}" for row in range(8)]) for n in range(SLATES)]
    )
    shop.publish(closing(SLATES * 20 + MINUTE, "now"))
    first = shop.worker()
    gauge = 'heft_learner_open_slates{shard="0"}'
    shop.until(lambda: shop.scraped(first).get(gauge, 0.0) >= SLATES, 120)
    all_taken(shop)
    shop.stop(first)
    second = shop.worker()
    url = shop.url(second)
    shop.until(lambda: is_ready(url))
    back = shop.scraped(second)
    assert back[gauge] >= SLATES
    assert back["heft_rebalances_total"] == 1.0
    shop.publish(closing(2 * HOUR, "later"))
    shop.until(lambda: shop.scraped(second)[gauge] < SLATES, 120)
    assert shop.scraped(second)["heft_rebalances_total"] == 1.0
    shop.stop(second)
