"""Requests to a live teacher: which are asked first, which scores are on time, and what a bad teacher costs."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.score import request_state
from heft.stream.score.queue import PairQueue
from heft.stream.score.request_state import NEXT_STATES, Request, RequestState, Score
from heft.stream.score.requests import ScoreRequests
from heft.stream.score.scoring_thread import ScoringThread
from heft.stream.score.teacher import Answer, ScorerTimeoutError
from tests.support.builders import MINUTE, SECOND, T0
from tests.support.requests import DELAY, LATE, TEMPLATE, Clock, items, logits_of, place, slate


def answer(taken: Sequence[Request], version: str = "v1@0", template: str = TEMPLATE) -> Answer:
    return Answer(TeacherDescription(version, template), [logits_of(request.pair) for request in taken])


def score_all(requests: ScoreRequests) -> None:
    taken = requests.take(1_000, 0.0)
    requests.answer(taken, answer(taken))


# ---------------------------------------------------------------- the queue


def test_the_pair_that_most_slates_wait_for_goes_first_and_of_equals_the_one_that_came_first() -> None:
    queue = PairQueue(10)
    requests = [Request(Pair("q", text)) for text in "abcd"]
    for request in requests:
        queue.add(request)
    queue.revalue(requests[2], 3)
    queue.revalue(requests[3], 2)
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
    """Compared with a plain list. Steps: a adds, r removes, m gives one slate more, t takes."""
    queue, model = PairQueue(5), list[Request]()
    everyone = [Request(Pair("q", str(n))) for n in range(10)]
    for step, n in steps:
        request = everyone[n]
        if step == "a" and request not in model:
            request.slates = 1
            model.append(request)
            shed = queue.add(request)
            if len(model) > 5:
                worst = [each for each in model if each.slates == min(other.slates for other in model)][-1]
                model.remove(worst)
                assert shed is worst
        elif step == "r":
            assert queue.remove(request) == (request in model)
            model = [each for each in model if each is not request]
        elif step == "m" and request in model:
            queue.revalue(request, request.slates + 1)
            model.remove(request)
            model.append(request)
        elif step == "t":
            expected = sorted(model, key=lambda each: -each.slates)[:2]
            assert queue.take(2) == expected
            model = [each for each in model if each not in expected]
        assert len(queue) == len(model)


# ---------------------------------------------------------------- the states of a request


def in_state(state: RequestState) -> Request:
    request = Request(Pair("q", "a"))
    if state in NEXT_STATES[RequestState.ASKED]:
        change(request, RequestState.ASKED)
    if state is not RequestState.WAITING:
        change(request, state)
    return request


def change(request: Request, state: RequestState) -> None:
    request.change(state, Score(Logits(1), "v1@0", 0, 0) if state is RequestState.KNOWN else None)


def written_table() -> dict[RequestState, set[RequestState]]:
    """Return the table in the docstring of the module."""
    table = {}
    rows = (request_state.__doc__ or "").split("\n==========")[2].splitlines()[1:]
    for row in rows:
        state, *_, after = re.split(r"  +", row.strip())
        table[RequestState(state)] = {RequestState(each) for each in after.split(", ") if each != "nothing"}
    return table


@pytest.mark.parametrize("before", RequestState)
@pytest.mark.parametrize("after", RequestState)
def test_a_request_changes_as_the_written_table_says_and_not_otherwise(
    before: RequestState, after: RequestState
) -> None:
    request = in_state(before)
    assert request.state is before
    if after in written_table()[before]:
        change(request, after)
        assert request.state is after
        assert (request.score is not None) == (after is RequestState.KNOWN)
    else:
        with pytest.raises(AssertionError, match=f"from {before.name} to {after.name}"):
            change(request, after)
        assert request.state is before


def test_a_request_has_a_score_if_and_only_if_it_is_known() -> None:
    request = in_state(RequestState.ASKED)
    with pytest.raises(AssertionError, match="KNOWN with the score None"):
        request.change(RequestState.KNOWN)
    with pytest.raises(AssertionError, match="FAILED with the score"):
        request.change(RequestState.FAILED, Score(Logits(1), "v1@0", 0, 0))
    assert request.state is RequestState.ASKED


def test_the_same_requests_cannot_be_answered_twice() -> None:
    requests, source = place()
    source.on_time(slate("r1", 0))
    taken = requests.take(10, 0.0)
    requests.answer(taken, answer(taken))
    with pytest.raises(AssertionError, match="from KNOWN to KNOWN"):
        requests.answer(taken, answer(taken))


@given(st.lists(st.tuples(st.sampled_from("saatfecc"), st.integers(0, 7)), max_size=60))
def test_whatever_happens_no_request_leaves_the_table(steps: list[tuple[str, int]]) -> None:
    """Steps: s shows a slate, c closes one, t takes, a answers, f fails, e exchanges the teacher."""
    requests, source = place(queue=3, cache=3)
    in_hand: list[Request] = []
    template, shown = TEMPLATE, 0
    for step, n in steps:
        if step == "s":
            source.on_time(slate(f"r{shown}", shown, f"{'abcdefgh'[n]} nan a"))
            shown += 1
        elif step == "c":
            source.by_now(f"r{n}")
        elif step == "t" and not in_hand:
            in_hand = requests.take(n, 0.0)
        elif step == "e":
            template = "{query} | new {item.text}" if template == TEMPLATE else TEMPLATE
        elif step == "f":
            requests.fail(in_hand, RequestState.TIMEOUT)
            in_hand = []
        elif step == "a":
            requests.answer(in_hand, answer(in_hand, f"{len(template)}@0", template))
            in_hand = []
    for n in range(shown):
        source.by_now(f"r{n}")
    assert requests.waiting == 0, "no slate waits any more"


# ---------------------------------------------------------------- what the stream asks


def test_a_pair_is_scored_once_however_many_slates_show_it() -> None:
    requests, source = place()
    for n in range(5):
        assert source.on_time(slate(f"r{n}", n)) == []
    assert requests.waiting == 2
    score_all(requests)
    for n in range(5):
        assert items(source.by_now(f"r{n}")) == [("a", False), ("b", False)]
    assert requests.counts.pairs == Counter({"asked": 10, "hits": 8, "scored": 2})
    assert requests.counts.missing.total() == 0


def test_a_score_is_on_time_once_it_was_known_a_score_delay_before_the_slate_by_the_wall_clock() -> None:
    clock = Clock()
    requests, source = place(clock)
    source.on_time(slate("r1", 0))
    clock.ms = LATE + 5 * SECOND  # the stream has come to 0, the shop is ahead of it
    score_all(requests)
    late, early = slate("r2", clock.ms + DELAY - 1), slate("r3", clock.ms + DELAY)
    assert items(source.on_time(late)) == []
    assert items(source.by_now("r2")) == [("a", False), ("b", False)]
    assert items(source.on_time(early)) == [("a", True), ("b", True)]
    assert items(source.by_now("r3")) == []


def test_a_shop_played_faster_than_time_passes_has_scores_on_time_by_its_own_time_only() -> None:
    """Its events are far ahead of the wall clock, by which every score would have been known before its slate."""
    requests, source = place()
    source.on_time(slate("r1", 100 * MINUTE))
    score_all(requests)
    assert items(source.on_time(slate("r2", 100 * MINUTE + LATE + DELAY - 1))) == []
    assert items(source.on_time(slate("r3", 100 * MINUTE + LATE + DELAY))) == [("a", True), ("b", True)]


def test_a_stream_that_catches_up_has_nothing_on_time() -> None:
    clock = Clock()
    clock.ms = 60 * MINUTE
    requests, source = place(clock)
    for n in range(10):
        assert source.on_time(slate(f"r{n}", n * MINUTE)) == [], "nobody knew that score when it was shown"
        score_all(requests)
    assert items(source.by_now("r9")) == [("a", False), ("b", False)]


@pytest.mark.parametrize("reason", ["waiting", "asked", "shed", "not_finite", "timeout", "in_sample", "swapped"])
def test_an_item_without_a_score_is_counted_with_its_reason(reason: str) -> None:
    requests, source = place(queue=1 if reason == "shed" else 10)
    source.on_time(slate("r1", 0, "x nan"))
    if reason != "waiting":
        taken = requests.take(10, 0.0)
        if reason == "timeout":
            requests.fail(taken, RequestState.TIMEOUT)
        elif reason == "not_finite":
            requests.answer(taken, answer(taken))
        elif reason == "in_sample":
            requests.answer(taken, answer(taken, f"v1@{T0}"))
        elif reason == "swapped":
            requests.answer(taken, answer(taken, template="{item.text}"))
    found = source.by_now("r1")
    assert items(found) == ([("x", False)] if reason == "not_finite" else [])
    assert requests.counts.missing[reason] > 0
    assert requests.counts.missing.total() + len(found) == 2


def test_once_the_teacher_is_known_nothing_is_asked_about_slates_from_before_its_data_ends() -> None:
    requests, source = place()
    source.on_time(slate("r1", MINUTE))
    taken = requests.take(10, 0.0)
    requests.answer(taken, answer(taken, f"v1@{T0 + SECOND}"))
    source.on_time(slate("r2", SECOND, "c d"))
    assert requests.waiting == 0
    assert requests.counts.missing == Counter({"in_sample": 2})
    assert len(source.by_now("r1")) == 2


def test_pairs_that_no_slate_waits_for_any_more_are_not_scored() -> None:
    requests, source = place()
    source.on_time(slate("r1", 0, "a b"))
    source.on_time(slate("r2", 1, "b c"))
    source.by_now("r1")
    assert sorted(request.pair.item for request in requests.take(10, 0.0)) == ["b", "c"]


def test_slates_that_the_join_dropped_wait_for_nothing_after_the_window() -> None:
    requests, source = place()
    source.on_time(slate("r1", 0, "a"))
    source.on_time(slate("r2", 11 * MINUTE, "b"))
    assert [request.pair.item for request in requests.take(10, 0.0)] == ["b"]
    assert source.by_now("r1") == []


def test_a_slate_whose_pair_was_shed_gets_the_score_if_a_later_slate_had_the_pair_scored() -> None:
    requests, source = place(queue=1)
    source.on_time(slate("r1", 0, "a b"))
    score_all(requests)
    source.on_time(slate("r2", 1, "b"))
    score_all(requests)
    assert items(source.by_now("r1")) == [("a", False), ("b", False)]
    assert requests.counts.pairs["shed"] == 1


def test_a_teacher_that_failed_is_asked_again_for_what_is_still_waited_for() -> None:
    requests, source = place()
    source.on_time(slate("r1", 0, "a"))
    source.on_time(slate("r2", 1, "b"))
    taken = requests.take(10, 0.0)
    source.by_now("r2")
    requests.fail(taken, RequestState.TIMEOUT)
    assert [request.pair.item for request in requests.take(10, 0.0)] == ["a"]
    assert requests.counts.failures == Counter({"timeout": 1})


def test_another_teacher_scores_everything_anew_and_says_so_in_every_score() -> None:
    clock = Clock()
    requests, source = place(clock)
    source.on_time(slate("r1", 0))
    score_all(requests)
    source.on_time(slate("r2", 5 * MINUTE, "a c"))
    taken = requests.take(10, 0.0)
    requests.answer(taken, answer(taken, "v2@0"))
    source.on_time(slate("r3", 6 * MINUTE, "a"))
    assert [request.pair.item for request in requests.take(10, 0.0)] == ["a"], "scores of the old one are forgotten"
    assert {score.version for score in source.by_now("r1")} == {"v1@0"}
    assert [(score.item_id, score.version) for score in source.by_now("r2")] == [("c", "v2@0")]


def test_a_teacher_that_reads_other_texts_is_given_them() -> None:
    requests, source = place()
    source.on_time(slate("r1", 0, "a"))
    source.on_time(slate("r2", 0, "b"))
    taken = requests.take(1, 0.0)
    requests.answer(taken, answer(taken, "v2@0", "{query} | new {item.text}"))
    assert requests.waiting == 0
    source.on_time(slate("r3", 1, "a"))
    assert [request.pair for request in requests.take(10, 0.0)] == [Pair("shoe", "new a")]


def test_remembered_scores_are_bounded() -> None:
    requests, source = place(cache=2)
    source.on_time(slate("r1", 0, "a b c"))
    score_all(requests)
    source.on_time(slate("r2", 1, "b c"))
    assert requests.waiting == 0
    source.on_time(slate("r3", 2, "a"))
    assert requests.waiting == 1


# ---------------------------------------------------------------- the thread


class Scripted:
    """A teacher that takes each step of a script once, and then scores."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.done = threading.Event()

    def score(self, pairs: Sequence[Pair]) -> Answer:
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Answer):
            return step
        self.done.set()
        return Answer(TeacherDescription("v1@0", TEMPLATE), [logits_of(pair) for pair in pairs])

    def look(self) -> None:
        pass


