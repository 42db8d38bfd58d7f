"""What is published to live workers: traffic of every topic, and what moves every watermark in the end."""

from __future__ import annotations

import random

from heft.stream.events.wire import Event
from tests.support.builders import HOUR, MINUTE, SECOND, action, click, impression, order


def traffic(requests: int, seed: int) -> list[Event]:
    """Slates a second apart with clicks, orders and actions, then all topics far later."""
    chance = random.Random(seed)
    log: list[Event] = []
    for n in range(requests):
        request, user, at = f"r{n}", f"u{n % 97}", n * SECOND
        log.append(impression(request, user, at))
        if chance.random() < 0.4:
            log.append(click(request, chance.choice("abcx"), user, at + chance.randrange(1, 11 * MINUTE)))
        if chance.random() < 0.2:
            log.append(order(f"o{n}", chance.choice("abc"), user, at + chance.randrange(SECOND, HOUR)))
        if chance.random() < 0.3:
            log.append(action(chance.choice("abc"), user, at + chance.randrange(SECOND)))
    log.sort(key=lambda event: event.at_ms)
    return log + closing(30 * HOUR)


def closing(at: int, of: str = "last") -> list[Event]:
    """Acts of 24 users in each topic, at least five in each of up to four partitions: this moves every watermark."""
    log: list[Event] = []
    for n in range(24):
        user = f"{of}{n}"
        log += [impression(user, user, at), click(f"none-{user}", "a", user, at)]
        log += [order(user, "a", user, at), action("a", user, at)]
    return log
