"""What the ranker said of a log, for a teacher that is to learn what is missing in it."""

from __future__ import annotations

from pathlib import Path

from heft.models.rankers.arms import Arm, RankerConfig
from heft.models.records import Shown
from heft.models.teacher.data.log_samples import sample_key
from heft.stream.config.settings import Config
from heft.stream.events.wire import Impression, encode
from heft.stream.learn.learner import Learner, LearnerConfig, Outcome
from heft.stream.teacher.commands import read_log
from heft.stream.teacher.ranker_baseline import RankerBaseline
from tests.support.builders import joined
from tests.support.teacher_log import events


def test_logs_of_partitions_are_read_in_the_order_of_time_whatever_the_order_they_are_named_in(tmp_path: Path) -> None:
    ours = list(events())
    logs = [tmp_path / f"{n}.jsonl" for n in range(2)]
    for n, path in enumerate(logs):
        its = (event for event in ours if event.user_id.startswith("crowd") or int(event.user_id[1:]) % 2 == n)
        path.write_bytes(b"".join(encode(event) + b"\n" for event in its))
    one_way, other_way = (list(read_log(named, Config())) for named in (logs, logs[::-1]))
    keys = [record.key for record in one_way]
    assert keys == sorted(keys)
    assert [record.key for record in other_way] == keys
    requests = {record.slate.request_id for record in one_way if isinstance(record, Shown)}
    assert requests == {event.request_id for event in ours if isinstance(event, Impression)}


def test_it_is_what_uniform_said_when_each_slate_was_shown_and_the_records_pass_untouched() -> None:
    records, _ = joined(list(events()))
    said = RankerBaseline(LearnerConfig(ranker=RankerConfig(click_bits=12)))
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
