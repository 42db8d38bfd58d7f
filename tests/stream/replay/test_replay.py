"""Replay: the same log gives the same digest, however it is stored; the report says what came in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from heft.models.records import Value
from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.config.settings import load
from heft.stream.events.wire import Item
from heft.stream.kafka.local_broker import running_broker
from heft.stream.kafka.publish import publish
from heft.stream.kafka.topics import Topics
from heft.stream.replay.replay import replay_logs, replay_topics, write_report
from heft.stream.score.replay_source import PairScores, ReplaySource
from tests.support.builders import DAY, crowd, impression
from tests.support.logs import traffic, written

CONFIG = {"HEFT_RANKER__CLICK_BITS": "12", "HEFT_RANKER__CONVERSION_BITS": "10", "HEFT_FEATURES__HISTORY_BITS": "8"}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_log_gives_the_same_digest_however_it_is_stored(tmp_path: Path, suffix: str) -> None:
    events = [*traffic(40), *crowd(2 * DAY)]
    config = load(environ=CONFIG)
    plain, _ = replay_logs([written(tmp_path / "plain.jsonl", events)], config)
    other, _ = replay_logs([written(tmp_path / f"other.{suffix}", events)], config)
    assert plain.report(1.0)["digest"] == other.report(1.0)["digest"]


def test_the_report_says_what_came_in_and_what_became_of_it(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", [*traffic(40), *crowd(2 * DAY)])
    lines: list[int] = []
    stages, _ = replay_logs([log], load(environ=CONFIG), lines.append)
    report = json.loads(write_report(stages.report(2.0), tmp_path / "out").read_text())
    assert sum(report["events"].values()) == sum(report["fates"].values()) == sum(lines)
    assert report["samples"] == 160
    assert report["samples_per_second"] == 80.0
    assert report["heads"]["click"]["arms"]["uniform"]["ne"] > 0
    assert set(report["heads"]["click"]["arms"]["mixture"]) >= {"auc", "ne_raw", "auc_rank", "second_half"}


def test_the_report_says_what_was_left_out(tmp_path: Path) -> None:
    crowded: dict[str, Value] = {f"n{number:03d}": "x" for number in range(200)}
    items = [Item("a", features=crowded), Item("c", text="no number"), Item("b", seen=False)]
    slate = msgspec.structs.replace(impression(), items=items)
    many = [impression(f"more{n}", at=n, items=[f"{n}-{m}" for m in range(9)]) for n in range(9)]
    log = written(tmp_path / "log.jsonl", [slate, *many, *crowd(2 * DAY)])
    scores = PairScores(lambda pairs: [None if "no number" in pair.item else Logits(1) for pair in pairs])

    def source() -> ReplaySource:
        return ReplaySource(scores, TeacherDescription("v1@0", "{query} | {item.text}"))

    config = load(environ={**CONFIG, "HEFT_FEATURES__HISTORY_BITS": "3"})
    report = replay_logs([log], config, score_sources=source)[0].report(1.0)
    assert report["skipped"] == {"unseen": 1}
    assert report["ignored_fields"] > 100
    assert report["history_evicted"] > 0
    assert report["scores_not_finite"] == 1
    assert replay_logs([log], config)[0].report(1.0)["scores_not_finite"] == 0, "there is no teacher"


def test_what_is_no_event_is_counted_and_not_kept(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", traffic(40))
    log.write_bytes(log.read_bytes() + b'{"type":"clack"}\n' * 600)
    stages, _ = replay_logs([log], load(environ=CONFIG))
    assert stages.report(1.0)["fates"]["invalid"] == 600
    assert stages.joiners[0].rejected == []


def test_several_logs_are_partitions_of_one_stream(tmp_path: Path) -> None:
    logs = [written(tmp_path / f"{n}.jsonl", [*traffic(30, seed=n), *crowd(2 * DAY)]) for n in range(2)]
    stages, _ = replay_logs(logs, load(environ=CONFIG))
    assert stages.report(1.0)["samples"] == 30 * 4 * 2
    assert stages.learners[0].counts["shown_out_of_order"] == 0


def test_a_replay_with_a_teacher_scores_each_pair_once_for_all_its_sources(tmp_path: Path) -> None:
    asked: list[Pair] = []

    def score(pairs: Sequence[Pair]) -> list[Logits | None]:
        asked.extend(pairs)
        return [Logits(len(pair.item)) for pair in pairs]

    scores = PairScores(score)
    logs = [written(tmp_path / f"{n}.jsonl", [*traffic(30, seed=n), *crowd(2 * DAY)]) for n in range(2)]

    def source() -> ReplaySource:
        return ReplaySource(scores, TeacherDescription("v1@0", "{query} | {item.text}"))

    stages, _ = replay_logs(logs, load(environ=CONFIG), score_sources=source)
    assert sum(stages.report(1.0)["scores"].values()) == 30 * 4 * 2
    assert 0 < len(asked) == len(set(asked)) == scores.scored


@pytest.mark.kafka
def test_topics_replay_to_the_digest_of_the_log_they_were_filled_from(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", [*traffic(60), *crowd(2 * DAY)])
    with running_broker() as bootstrap:
        config = load(environ={**CONFIG, "HEFT_KAFKA__BOOTSTRAP": bootstrap, "HEFT_KAFKA__PARTITIONS": "1"})
        with Topics(config) as topics:
            topics.create()
        publish(log, config)
        from_topics, _ = replay_topics(config)
    from_log, _ = replay_logs([log], config)
    reports = [stages.report(1.0) for stages in (from_topics, from_log)]
    assert reports[0]["fates"] == reports[1]["fates"]
    assert reports[0]["digest"] == reports[1]["digest"]