def test_the_thread_outlives_whatever_the_teacher_does() -> None:
    requests, source = place()
    bad = [
        ScorerTimeoutError("slow"),
        Answer(TeacherDescription("v1@0", TEMPLATE), []),
        Answer(TeacherDescription("v1@later", TEMPLATE), [None]),
        Answer(TeacherDescription("v1@\u00b2", TEMPLATE), [None]),
        Answer(TeacherDescription("v1@" + 5_000 * "9", TEMPLATE), [None]),
        Answer(TeacherDescription("v1@0", "no field"), [None]),
        ValueError(""),
    ]
    teacher = Scripted(*bad)
    thread = ScoringThread(requests, lambda: teacher, 10, 0.0)
    assert thread.connect()
    source.on_time(slate("r1", 0, "a"))
    for _ in bad:
        assert not thread.step(requests.take(10, 0.0))
    assert requests.counts.failures == Counter({"timeout": 1, "failed": 6})
    assert thread.step(requests.take(10, 0.0))
    assert items(source.by_now("r1")) == [("a", False)]


def test_a_teacher_that_cannot_be_made_is_tried_again() -> None:
    requests, _ = place()
    attempts: list[object] = []

    def connect() -> Scripted:
        attempts.append(None)
        if len(attempts) < 3:
            message = "no folder yet"
            raise OSError(message)
        return Scripted()

    thread = ScoringThread(requests, connect, 10, 0.0)
    assert [thread.connect() for _ in range(4)] == [False, False, True, True]
    assert requests.counts.failures == Counter({"failed": 2})
    assert len(attempts) == 3


