"""Records that are no events, or mean harm: rejected with their place and why, and the stream goes on."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from heft.stream.events import wire
from heft.stream.kafka.local_broker import Broker
from tests.support.builders import DAY, MINUTE, SECOND, T0, click, impression
from tests.support.live import NEVER_IDLE, Shop
from tests.support.live_traffic import closing, traffic

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

MEGABYTE = 1_000_000


def random_text(size: int) -> str:
    """Text that does not get shorter when compressed."""
    return base64.b64encode(random.Random(1).randbytes(size * 3 // 4)).decode()


BAD = {
    "broken UTF-8": ("clicks", b'{"type":"click","request_id":"\xff\xfe"}', "$"),
    "no JSON": ("orders", b"\x00\x01\x02", "$"),
    "nothing": ("actions", b"", "$"),
    "a wrong type": ("clicks", wire.encode(click()).replace(b'"u1"', b"17"), "`$.user_id`"),
    "seconds for milliseconds": (
        "clicks",
        wire.encode(click()).replace(b"1600000001000", b"1600000001"),
        "`$.at_ms`",
    ),
    "NaN": (
        "orders",
        b'{"type":"order","order_id":"o","user_id":"u","item_id":"a","at_ms":1600000000000,"value":NaN}',
        "$",
    ),
    "an unknown type": ("actions", b'{"type":"refund","user_id":"u1","at_ms":1600000000000}', "`$.type`"),
    "a list of 5,000 items": (
        "impressions",
        wire.encode(impression("many", items=[f"i{n}" for n in range(5000)])),
        "`$.items`",
    ),
    "10 MB of text": ("impressions", b" " * (10 * MEGABYTE), "`$`"),
    "10 MB of zeros": ("clicks", bytes(10 * MEGABYTE), "`$`"),
    "an event of 10 MB": (
        "impressions",
        wire.encode(msgspec.structs.replace(impression("huge"), query="q" * 10 * MEGABYTE)),
        "`$`",
    ),
    "more than a message can carry": (
        "impressions",
        wire.encode(msgspec.structs.replace(impression("long"), query=random_text(2 * MEGABYTE))),
        "when compressed",
    ),
}


@pytest.fixture
def shop(broker: Broker, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(
        broker.bootstrap,
        tmp_path,
        f"shop-{uuid4().hex[:8]}",
        session="3s",
        message_bytes=16 * MEGABYTE,
        idle_after_ms=NEVER_IDLE,
    )
    yield shop
    shop.close()


def test_what_is_no_event_is_rejected_with_its_place_and_the_rest_is_learned(shop: Shop) -> None:
    good = traffic(300, seed=12)
    shop.publish(good[:300])
    for topic, raw, _ in BAD.values():
        shop.publish([(topic, raw)])
    shop.publish(good[300:])
    worker = shop.worker()
    shop.until(lambda: len(shop.read("rejected")) >= len(BAD), 90)
    invalid = 'heft_events_total{fate="invalid",partition="0",type="unknown"}'
    shop.until(lambda: shop.scraped(worker).get(invalid) == len(BAD))
    shop.ends_well(worker)
    rejected = {(each["topic"], each["offset"]): each for each in map(json.loads, shop.read("rejected"))}
    assert len(rejected) == len(BAD)
    for what, (topic, raw, path) in BAD.items():
        each = rejected[shop.topic(topic), shop.published[topic][0].index(raw)]
        assert path in each["reason"], what
        assert each["partition"] == 0
        assert each["bytes"] == len(raw)
        assert each["blake2b"] == blake2b(raw, digest_size=16).hexdigest()
        kept = each["raw"].encode() if "raw" in each else base64.b64decode(each["raw_base64"])
        assert kept == raw[: 64 * 1024], what
    assert shop.joiner().fates["unknown"]["invalid"] == len(BAD)
    assert shop.learned().samples >= 3 * 300, "all good slates but the last five have closed"


@pytest.mark.parametrize("broker", ["tansu"], indirect=True)  # which broker there is makes no difference to it
def test_a_click_on_a_list_nobody_saw_is_an_orphan_and_no_error(shop: Shop) -> None:
    strays = [click(f"stray{n}", "a", "u1", n * SECOND) for n in range(30)]
    shop.publish(strays)
    shop.publish(traffic(100, seed=13))
    shop.ends_well(shop.worker())
    assert shop.joiner().fates["click"]["orphan"] >= 30
    assert shop.read("rejected") == []


@pytest.mark.parametrize("broker", ["tansu"], indirect=True)  # which broker there is makes no difference to it
def test_one_clock_a_year_ahead_closes_nobodys_window(shop: Shop) -> None:
    """One visitor's clock is wrong in every topic: windows stay open, and at last these events are invalid."""
    ahead = closing(365 * DAY, "future")[:4]
    shop.publish([impression("r1", "u1"), *closing(5 * SECOND, "early"), *ahead])
    worker = shop.worker()
    shop.until(lambda: shop.scraped(worker).get('heft_join_open_slates{partition="0"}', 0) or shop.joined_all(), 60)
    shop.publish([click("r1", "a", "u1", MINUTE), *closing(2 * MINUTE, "then"), *closing(30 * MINUTE, "late")])
    shop.publish(closing(45 * MINUTE, "last"))
    shop.ends_well(worker)
    clicked = [record for record in shop.scored() if record.key[1] == 1]
    assert [record.due_ms for record in clicked] == [T0 + MINUTE], "the window was still open"
    assert shop.joiner().pending >= len(ahead), "what is too far ahead waits"
