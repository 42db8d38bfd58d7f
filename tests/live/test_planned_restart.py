"""A worker is stopped under steady traffic and comes back: no label is late that a replay of the topics has in time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from uuid import uuid4

import pytest

from heft.stream.events.wire import Event
from heft.stream.kafka.local_broker import running_broker
from heft.stream.learn.learner import Learner
from tests.support.builders import HOUR, SECOND, T0, action, click, impression, order
from tests.support.live import Shop
from tests.support.live_traffic import closing

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
LATENESS = 2 * SECOND
STEP = 50
"""Milliseconds between slates."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with running_broker("tansu") as bootstrap:
        shop = Shop(
            bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", session="3s",
            lateness_ms=LATENESS, click_window_ms=20 * SECOND, conversion_window_ms=60 * SECOND,
        )  # fmt: skip
        yield shop
        shop.close()


def steady(seconds: int, seed: int) -> list[Event]:
    """Slates all the time, clicks of many, now and then an order or an action, in the order they happen."""
    chance, log = random.Random(seed), list[Event]()
    for n, at in enumerate(range(0, seconds * SECOND, STEP)):
        user = f"u{n % 97}"
        log.append(impression(f"r{n}", user, at))
        if chance.random() < 0.5:
            log.append(click(f"r{n}", chance.choice("abc"), user, at + chance.randrange(100, 8 * SECOND)))
        if n % 40 == 0:
            log.append(action("a", user, at))
        if n % 100 == 0:
            log.append(order(f"o{n}", "a", user, at + 1))
    return sorted(log, key=lambda event: event.at_ms)


class Traffic:
    """Publishes a log at the pace at which it happens, from now on."""

    def __init__(self, shop: Shop, log: list[Event]) -> None:
        self._shop, self._log, self._sent = shop, log, 0
        self._began = time.monotonic()

    def go_on(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            happened = T0 + (now - self._began) * SECOND
            ready = list(takewhile(lambda event: event.at_ms <= happened, self._log[self._sent :]))  # noqa: B023
            self._shop.publish(ready)
            self._sent += len(ready)
            time.sleep(0.2)

    def end(self) -> None:
        """Publish the rest, and what moves every watermark past it."""
        self._shop.publish([*self._log[self._sent :], *closing(HOUR)])


def test_no_label_is_late_after_a_planned_restart(shop: Shop) -> None:
    traffic = Traffic(shop, steady(30, seed=15))
    first = shop.worker()
    traffic.go_on(8)
    shop.until(lambda: len(shop.scored()) > 40)
    shop.stop(first)
    traffic.go_on(9)
    second = shop.worker()
    traffic.go_on(2)
    traffic.end()
    expected, alone = shop.undisturbed(), Learner(shop.config.learner)
    for record in expected:
        alone.apply(0, record)
    shop.until(shop.joined_all)
    shop.ends_well(second)
    late = {kind: fates["late"] for kind, fates in shop.joiner().fates.items() if fates["late"]}
    assert late == {}
    assert shop.scored() == expected
    assert shop.learned().digest() == alone.digest()
