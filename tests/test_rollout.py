"""Two versions of a teacher in a live worker: the new one scores in shadow until learners know it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from heft.models.records import ReferenceScore
from heft.models.teacher.template import Pair
from heft.stream.score import rollout as desks
from heft.stream.score.requests import Answer, LiveSource, ScoreRequests, ScoringThread
from heft.stream.score.rollout import ShadowRollout
from tests.support.builders import MINUTE, SECOND
from tests.support.requests import DELAY, LATE, TEMPLATE, Clock, said, slate

LABELS_AFTER = 5 * MINUTE


class Version:
    """A teacher of one version."""

    def __init__(self, version: str) -> None:
        self.version = version

    def score(self, pairs: Sequence[Pair]) -> Answer:
        return Answer(self.version, TEMPLATE, [said(pair) for pair in pairs])

    def look(self) -> Answer | None:
        return None


class Worker:
    """What a worker has of a teacher, its threads stepped by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.first = self.thread("v1@0")
        self.desks = ShadowRollout(self.first, LABELS_AFTER)
        self.reference = LiveSource(self.desks.at, DELAY, 10 * MINUTE)
        self.slates = 0

    def thread(self, version: str) -> ScoringThread:
        thread = ScoringThread(
            ScoreRequests(TEMPLATE, self.clock.clocks(), lateness_ms=LATE), lambda: Version(version), 10, 0.0
        )
        thread.start = lambda: None  # type: ignore[method-assign]
        return thread

    def show(self, at: int, texts: str = "a b") -> list[ReferenceScore]:
        self.slates += 1
        self.clock.ms = at
        return self.reference.on_time(slate(f"r{self.slates}", at, texts))

    def score(self, *threads: ScoringThread) -> None:
        for thread in threads:
            assert thread.connect()
            if taken := thread.desk.take(1_000, 0.0):
                assert thread.step(taken)


def by_version(scores: Sequence[ReferenceScore]) -> list[tuple[str, str, bool]]:
    return [(score.version, score.item_id, score.on_time) for score in scores]


def test_a_slate_brings_the_scores_of_both_versions_the_old_one_s_in_time() -> None:
    worker = Worker()
    worker.show(0)
    worker.score(worker.first)
    newer = worker.thread("v2@0")
    assert worker.desks.begin(newer)
    later = LATE + DELAY + SECOND
    assert by_version(worker.show(later)) == [("v1@0", "a", True), ("v1@0", "b", True)]
    worker.score(newer)
    assert by_version(worker.reference.by_now("r2")) == [("v2@0", "a", False), ("v2@0", "b", False)]
    both = by_version(worker.show(2 * later + SECOND))
    assert both == [(version, item, True) for version in ("v1@0", "v2@0") for item in "ab"]


def test_the_old_version_is_asked_until_the_labels_of_what_the_new_one_scored_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desks, "SHADOW_ITEMS", 6)
    worker = Worker()
    newer = worker.thread("v2@0")
    worker.show(0)
    worker.desks.begin(newer)
    for second in range(1, 5):
        worker.show(second * SECOND)
        worker.score(worker.first, newer)
    enough = 4 * SECOND  # six items had been asked for by then
    assert [desk.version for desk in worker.desks.at(0)] == ["v1@0", "v2@0"]
    worker.show(enough + LABELS_AFTER)
    assert worker.desks.current.version == "v1@0"
    asked = worker.first.desk.counts["asked"]
    worker.show(enough + LABELS_AFTER + 1)
    assert worker.desks.current.version == "v2@0"
    assert [desk.version for desk in worker.desks.at(0)] == ["v2@0"]
    assert worker.desks.current.counts["asked"] == asked + 2, "a counter never falls"


def test_a_slate_that_waits_for_the_old_version_still_gets_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "SHADOW_ITEMS", 0)
    worker = Worker()
    worker.show(0, "x")
    newer = worker.thread("v2@0")
    worker.desks.begin(newer)
    worker.show(SECOND, "y")
    worker.show(LABELS_AFTER + 2 * SECOND, "z")
    assert worker.desks.current is newer.desk
    worker.score(worker.first, newer)
    assert by_version(worker.reference.by_now("r2")) == [("v1@0", "y", False), ("v2@0", "y", False)]
    assert by_version(worker.reference.by_now("r3")) == [("v2@0", "z", False)]


def test_a_third_version_waits_until_the_second_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "SHADOW_ITEMS", 0)
    worker = Worker()
    assert worker.desks.begin(worker.thread("v2@0"))
    third = worker.thread("v3@0")
    assert not worker.desks.begin(third)
    worker.show(SECOND)
    worker.show(LABELS_AFTER + 2 * SECOND)
    assert worker.desks.begin(third)


def test_who_no_longer_scores_has_been_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "SHADOW_ITEMS", 0)
    worker = Worker()
    newer = worker.thread("v2@0")
    worker.desks.begin(newer)
    worker.show(SECOND)
    worker.show(LABELS_AFTER + 2 * SECOND)
    assert [thread._stopping.is_set() for thread in (worker.first, newer)] == [True, False]
    worker.desks.stop()
    assert newer._stopping.is_set()
