"""Two versions of a teacher in a live worker: the new one scores beside the old one until learners know it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from heft.models.records import ReferenceScore
from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.template import Pair
from heft.stream.score import rollout
from heft.stream.score.live_source import LiveSource
from heft.stream.score.requests import ScoreRequests
from heft.stream.score.rollout import ShadowRollout
from heft.stream.score.scoring_thread import ScoringThread
from heft.stream.score.teacher import Answer
from tests.support.builders import MINUTE, SECOND
from tests.support.requests import DELAY, LATE, TEMPLATE, Clock, logits_of, slate

LABELS_AFTER = 5 * MINUTE


class Version:
    """A teacher that is always of one version."""

    def __init__(self, version: str) -> None:
        self.version = version

    def score(self, pairs: Sequence[Pair]) -> Answer:
        return Answer(TeacherDescription(self.version, TEMPLATE), [logits_of(pair) for pair in pairs])

    def look(self) -> Answer | None:
        return None


class Worker:
    """The versions of a worker's teacher, whose threads are stepped by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.first = self.thread("v1@0")
        self.rollout = ShadowRollout(self.first, LABELS_AFTER)
        self.source = LiveSource(self.rollout.at, DELAY, 10 * MINUTE)
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
        return self.source.on_time(slate(f"r{self.slates}", at, texts))

    def score(self, *threads: ScoringThread) -> None:
        for thread in threads:
            assert thread.connect()
            if taken := thread.requests.take(1_000, 0.0):
                assert thread.step(taken)


def by_version(scores: Sequence[ReferenceScore]) -> list[tuple[str, str, bool]]:
    return [(score.version, score.item_id, score.on_time) for score in scores]


def test_a_slate_brings_the_scores_of_both_versions_those_of_the_old_one_on_time() -> None:
    worker = Worker()
    worker.show(0)
    worker.score(worker.first)
    newer = worker.thread("v2@0")
    assert worker.rollout.begin(newer)
    later = LATE + DELAY + SECOND
    assert by_version(worker.show(later)) == [("v1@0", "a", True), ("v1@0", "b", True)]
    worker.score(newer)
    assert by_version(worker.source.by_now("r2")) == [("v2@0", "a", False), ("v2@0", "b", False)]
    both = by_version(worker.show(2 * later + SECOND))
    assert both == [(version, item, True) for version in ("v1@0", "v2@0") for item in "ab"]


def test_the_old_version_is_asked_until_the_labels_of_what_the_new_one_scored_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout, "SHADOW_ITEMS", 6)
    worker = Worker()
    newer = worker.thread("v2@0")
    worker.show(0)
    worker.rollout.begin(newer)
    for second in range(1, 5):
        worker.show(second * SECOND)
        worker.score(worker.first, newer)
    enough = 4 * SECOND  # six items had been asked for by then
    assert [requests.version for requests in worker.rollout.at(0)] == ["v1@0", "v2@0"]
    worker.show(enough + LABELS_AFTER)
    assert worker.rollout.current.version == "v1@0"
    worker.show(enough + LABELS_AFTER + 1)
    assert worker.rollout.current.version == "v2@0"
    assert [requests.version for requests in worker.rollout.at(0)] == ["v2@0"]


def test_a_slate_that_waits_for_the_old_version_still_gets_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "SHADOW_ITEMS", 0)
    worker = Worker()
    worker.show(0, "x")
    newer = worker.thread("v2@0")
    worker.rollout.begin(newer)
    worker.show(SECOND, "y")
    worker.show(LABELS_AFTER + 2 * SECOND, "z")
    assert worker.rollout.current is newer.requests
    worker.score(worker.first, newer)
    assert by_version(worker.source.by_now("r2")) == [("v1@0", "y", False), ("v2@0", "y", False)]
    assert by_version(worker.source.by_now("r3")) == [("v2@0", "z", False)]


def test_what_both_versions_count_is_summed_and_no_sum_falls_when_the_new_one_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout, "SHADOW_ITEMS", 0)
    worker = Worker()
    newer = worker.thread("v2@0")
    worker.show(0)
    worker.rollout.begin(newer)
    worker.show(SECOND)
    worker.score(worker.first, newer)
    assert worker.rollout.counts().pairs == Counter({"asked": 6, "hits": 2, "scored": 4})
    assert worker.rollout.waiting() == 0
    worker.show(2 * SECOND, "nan")
    assert worker.rollout.waiting() == 2
    before = worker.rollout.counts()
    worker.show(LABELS_AFTER + 3 * SECOND)
    assert worker.rollout.current is newer.requests
    after = worker.rollout.counts()
    assert after.pairs == before.pairs + Counter({"asked": 2, "hits": 2})


def test_what_the_old_version_counts_after_the_new_one_took_over_is_in_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "SHADOW_ITEMS", 0)
    worker = Worker()
    newer = worker.thread("v2@0")
    worker.rollout.begin(newer)
    worker.show(0, "x y")
    worker.show(LABELS_AFTER + SECOND, "z")
    worker.score(newer)
    assert by_version(worker.source.by_now("r1")) == [("v2@0", "x", False), ("v2@0", "y", False)]
    assert worker.rollout.counts().missing == Counter({"waiting": 2}), "slates still waited for the old version"


def test_a_third_version_waits_until_the_second_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "SHADOW_ITEMS", 0)
    worker = Worker()
    assert worker.rollout.begin(worker.thread("v2@0"))
    third = worker.thread("v3@0")
    assert not worker.rollout.begin(third)
    worker.show(SECOND)
    worker.show(LABELS_AFTER + 2 * SECOND)
    assert worker.rollout.begin(third)


def test_the_thread_of_a_version_that_is_asked_no_more_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "SHADOW_ITEMS", 0)
    worker = Worker()
    newer = worker.thread("v2@0")
    worker.rollout.begin(newer)
    worker.show(SECOND)
    worker.show(LABELS_AFTER + 2 * SECOND)
    assert [thread._stopping.is_set() for thread in (worker.first, newer)] == [True, False]
    worker.rollout.stop()
    assert newer._stopping.is_set()
