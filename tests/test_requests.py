"""Reference scores in a live worker: who is asked first, what counts as on time, and what a bad teacher costs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.models.teacher.template import Pair
from heft.stream.score.queue import PairQueue, Request
from heft.stream.score.requests import Answer, ScoreRequests, ScorerTimeoutError, ScoringThread
from tests.support.builders import MINUTE, SECOND, T0
from tests.support.requests import DELAY, LATE, TEMPLATE, Clock, items, place, said, slate


def answer(taken: Sequence[Request], version: str = "v1@0", template: str = TEMPLATE) -> Answer:
    return Answer(version, template, [said(asked.pair) for asked in taken])


def score_all(desk: ScoreRequests) -> None:
    taken = desk.take(1_000, 0.0)
    desk.answer(taken, answer(taken))


# ---------------------------------------------------------------- the queue


def test_the_pair_that_most_slates_wait_for_goes_first_and_of_equals_the_one_that_came_first() -> None:
    queue = PairQueue(10)
    asked = [Request(Pair("q", text)) for text in "abcd"]
    for each in asked:
        queue.add(each)
    queue.revalue(asked[2], 3)
    queue.revalue(asked[3], 2)
    assert [each.pair.item for each in queue.take(3)] == ["c", "d", "a"]
    assert len(queue) == 1


def test_when_there_are_too_many_the_one_that_fewest_wait_for_and_that_came_last_goes() -> None:
    queue = PairQueue(2)
    first, second, third = (Request(Pair("q", text)) for text in "abc")
    assert queue.add(first) is queue.add(second) is None
    queue.revalue(first, 2)
    assert queue.add(third) is third
    third.slates = 2
    assert queue.add(third) is second


@given(st.lists(st.tuples(st.sampled_from("armt"), st.integers(0, 9)), max_size=60))
def test_the_queue_gives_what_sorting_would(steps: list[tuple[str, int]]) -> None:
    """Against a plain list: add, remove, one slate more, take."""
    queue, model = PairQueue(5), list[Request]()
    everyone = [Request(Pair("q", str(n))) for n in range(10)]
    for step, n in steps:
        asked = everyone[n]
        if step == "a" and asked not in model:
            asked.slates = 1
            model.append(asked)
            shed = queue.add(asked)
            if len(model) > 5:
                worst = [each for each in model if each.slates == min(other.slates for other in model)][-1]
                model.remove(worst)
                assert shed is worst
        elif step == "r":
            assert queue.remove(asked) == (asked in model)
            model = [each for each in model if each is not asked]
        elif step == "m" and asked in model:
            queue.revalue(asked, asked.slates + 1)
            model.remove(asked)
            model.append(asked)
        elif step == "t":
            expected = sorted(model, key=lambda each: -each.slates)[:2]
            assert queue.take(2) == expected
            model = [each for each in model if each not in expected]
        assert len(queue) == len(model)


# ---------------------------------------------------------------- the desk


def test_a_pair_is_scored_once_however_many_slates_show_it() -> None:
    desk, reference = place()
    for n in range(5):
        assert reference.on_time(slate(f"r{n}", n)) == []
    assert desk.waiting == 2
    score_all(desk)
    for n in range(5):
        assert items(reference.by_now(f"r{n}")) == [("a", False), ("b", False)]
    assert desk.counts == {"asked": 10, "hits": 8, "scored": 2}
    assert not desk.missing


def test_a_score_is_on_time_once_it_was_known_a_score_delay_before_the_slate_by_the_wall_clock() -> None:
    clock = Clock()
    desk, reference = place(clock)
    reference.on_time(slate("r1", 0))
    clock.ms = LATE + 5 * SECOND  # the stream has come to 0, the shop is further
    score_all(desk)
    late, early = slate("r2", clock.ms + DELAY - 1), slate("r3", clock.ms + DELAY)
    assert items(reference.on_time(late)) == []
    assert items(reference.by_now("r2")) == [("a", False), ("b", False)]
    assert items(reference.on_time(early)) == [("a", True), ("b", True)]
    assert items(reference.by_now("r3")) == []


def test_a_shop_played_faster_than_time_passes_has_scores_on_time_by_its_own_time_only() -> None:
    """Its events are far ahead of the wall clock: by that alone every score would have been known in advance."""
    desk, reference = place()
    reference.on_time(slate("r1", 100 * MINUTE))
    score_all(desk)
    assert items(reference.on_time(slate("r2", 100 * MINUTE + LATE + DELAY - 1))) == []
    assert items(reference.on_time(slate("r3", 100 * MINUTE + LATE + DELAY))) == [("a", True), ("b", True)]


def test_a_stream_that_catches_up_has_nothing_on_time() -> None:
    clock = Clock()
    clock.ms = 60 * MINUTE
    desk, reference = place(clock)
    for n in range(10):
        assert reference.on_time(slate(f"r{n}", n * MINUTE)) == [], "nobody knew that score when it was shown"
        score_all(desk)
    assert items(reference.by_now("r9")) == [("a", False), ("b", False)]


@pytest.mark.parametrize("reason", ["waiting", "asked", "shed", "not_finite", "timeout", "in_sample", "swapped"])
def test_an_item_without_a_score_is_counted_with_its_reason(reason: str) -> None:
    desk, reference = place(queue=1 if reason == "shed" else 10)
    reference.on_time(slate("r1", 0, "x nan"))
    if reason != "waiting":
        taken = desk.take(10, 0.0)
        if reason == "timeout":
            desk.fail(taken, "timeout")
        elif reason == "not_finite":
            desk.answer(taken, answer(taken))
        elif reason == "in_sample":
            desk.answer(taken, answer(taken, f"v1@{T0}"))
        elif reason == "swapped":
            desk.answer(taken, answer(taken, template="{item.text}"))
    found = reference.by_now("r1")
    assert items(found) == ([("x", False)] if reason == "not_finite" else [])
    assert desk.missing[reason] > 0
    assert desk.missing.total() + len(found) == 2


def test_of_what_was_shown_before_the_data_ends_nothing_is_asked_once_the_teacher_is_known() -> None:
    desk, reference = place()
    reference.on_time(slate("r1", MINUTE))
    taken = desk.take(10, 0.0)
    desk.answer(taken, answer(taken, f"v1@{T0 + SECOND}"))
    reference.on_time(slate("r2", SECOND, "c d"))
    assert desk.waiting == 0
    assert desk.missing == {"in_sample": 2}
    assert len(reference.by_now("r1")) == 2


def test_pairs_that_no_slate_waits_for_any_more_are_not_scored() -> None:
    desk, reference = place()
    reference.on_time(slate("r1", 0, "a b"))
    reference.on_time(slate("r2", 1, "b c"))
    reference.by_now("r1")
    assert sorted(asked.pair.item for asked in desk.take(10, 0.0)) == ["b", "c"]


def test_slates_that_the_join_dropped_wait_for_nothing_after_the_window() -> None:
    desk, reference = place()
    reference.on_time(slate("r1", 0, "a"))
    reference.on_time(slate("r2", 11 * MINUTE, "b"))
    assert [asked.pair.item for asked in desk.take(10, 0.0)] == ["b"]
    assert reference.by_now("r1") == []


def test_what_was_shed_comes_with_a_slate_after_all_when_a_later_one_got_it_scored() -> None:
    desk, reference = place(queue=1)
    reference.on_time(slate("r1", 0, "a b"))
    score_all(desk)
    reference.on_time(slate("r2", 1, "b"))
    score_all(desk)
    assert items(reference.by_now("r1")) == [("a", False), ("b", False)]
    assert desk.counts["shed"] == 1


def test_a_teacher_that_failed_is_asked_again_for_what_is_still_waited_for() -> None:
    desk, reference = place()
    reference.on_time(slate("r1", 0, "a"))
    reference.on_time(slate("r2", 1, "b"))
    taken = desk.take(10, 0.0)
    reference.by_now("r2")
    desk.fail(taken, "timeout")
    assert [asked.pair.item for asked in desk.take(10, 0.0)] == ["a"]
    assert desk.failures == {"timeout": 1}


def test_another_teacher_scores_everything_anew_and_says_so_in_every_score() -> None:
    clock = Clock()
    desk, reference = place(clock)
    reference.on_time(slate("r1", 0))
    score_all(desk)
    reference.on_time(slate("r2", 5 * MINUTE, "a c"))
    taken = desk.take(10, 0.0)
    desk.answer(taken, answer(taken, "v2@0"))
    reference.on_time(slate("r3", 6 * MINUTE, "a"))
    assert [asked.pair.item for asked in desk.take(10, 0.0)] == ["a"], "what the teacher before said has been forgotten"
    assert {score.version for score in reference.by_now("r1")} == {"v1@0"}
    assert [(score.item_id, score.version) for score in reference.by_now("r2")] == [("c", "v2@0")]


def test_a_teacher_that_reads_other_texts_is_given_them() -> None:
    desk, reference = place()
    reference.on_time(slate("r1", 0, "a"))
    reference.on_time(slate("r2", 0, "b"))
    taken = desk.take(1, 0.0)
    desk.answer(taken, answer(taken, "v2@0", "{query} | new {item.text}"))
    assert desk.waiting == 0
    reference.on_time(slate("r3", 1, "a"))
    assert [asked.pair for asked in desk.take(10, 0.0)] == [Pair("shoe", "new a")]


def test_remembered_scores_are_bounded() -> None:
    desk, reference = place(cache=2)
    reference.on_time(slate("r1", 0, "a b c"))
    score_all(desk)
    reference.on_time(slate("r2", 1, "b c"))
    assert desk.waiting == 0
    reference.on_time(slate("r3", 2, "a"))
    assert desk.waiting == 1


# ---------------------------------------------------------------- the thread


class Scripted:
    """A teacher that does what it is told, once each, and then scores."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.done = threading.Event()

    def score(self, pairs: Sequence[Pair]) -> Answer:
        does = self.script.pop(0) if self.script else None
        if isinstance(does, Exception):
            raise does
        if isinstance(does, Answer):
            return does
        self.done.set()
        return Answer("v1@0", TEMPLATE, [said(pair) for pair in pairs])

    def look(self) -> None:
        pass


