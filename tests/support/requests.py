"""Requests to a teacher with a clock that is set by hand, and slates that ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from heft.models.records import ReferenceScore, Slate
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.score.live_source import LiveSource
from heft.stream.score.requests import Clocks, ScoreRequests
from tests.support.builders import MINUTE, SECOND, T0, impression

TEMPLATE = "{query} | {item.text}"
LATE = 10 * SECOND  # the stream is behind the shop
DELAY = 2 * SECOND


class Clock:
    """Wall time in milliseconds after T0, set by hand."""

    def __init__(self) -> None:
        self.ms = 0

    def clocks(self) -> Clocks:
        return Clocks(lambda: T0 + self.ms, lambda: self.ms / 1000)


def slate(request: str, at: int, texts: str = "a b", query: str = "shoe") -> Slate:
    shown = impression(request, at=at, items=texts.split(), query=query)
    items = [msgspec.structs.replace(item, text=item.item_id) for item in shown.items]
    return msgspec.structs.replace(shown, items=items)


def logits_of(pair: Pair) -> Logits | None:
    """The length of the item's text; "nan" has no score."""
    return None if pair.item == "nan" else Logits(len(pair.item))


def place(clock: Clock | None = None, **more: Any) -> tuple[ScoreRequests, LiveSource]:
    requests = ScoreRequests(TEMPLATE, (clock or Clock()).clocks(), lateness_ms=LATE, **more)
    return requests, LiveSource(lambda _: (requests,), DELAY, 10 * MINUTE)


def items(scores: Sequence[ReferenceScore]) -> list[tuple[str, bool]]:
    return [(score.item_id, score.on_time) for score in scores]
