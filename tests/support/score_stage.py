"""The score stage of a replay with a teacher of made-up scores, and the records that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from heft.models.records import Closed, Record, Shown
from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits, wire_version
from heft.models.teacher.template import Pair
from heft.stream.score.replay_source import PairScores, ReplaySource
from heft.stream.score.scorer import Scorer
from tests.support.builders import MINUTE, T0, impression

VERSION = wire_version("v1", 0)
TEACHER = TeacherDescription(VERSION, "{query} | {item.name}")


class Teacher:
    """Scores a pair by the length of its texts; remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Pair]] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        self.batches.append(list(pairs))
        return [None if "nan" in pair.item else logits_of(pair) for pair in pairs]


def logits_of(pair: Pair) -> Logits:
    return Logits(100 * len(pair.query) + len(pair.item), -len(pair.item))


def shown(request: str, at: int, names: str = "a b", query: str = "shoe") -> Shown:
    """A slate shown ``at`` milliseconds after T0, whose items have these names."""
    slate = impression(request, at=at, items=names.split(), query=query)
    items = [msgspec.structs.replace(item, features={"name": item.item_id * 3}) for item in slate.items]
    return Shown(slate.at_ms, msgspec.structs.replace(slate, items=items), [])


def closed(request: str, at: int) -> Closed:
    return Closed(T0 + at + 10 * MINUTE, request)


def scorer(teacher: Teacher, description: TeacherDescription = TEACHER, remembered: int = 1_000, **more: Any) -> Scorer:
    return Scorer(ReplaySource(PairScores(teacher, remembered), description, **more))


def scores(record: Record) -> list[tuple[str, bool]]:
    assert isinstance(record, Shown | Closed)
    return [(score.item_id, score.on_time) for score in record.scores]