def test_the_thread_outlives_whatever_the_teacher_does() -> None:
    desk, reference = place()
    bad = [
        ScorerTimeoutError("slow"),
        Answer("v1@0", TEMPLATE, []),
        Answer("v1@later", TEMPLATE, [None]),
        Answer("v1@\u00b2", TEMPLATE, [None]),
        Answer("v1@" + 5_000 * "9", TEMPLATE, [None]),
        Answer("v1@0", "no field", [None]),
        ValueError(""),
    ]
    teacher = Scripted(*bad)
    thread = ScoringThread(desk, lambda: teacher, 10, 0.0)
    assert thread.connect()
    reference.on_time(slate("r1", 0, "a"))
    for _ in bad:
        assert not thread.step(desk.take(10, 0.0))
    assert desk.failures == {"timeout": 1, "failed": 6}
    assert thread.step(desk.take(10, 0.0))
    assert items(reference.by_now("r1")) == [("a", False)]


def test_a_teacher_that_cannot_be_made_is_tried_again() -> None:
    desk, _ = place()
    attempts: list[object] = []

    def connect() -> Scripted:
        attempts.append(None)
        if len(attempts) < 3:
            message = "no folder yet"
            raise OSError(message)
        return Scripted()

    thread = ScoringThread(desk, connect, 10, 0.0)
    assert [thread.connect() for _ in range(4)] == [False, False, True, True]
    assert desk.failures == {"failed": 2}
    assert len(attempts) == 3


