"""A topic that no longer holds what a stage goes on from: named, and the end, unless the loss is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import NewPartitions

from heft.stream.events import messages
from heft.stream.kafka.local_broker import Broker, kafka_available
from tests.support.builders import HOUR
from tests.support.live import NEVER_IDLE, Shop
from tests.support.live_traffic import closing, traffic

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    if not kafka_available():
        pytest.skip("Apache Kafka is not to be had: no Java, or no Maven. Tansu deletes no records")
    broker = Broker("kafka")
    broker.start()
    yield broker
    broker.close()


@pytest.fixture
def shop(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    more = {"idle_after_ms": NEVER_IDLE, "session": "3s"} | getattr(request, "param", {})
    shop = Shop(broker.bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", **more)
    yield shop
    shop.close()


def lived(shop: Shop) -> None:
    """A worker has joined and learned, in several messages, and stopped well."""
    worker = shop.worker()
    for log in (traffic(300, seed=1), closing(31 * HOUR, "a"), closing(32 * HOUR, "b"), closing(33 * HOUR, "c")):
        before = len(shop.scored())
        shop.publish(log)
        shop.until(lambda before=before: len(shop.scored()) > before)  # type: ignore[misc]
    shop.stop(worker)


def runs_ahead(shop: Shop, short: str, *stages: str) -> None:
    """These stages work, and the ones behind them do not."""
    worker, before = shop.worker(*stages), len(shop.read(short))
    shop.until(lambda: any(messages.decode(raw).records for raw in shop.read(short)[before:]))
    shop.stop(worker)


def delete_records(shop: Shop, short: str, before: int) -> None:
    """What retention does."""
    admin = KafkaAdminClient(bootstrap_servers=shop.bootstrap)
    admin.delete_records({TopicPartition(shop.topic(short), 0): before})
    admin.close()


def goes_on(shop: Shop, short: str) -> None:
    """With the loss accepted a worker joins and learns what comes, and counts what did not."""
    worker = shop.worker(accept_loss=True)
    before = shop.learned().samples
    for day in (40, 50):
        shop.publish(closing(day * HOUR, f"day{day}-"))
    shop.until(lambda: shop.learned().samples > before)
    scraped = shop.until(lambda: shop.scraped(worker))
    lost = [name for name, n in scraped.items() if name.startswith(("heft_lost_records", "heft_gaps")) and n]
    assert any(f'topic="{shop.topic(short)}"' in name for name in lost)
    assert "loss accepted" in shop.said()
    shop.stop(worker)
    # The next worker has nothing to accept.
    worker, before = shop.worker(), shop.learned().samples
    for day in (60, 70):
        shop.publish(closing(day * HOUR, f"day{day}-"))
    shop.until(lambda: shop.learned().samples > before)
    shop.stop(worker)


@pytest.mark.parametrize("short", ["clicks", "samples", "scored"])
def test_offsets_that_retention_took_are_named(shop: Shop, short: str) -> None:
    lived(shop)
    shop.publish(closing(35 * HOUR, "unread"))
    if short == "samples":
        runs_ahead(shop, short, "join")
    if short == "scored":
        runs_ahead(shop, short, "join", "score")
    delete_records(shop, short, len(shop.published["clicks"][0] if short == "clicks" else shop.read(short)))
    said = shop.ends_with_an_error(shop.worker())
    assert f"{shop.topic(short)}-0: expected to go on at offset" in said
    assert "retention has deleted what lies between" in said
    goes_on(shop, short)


@pytest.mark.parametrize("short", ["clicks", "scored"])
def test_a_topic_made_anew_is_named(shop: Shop, short: str) -> None:
    lived(shop)
    old = list(shop.published["clicks"][0])
    shop.make_anew(short)
    if short == "clicks":
        shop.publish([(short, raw) for raw in reversed(old)])
    said = shop.ends_with_an_error(shop.worker())
    assert f"{shop.topic(short)}-0" in said
    assert "made anew" in said
    goes_on(shop, short)


def test_a_changed_number_of_partitions_is_named(shop: Shop) -> None:
    lived(shop)
    admin = KafkaAdminClient(bootstrap_servers=shop.bootstrap)
    admin.create_partitions({shop.topic(t): NewPartitions(2) for t in ("impressions", "clicks", "orders", "actions")})
    admin.close()
    said = shop.ends_with_an_error(shop.worker())
    assert "had 1 partitions, now it has 2" in said


def without_records(shop: Shop) -> list[bytes]:
    """A copy of `scored` from which a message in the middle is cut."""
    raw = shop.read("scored")
    middle = [n for n, each in enumerate(raw) if messages.decode(each).records][1]
    return raw[:middle] + raw[middle + 1 :]


def without_marker(shop: Shop) -> list[bytes]:
    """A copy of `scored` that begins after what announces the writer."""
    return shop.read("scored")[1:]


@pytest.mark.parametrize("cut", [without_records, without_marker])
def test_a_gap_in_a_copy_of_the_log_is_named(shop: Shop, cut: Callable[[Shop], list[bytes]]) -> None:
    lived(shop)
    copy = cut(shop)
    shop.make_anew("scored")
    shop.append("scored", *copy)
    for snapshot in (shop.folder / "snapshots" / "learn-0").iterdir():
        snapshot.unlink()
    said = shop.ends_with_an_error(shop.worker("learn"))
    assert f"{shop.topic('scored')}-0 at offset" in said
    assert "missing from the topic" in said
    worker = shop.worker("learn", accept_loss=True)
    shop.until(lambda: shop.latest("learn-0")[0].get("offset") == len(copy))
    gap = f'heft_gaps_total{{partition="0",topic="{shop.topic("scored")}"}}'
    assert shop.until(lambda: shop.scraped(worker)).get(gap) == 1
    assert shop.learned().samples > 0
    shop.stop(worker)