def test_the_stream_goes_on_while_the_teacher_hangs_and_the_worker_can_end() -> None:
    requests, source = place()
    begun, released = threading.Event(), threading.Event()

    class Hanging:
        def score(self, pairs: Sequence[Pair]) -> Answer:
            begun.set()
            released.wait(30)
            return Answer(TeacherDescription("v1@0", TEMPLATE), [logits_of(pair) for pair in pairs])

        def look(self) -> None:
            pass

    thread = ScoringThread(requests, Hanging, 10, 0.0)
    thread.start()
    source.on_time(slate("r1", 0, "a"))
    assert begun.wait(10)
    for n in range(2, 100):
        source.on_time(slate(f"r{n}", n, f"a b{n}"))
        assert source.by_now(f"r{n}") == []
    assert requests.counts.missing == Counter({"asked": 98, "waiting": 98})
    thread.stop(0.01)
    released.set()
    thread.stop(10)


def test_a_running_thread_answers_what_is_asked() -> None:
    requests, source = place()
    teacher = Scripted(ValueError("once"))
    thread = ScoringThread(requests, lambda: teacher, 10, 0.001)
    thread.start()
    source.on_time(slate("r1", 0, "a b"))
    assert teacher.done.wait(10)
    thread.stop(10)
    assert items(source.by_now("r1")) == [("a", False), ("b", False)]
