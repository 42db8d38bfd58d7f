"""A live teacher that reads texts apart: a pair is known once both texts were read, even if it was never shown."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.score.scoring_thread import ScoringThread
from heft.stream.score.teacher import Answer
from tests.support.builders import MINUTE, SECOND
from tests.support.requests import DELAY, LATE, TEMPLATE, items, place, slate
from tests.support.texts_apart import Apart, Shop, logits_of


def test_a_pair_that_was_never_shown_is_on_time_when_both_texts_were_read_a_score_delay_before() -> None:
    shop = Shop()
    shop.show("r1", 0, "a", query="shoe")
    shop.show("r2", 0, "b", query="boot")
    shop.score()
    assert shop.show("r3", LATE + DELAY, "b", query="shoe") == [("b", True)]
    assert shop.leave("r3") == []
    assert len(shop.teacher.asked) == 2, "the teacher was not asked for it"
    assert shop.requests.waiting == 0
    assert shop.requests.counts.pairs == Counter({"asked": 3, "hits": 1, "at_once": 1, "scored": 2})
    assert shop.show("r4", 5 * MINUTE, "b", query="shoe") == [("b", True)]
    assert shop.requests.counts.pairs["at_once"] == 1, "from then on it is known like any other"
    assert shop.requests.counts.missing.total() == 0


def test_texts_that_a_teacher_has_read_ahead_are_known_from_its_first_answer_on() -> None:
    shop = Shop()
    shop.teacher.read = {"shoe", "b"}
    shop.teacher.read_ahead = ("shoe", "b")
    shop.show("r1", 0, "a")
    shop.score()
    assert shop.show("r2", LATE + DELAY - 1, "b") == [], "no ranker has them yet"
    assert shop.show("r3", LATE + DELAY, "b") == [("b", True)]
    assert [pair.item for pair in shop.teacher.asked] == ["a"]


def test_it_has_the_score_that_the_teacher_would_have_given() -> None:
    shop = Shop()
    shop.show("r1", 0, "a bcd", query="shoe")
    shop.show("r2", 0, "a", query="flip-flop")
    shop.score()
    shop.show("r3", 1, "bcd", query="flip-flop")
    (score,) = shop.source.by_now("r3")
    assert (score.logit_256, score.order_256, score.version) == (903, -9, "v1@0")


def test_a_text_that_was_read_too_recently_makes_the_pair_late() -> None:
    shop = Shop()
    shop.show("r1", 0, "a", query="shoe")
    shop.score()
    shop.show("r2", MINUTE, "b", query="boot")
    shop.score()
    at = MINUTE + LATE + DELAY
    assert shop.show("r3", at - 1, "b", query="shoe") == []
    assert shop.leave("r3") == [("b", False)]
    assert shop.show("r4", at, "b", query="shoe") == [("b", True)]
    assert len(shop.teacher.asked) == 2


def test_a_shop_played_faster_than_time_passes_has_texts_on_time_by_its_own_time_only() -> None:
    requests, source = place()
    teacher = Apart()
    source.on_time(slate("r1", 100 * MINUTE, "a", "shoe"))
    source.on_time(slate("r2", 100 * MINUTE, "b", "boot"))
    taken = requests.take(10, 0.0)
    requests.answer(taken, teacher.score([request.pair for request in taken]))
    assert items(source.on_time(slate("r3", 100 * MINUTE + LATE + DELAY - 1, "b", "shoe"))) == []
    assert items(source.on_time(slate("r4", 100 * MINUTE + LATE + DELAY, "b", "shoe"))) == [("b", True)]


@given(
    st.lists(
        st.tuples(st.integers(0, 20 * SECOND), st.booleans(), st.sampled_from("qrs"), st.sampled_from("abcd")),
        max_size=40,
    )
)
def test_what_is_on_time_is_what_looking_back_at_all_answers_says(steps: list[tuple[int, bool, str, str]]) -> None:
    """Compared with a plain record of when each text was read, however late the teacher answers."""
    shop, read = Shop(), dict[str, int]()
    asked = list[str]()
    at = 0
    for n, (gap, answers, query, item) in enumerate(steps):
        at += gap
        expected = all(read.get(text, at) + DELAY <= at for text in (query, item))
        assert shop.show(f"r{n}", at, item, query) == [(item, True)] * expected
        asked += [query, item]
        if answers:
            # Pairs that became known at once need no answer, because their texts had been read already.
            shop.score()
            for text in asked:
                read.setdefault(text, at + LATE)
            asked.clear()


def test_a_pair_that_waits_is_known_once_others_have_had_its_texts_read() -> None:
    shop = Shop()
    shop.show("r1", 0, "b", query="shoe")
    shop.show("r2", 0, "a", query="shoe")
    shop.show("r3", 0, "a", query="shoe")
    shop.show("r4", 0, "b", query="boot")
    shop.show("r5", 0, "b", query="boot")
    taken = shop.requests.take(2, 0.0)  # those that two slates wait for
    shop.requests.answer(taken, shop.teacher.score([request.pair for request in taken]))
    assert shop.requests.waiting == 1
    assert shop.show("r6", LATE + DELAY, "b", query="shoe") == [("b", True)]
    assert shop.requests.waiting == 0
    assert shop.leave("r1") == [("b", False)]


def test_a_pair_that_the_teacher_has_in_hand_is_left_to_it() -> None:
    shop = Shop()
    shop.show("r1", 0, "b", query="shoe")
    in_hand = shop.requests.take(10, 0.0)
    shop.show("r2", 0, "a", query="shoe")
    shop.show("r3", 0, "b", query="boot")
    shop.score()
    assert shop.show("r4", MINUTE, "b", query="shoe") == []
    shop.requests.answer(in_hand, shop.teacher.score([request.pair for request in in_hand]))
    assert shop.leave("r1") == shop.leave("r4") == [("b", False)]
    assert shop.show("r5", MINUTE, "b", query="shoe") == [("b", True)], "its texts were read before the pair was"


def test_a_text_that_the_teacher_has_forgotten_is_read_again() -> None:
    shop = Shop()
    shop.show("r1", 0, "a", query="shoe")
    shop.show("r2", 0, "b", query="boot")
    shop.score()
    shop.teacher.read.discard("b")
    assert shop.show("r3", MINUTE, "b", query="shoe") == []
    assert shop.requests.waiting == 1
    shop.score()
    assert shop.leave("r3") == [("b", False)]


def test_a_score_that_is_no_number_is_counted_as_with_any_teacher() -> None:
    shop = Shop()
    shop.show("r1", 0, "nan", query="shoe")
    shop.show("r2", 0, "b", query="boot")
    shop.score()
    assert shop.show("r3", MINUTE, "nan", query="boot") == []
    shop.score()
    assert shop.leave("r3") == []
    assert shop.requests.counts.missing == Counter({"not_finite": 1})
    assert shop.requests.counts.pairs["not_finite"] == 2


def test_another_teacher_has_read_nothing_yet() -> None:
    shop = Shop()
    shop.show("r1", 0, "a", query="shoe")
    shop.show("r2", 0, "b", query="boot")
    shop.score()
    shop.teacher = Apart("v2@0")
    shop.show("r3", MINUTE, "c", query="shoe")
    shop.score()
    assert shop.show("r4", 5 * MINUTE, "b", query="shoe") == []
    shop.score()
    (score,) = shop.source.by_now("r4")
    assert (score.version, score.on_time) == ("v2@0", False)


def test_of_a_teacher_that_reads_pairs_every_pair_is_asked() -> None:
    requests, source = place()
    source.on_time(slate("r1", 0, "a", "shoe"))
    source.on_time(slate("r2", 0, "b", "boot"))
    taken = requests.take(10, 0.0)
    requests.answer(taken, Answer(TeacherDescription("v1@0", TEMPLATE), [logits_of(request.pair) for request in taken]))
    source.on_time(slate("r3", MINUTE, "b", "shoe"))
    assert requests.waiting == 1


def test_remembered_texts_are_bounded() -> None:
    shop = Shop(cache=4)
    shop.show("r1", 0, "a b c d e f")
    shop.score()
    shop.show("r2", MINUTE, "f", query="boot")
    shop.score()
    assert shop.show("r3", 2 * MINUTE, "e", query="boot") == [("e", True)]
    assert shop.show("r4", 2 * MINUTE, "a", query="boot") == []


def test_a_teacher_that_fails_in_the_stream_costs_scores_and_nothing_else() -> None:
    class Failing(Apart):
        def at_once(self, pairs: Sequence[Pair]) -> list[Logits | None]:
            if any("bad" in pair.item for pair in pairs):
                raise IndexError(pairs)
            return super().at_once(pairs)

    shop = Shop()
    shop.teacher = Failing()
    shop.teacher.read, shop.teacher.read_ahead = {"shoe", "bad", "b"}, ("shoe", "bad", "b")
    shop.show("r1", 0, "a")
    shop.score()
    assert shop.show("r2", LATE + DELAY, "bad") == []
    assert shop.requests.counts.failures == Counter({"failed": 1})
    assert shop.requests.waiting == 1, "the thread asks for it like for any other"
    assert shop.show("r3", LATE + DELAY, "b") == [("b", True)]


def test_while_the_teacher_hangs_the_stream_has_the_scores_of_texts_that_were_read_before() -> None:
    requests, source = place()
    begun, released = threading.Event(), threading.Event()
    first = threading.Event()

    class Hanging(Apart):
        def score(self, pairs: Sequence[Pair]) -> Answer:
            if self.asked:
                begun.set()
                released.wait(30)
            answer = super().score(pairs)
            first.set()
            return answer

    source.on_time(slate("r1", 0, "a", "shoe"))
    source.on_time(slate("r2", 0, "b", "boot"))
    thread = ScoringThread(requests, Hanging, 10, 0.0)
    thread.start()
    assert first.wait(10)
    source.on_time(slate("r3", 1, "new", "shoe"))
    assert begun.wait(10)
    assert items(source.on_time(slate("r4", MINUTE, "a b", "shoe"))) == [("a", True), ("b", True)]
    released.set()
    thread.stop(10)
