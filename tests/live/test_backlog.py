"""Partitions that have a backlog advance together in event time, so that it is learned in order and measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from heft.stream.kafka.local_broker import running_broker
from tests.support.live import NEVER_IDLE, Shop
from tests.support.live_traffic import traffic

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
SLATES = 3000


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with running_broker("tansu") as bootstrap:
        shop = Shop(
            bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", partitions=4, session="3s", idle_after_ms=NEVER_IDLE
        )
        yield shop
        shop.close()


@pytest.mark.parametrize("stages", [("join", "score", "learn"), ("score", "learn")], ids=["all", "after the join"])
def test_a_backlog_of_several_partitions_is_learned_in_order(shop: Shop, stages: tuple[str, ...]) -> None:
    shop.publish(traffic(SLATES, seed=16))
    if "join" not in stages:
        alone = shop.worker("join")
        shop.until(shop.joined_all, 120)
        shop.stop(alone)
    worker = shop.worker(*stages)
    shop.until(shop.joined_all, 120)
    shop.until(lambda: all(shop.scored(n) == shop.pure(n) for n in range(4)), 120)
    shop.until(lambda: shop.latest("learn-0")[0].get("offset") == len(shop.read("scored")), 120)
    shop.stop(worker)
    learner = shop.learned()
    assert learner.digest() == shop.relearned()
    assert learner.counts["shown_out_of_order"] <= SLATES // 100
