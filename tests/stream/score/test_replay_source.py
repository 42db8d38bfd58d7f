"""The score stage in a replay: which score comes when, by event time alone."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.models.records import Closed, Matured, Record, ReferenceScore, Shown
from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import quantise, wire_version
from heft.stream.score.replay_source import PairScores, ReplaySource
from tests.support.builders import MINUTE, SECOND, T0
from tests.support.score_stage import TEACHER, VERSION, Teacher, closed, scorer, scores, shown

APART = TEACHER._replace(apart=True)


def test_a_pair_is_late_for_the_slate_that_shows_it_first_and_comes_when_that_closes() -> None:
    stage = scorer(Teacher())
    first = shown("r1", 0)
    assert stage.score(first) is first, "no score is known, so nothing changes"
    answer = stage.score(closed("r1", 0))
    assert isinstance(answer, Closed)
    assert answer.scores == [ReferenceScore(name, 403, VERSION, False, -3) for name in "ab"]


def test_a_slate_shown_a_score_delay_later_has_the_score_on_time_and_not_again_at_its_end() -> None:
    stage = scorer(Teacher(), score_delay_ms=2_000)
    stage.score(shown("r1", 0))
    assert scores(stage.score(shown("r2", 1_999))) == []
    assert scores(stage.score(shown("r3", 2_000, "b c"))) == [("b", True)]
    assert scores(stage.score(closed("r1", 0))) == [("a", False), ("b", False)]
    assert scores(stage.score(closed("r2", 1_999))) == [("a", False), ("b", False)]
    assert scores(stage.score(closed("r3", 2_000))) == [("c", False)]


def test_another_query_makes_it_another_pair() -> None:
    stage = scorer(Teacher())
    stage.score(shown("r1", 0, query="shoe"))
    assert scores(stage.score(shown("r2", MINUTE, query="boot"))) == []


def test_a_scorer_in_line_with_the_ranker_is_always_on_time() -> None:
    stage = scorer(Teacher(), in_line=True)
    assert scores(stage.score(shown("r1", 0))) == [("a", True), ("b", True)]
    assert scores(stage.score(closed("r1", 0))) == []


def test_what_the_ranker_asked_in_line_comes_with_the_impression_and_is_not_asked_again() -> None:
    teacher = Teacher()
    stage = scorer(teacher)
    record = shown("r1", 0, "a b c")
    items = [
        msgspec.structs.replace(item, teacher=logits)
        for item, logits in zip(record.slate.items, [(1.5, -2.0), (-3.0, None), None], strict=True)
    ]
    brought = msgspec.structs.replace(
        record, slate=msgspec.structs.replace(record.slate, items=items, teacher="v9@1600000000000")
    )
    stage.expect([brought])
    answer = stage.score(brought)
    assert isinstance(answer, Shown)
    assert answer.scores == [
        ReferenceScore("a", 384, "v9@1600000000000", True, -512),
        ReferenceScore("b", -768, "v9@1600000000000", True, None),
    ]
    assert scores(stage.score(closed("r1", 0))) == []
    assert teacher.batches == []


def test_a_teacher_has_no_scores_for_slates_from_before_its_data_ends() -> None:
    teacher = Teacher()
    stage = scorer(teacher, TEACHER._replace(version=wire_version("v1", T0 + SECOND)))
    stage.score(shown("r1", SECOND))
    assert scores(stage.score(shown("r2", MINUTE))) == [], "the teacher did not exist when the first was shown"
    assert scores(stage.score(closed("r1", SECOND))) == []
    assert len(scores(stage.score(closed("r2", MINUTE)))) == 2


def test_a_score_that_is_no_number_is_left_out_and_counted() -> None:
    source = ReplaySource(PairScores(Teacher()), TEACHER, in_line=True)
    assert [score.item_id for score in source.on_time(shown("r1", 0, "a nan").slate)] == ["a"]
    assert source.not_finite == 1


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), float("-inf")])
def test_only_finite_logits_are_quantised(logit: float) -> None:
    assert quantise(logit) is quantise(0.0, logit) is None


def test_items_never_on_screen_are_not_scored() -> None:
    teacher = Teacher()
    record = shown("r1", 0)
    items = [msgspec.structs.replace(item, seen=item.item_id == "a") for item in record.slate.items]
    slate = msgspec.structs.replace(record.slate, items=items)
    stage = scorer(teacher, in_line=True)
    assert scores(stage.score(msgspec.structs.replace(record, slate=slate))) == [("a", True)]


def test_pairs_are_scored_together_once_and_only_when_one_is_needed() -> None:
    teacher = Teacher()
    stage = scorer(teacher)
    records = [shown(f"r{n}", n, f"a {n}") for n in range(50)]
    stage.expect(records)
    for record in records:
        stage.score(record)
    assert teacher.batches == []
    stage.score(closed("r0", 0))
    assert [len(batch) for batch in teacher.batches] == [51]
    for n in range(1, 50):
        stage.score(closed(f"r{n}", n))
    assert len(teacher.batches) == 1


def test_records_without_scores_pass_untouched() -> None:
    matured = Matured(T0, "r1", "a", True, 1.0)
    assert scorer(Teacher()).score(matured) is matured


def test_texts_that_a_teacher_has_read_ahead_are_known_from_the_end_of_its_data_on() -> None:
    version = wire_version("v1", T0 + SECOND)
    teacher = TEACHER._replace(version=version, apart=True, read_ahead=("shoe", "aaa"))
    stage = scorer(Teacher(), teacher, score_delay_ms=2_000)
    assert scores(stage.score(shown("r1", 2 * SECOND))) == [], "no ranker has them yet"
    assert scores(stage.score(shown("r2", 3 * SECOND, "a new"))) == [("a", True)]


def test_a_teacher_that_reads_texts_apart_is_on_time_with_a_pair_never_shown_of_texts_that_were() -> None:
    stage = scorer(Teacher(), APART, score_delay_ms=2_000)
    stage.score(shown("r1", 0, "a", query="shoe"))
    stage.score(shown("r2", 500, "b", query="boot"))
    assert scores(stage.score(shown("r3", 2_000, "a b", query="shoe"))) == [("a", True)]
    assert scores(stage.score(shown("r4", 2_499, "a", query="boot"))) == [], "the later of the two counts"
    assert scores(stage.score(shown("r5", 2_500, "a", query="boot"))) == [("a", True)]
    assert scores(stage.score(shown("r6", 2_500, "c", query="boot"))) == []
    assert scores(stage.score(shown("r7", 9_000, "c", query="flip-flop"))) == []
    assert scores(stage.score(closed("r3", 2_000))) == [("b", False)]


@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from("qrs"), st.sampled_from("abc")), max_size=40))
def test_the_scores_on_time_are_those_that_a_search_through_all_earlier_slates_finds(
    slates: list[tuple[int, str, str]],
) -> None:
    by_texts, by_pairs = (scorer(Teacher(), teacher, score_delay_ms=2_000) for teacher in (APART, TEACHER))
    past: list[tuple[int, str, str]] = []
    at = 0
    for n, (gap, query, item) in enumerate(slates):
        at += gap
        ago = [(q, i) for t, q, i in past if t <= at - 2_000]
        for stage, expected in (
            (by_texts, any(q == query for q, _ in ago) and any(i == item for _, i in ago)),
            (by_pairs, (query, item) in ago),
        ):
            assert scores(stage.score(shown(f"r{n}", at, item, query=query))) == [(item, True)] * expected
        past.append((at, query, item))


def test_a_text_that_was_forgotten_is_new_when_it_comes_again() -> None:
    stage = scorer(Teacher(), APART, capacity=3)
    stage.score(shown("r1", 0, "a b"))
    assert len(scores(stage.score(shown("r2", 5 * SECOND, "a b")))) == 2
    stage.score(shown("r3", 6 * SECOND, "c"))
    assert scores(stage.score(shown("r4", 20 * SECOND, "a b"))) == [("b", True)]


def outcome(
    seed: int, ahead: int, remembered: int, pairs: int, teacher: TeacherDescription = TEACHER
) -> list[list[tuple[str, int, bool]]]:
    """The scores that come with the records of a random stream, of which ``ahead`` are announced together."""
    chance = random.Random(seed)
    stage = scorer(Teacher(), teacher, remembered=remembered, capacity=pairs)
    records: list[Record] = []
    for n in range(300):
        at = n * 400
        records.append(shown(f"r{n}", at, " ".join(chance.sample("abcdefgh", 3)), chance.choice(("boot", "shoe"))))
        records.append(closed(f"r{n}", at))
    records.sort(key=lambda record: record.key)
    out = []
    for start in range(0, len(records), ahead):
        chunk = records[start : start + ahead]
        stage.expect(chunk)
        for record in chunk:
            answer = stage.score(record)
            assert isinstance(answer, Shown | Closed)
            out.append([(score.item_id, score.logit_256, score.on_time) for score in answer.scores])
    return out


@pytest.mark.parametrize("teacher", [TEACHER, APART], ids=["pairs", "apart"])
def test_no_score_depends_on_how_many_slates_are_announced_or_how_many_pairs_are_remembered(
    teacher: TeacherDescription,
) -> None:
    expected = outcome(1, 1, 1_000, 1_000, teacher)
    assert outcome(1, 37, 1_000, 1_000, teacher) == outcome(1, 600, 3, 1_000, teacher) == expected
    assert any(on_time for record in expected for _, _, on_time in record)


def test_a_pair_that_was_forgotten_is_new_when_it_comes_again() -> None:
    stage = scorer(Teacher(), capacity=2)
    stage.score(shown("r1", 0, "a b"))
    assert len(scores(stage.score(shown("r2", 5 * SECOND, "a b")))) == 2
    stage.score(shown("r3", 6 * SECOND, "c d"))
    assert scores(stage.score(shown("r4", 20 * SECOND, "a b"))) == []
    assert outcome(2, 1, 1_000, 4) == outcome(2, 50, 1_000, 4), "however many are announced together"


def test_slates_that_the_join_dropped_are_forgotten_after_the_window() -> None:
    stage = scorer(Teacher(), open_for_ms=10 * MINUTE)
    stage.score(shown("r1", 0))
    stage.score(shown("r2", 11 * MINUTE))
    assert scores(stage.score(closed("r1", 0))) == []


def test_a_score_written_before_there_was_a_second_logit_can_still_be_read() -> None:
    old = msgspec.msgpack.encode(["a", -512, "v1@0", True])
    assert msgspec.msgpack.decode(old, type=ReferenceScore) == ReferenceScore("a", -512, "v1@0", True, None)
