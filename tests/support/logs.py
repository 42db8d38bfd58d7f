"""A log to learn from, as events and as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from heft.stream.events.log import open_log
from heft.stream.events.wire import Event, encode
from tests.support.builders import MINUTE, SECOND, click, impression, order


def traffic(requests: int, seed: int = 7) -> list[Event]:
    """A log in which item `a` is clicked more often than the others, and bought."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for n in range(requests):
        at, user = n * 20 * SECOND, f"u{rng.integers(20)}"
        events.append(impression(f"r{seed}-{n:04d}", user, at, rng.permutation(list("abcdef"))[:4].tolist()))
        for item in "abcdef":
            if rng.random() < (0.4 if item == "a" else 0.05):
                events.append(click(f"r{seed}-{n:04d}", item, user, at + 5 * SECOND))
                if rng.random() < 0.3:
                    events.append(order(f"o{seed}-{n}{item}", item, user, at + MINUTE))
    return sorted(events, key=lambda event: event.at_ms)


def written(path: Path, events: list[Event]) -> Path:
    with open_log(path, "wb") as log:
        for event in events:
            log.write(encode(event) + b"\n")
    return path