def test_the_stream_goes_on_while_the_teacher_hangs_and_the_worker_can_end() -> None:
    desk, reference = place()
    begun, released = threading.Event(), threading.Event()

    class Hanging:
        def score(self, pairs: Sequence[Pair]) -> Answer:
            begun.set()
            released.wait(30)
            return Answer("v1@0", TEMPLATE, [said(pair) for pair in pairs])

        def look(self) -> None:
            pass

    thread = ScoringThread(desk, Hanging, 10, 0.0)
    thread.start()
    reference.on_time(slate("r1", 0, "a"))
    assert begun.wait(10)
    for n in range(2, 100):
        reference.on_time(slate(f"r{n}", n, f"a b{n}"))
        assert reference.by_now(f"r{n}") == []
    assert desk.missing == {"asked": 98, "waiting": 98}
    thread.stop(0.01)
    released.set()
    thread.stop(10)


def test_a_running_thread_answers_what_is_asked() -> None:
    desk, reference = place()
    teacher = Scripted(ValueError("once"))
    thread = ScoringThread(desk, lambda: teacher, 10, 0.001)
    thread.start()
    reference.on_time(slate("r1", 0, "a b"))
    assert teacher.done.wait(10)
    thread.stop(10)
    assert items(reference.by_now("r1")) == [("a", False), ("b", False)]
