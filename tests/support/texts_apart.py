"""A live teacher that reads texts apart, and a desk that asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.score.requests import Answer
from tests.support.requests import LATE, TEMPLATE, Clock, items, place, slate


class Apart:
    """Scores a pair by the lengths of its texts, at once those that it has read; "nan" is no number."""

    def __init__(self, version: str = "v1@0") -> None:
        self.version = version
        self.read: set[str] = set()
        self.read_ahead: tuple[str, ...] = ()
        self.asked: list[Pair] = []

    def score(self, pairs: Sequence[Pair]) -> Answer:
        self.asked += pairs
        self.read.update(text for pair in pairs for text in pair)
        return Answer(self.version, TEMPLATE, self.at_once(pairs), self.at_once, self.read_ahead)

    def look(self) -> Answer | None:
        return None

    def at_once(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        return [said(pair) if self.read.issuperset(pair) and "nan" not in pair else None for pair in pairs]


def said(pair: Pair) -> Logits:
    return Logits(100 * len(pair.query) + len(pair.item), -len(pair.query))


class Shop:
    """A desk with its teacher and its partition, and a stream that is as far as the wall clock less its lateness."""

    def __init__(self, **more: Any) -> None:
        self.clock, self.teacher = Clock(), Apart()
        self.desk, self.reference = place(self.clock, **more)

    def show(self, request: str, at: int, texts: str, query: str = "shoe") -> list[tuple[str, bool]]:
        self.clock.ms = max(self.clock.ms, at + LATE)
        return items(self.reference.on_time(slate(request, at, texts, query)))

    def leave(self, request: str) -> list[tuple[str, bool]]:
        return items(self.reference.by_now(request))

    def score(self) -> None:
        taken = self.desk.take(1_000, 0.0)
        if taken:
            self.desk.answer(taken, self.teacher.score([asked.pair for asked in taken]))
