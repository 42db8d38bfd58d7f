"""How long after a click people order: within minutes, the same day, or only the next."""

from __future__ import annotations

import math

from numpy.random import Generator

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000

_ORDER_DELAYS = ((0.70, MINUTE, 15 * MINUTE), (0.92, 10 * MINUTE, 4 * HOUR), (1.0, 20 * HOUR, 30 * HOUR))
"""Up to which share of orders, the least delay after the click, and the mean of what exponentially comes on top."""


def order_delay(rng: Generator) -> int:
    """Draw how long after its click an order comes, in ms: minutes for most, days for some."""
    draw = rng.random()
    for share, least, mean in _ORDER_DELAYS:
        if draw < share:
            return least + int(mean * exponential(rng))
    return _ORDER_DELAYS[-1][1]


def within(window_ms: int) -> float:
    """Return the share of orders that come within a window of their click, as `order_delay` draws them."""
    total = before = 0.0
    for share, least, mean in _ORDER_DELAYS:
        total += (share - before) * max(0.0, 1.0 - math.exp(-(window_ms - least) / mean))
        before = share
    return total


def exponential(rng: Generator) -> float:
    """Draw from the exponential distribution of mean 1."""
    return -math.log(1.0 - rng.random())
