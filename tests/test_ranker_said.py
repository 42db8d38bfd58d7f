"""What the ranker said of a log, for a teacher that is to learn what is missing in it."""

from __future__ import annotations

from models.ranker import Arm, RankerConfig
from models.sample import Shown
from models.teacher.data import sample_key
from stream.learn import Learner, LearnerConfig, Outcome
from stream.ranker_said import RankerSaid
from tests.builders import joined
from tests.test_teacher_cli import events


def test_it_is_what_uniform_said_when_each_slate_was_shown_and_the_records_pass_untouched() -> None:
    records, _ = joined(list(events()))
    said = RankerSaid(LearnerConfig(ranker=RankerConfig(click_bits=12)))
    passed = list(said.read(records))
    assert passed == records

    shown = {record.slate.request_id: record.slate for record in records if isinstance(record, Shown)}
    expected: dict[int, float] = {}

    def note(outcome: Outcome) -> None:
        if outcome.head == "click":
            for item, p in zip(shown[outcome.request_id].items, outcome.shown.p[:, 0].tolist(), strict=True):
                expected[sample_key(outcome.request_id, item.item_id)] = p

    # Others learn beside it here, and change nothing of it.
    learner = Learner(LearnerConfig(ranker=RankerConfig(click_bits=12, click_arms=(Arm("uniform"), Arm("x")))), note)
    for record in records:
        learner.apply(0, record)
    learner.flush()
    assert said.clicks == expected
    assert len(expected) == 1_800
    assert len(set(expected.values())) > 500
