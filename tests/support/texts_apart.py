"""A live teacher that reads texts apart, and slates of a shop that ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.score.teacher import Answer
from tests.support.requests import LATE, TEMPLATE, Clock, items, place, slate


class Apart:
    """Scores a pair by the lengths of its texts, at once if it has read both; "nan" has no score."""

    def __init__(self, version: str = "v1@0") -> None:
        self.version = version
        self.read: set[str] = set()
        self.read_ahead: tuple[str, ...] = ()
        self.asked: list[Pair] = []

    def score(self, pairs: Sequence[Pair]) -> Answer:
        self.asked += pairs
        self.read.update(text for pair in pairs for text in pair)
        teacher = TeacherDescription(self.version, TEMPLATE, apart=True, read_ahead=self.read_ahead)
        return Answer(teacher, self.at_once(pairs), self.at_once)

    def look(self) -> Answer | None:
        return None

    def at_once(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        return [logits_of(pair) if self.read.issuperset(pair) and "nan" not in pair else None for pair in pairs]


def logits_of(pair: Pair) -> Logits:
    return Logits(100 * len(pair.query) + len(pair.item), -len(pair.query))


class Shop:
    """One partition and its teacher; the stream is always ``LATE`` behind the wall clock."""

    def __init__(self, **more: Any) -> None:
        self.clock, self.teacher = Clock(), Apart()
        self.requests, self.source = place(self.clock, **more)

    def show(self, request: str, at: int, texts: str, query: str = "shoe") -> list[tuple[str, bool]]:
        self.clock.ms = max(self.clock.ms, at + LATE)
        return items(self.source.on_time(slate(request, at, texts, query)))

    def leave(self, request: str) -> list[tuple[str, bool]]:
        return items(self.source.by_now(request))

    def score(self) -> None:
        taken = self.requests.take(1_000, 0.0)
        if taken:
            self.requests.answer(taken, self.teacher.score([request.pair for request in taken]))
