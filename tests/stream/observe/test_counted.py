"""A counter says what this process did: it never falls, and never jumps by what a snapshot holds."""

from __future__ import annotations

import re

from prometheus_client import generate_latest

from heft.models.features.config import FeatureConfig
from heft.models.rankers.arms import Arm, RankerConfig
from heft.models.records import Record
from heft.stream.learn.learner import Learner, LearnerConfig
from heft.stream.observe.exporter import Metrics, Observed, Scores
from heft.stream.observe.health import Health
from heft.stream.state import codec
from tests.support.builders import click, crowd, impression, joined

SMALL = LearnerConfig(
    features=FeatureConfig(history_bits=8),
    ranker=RankerConfig(click_bits=10, conversion_bits=10, click_arms=(Arm("uniform"),)),
)
DAY = 86_400_000


def records(request: str) -> list[Record]:
    return joined([impression(request), click(request), *crowd(3 * DAY)])[0]


def learn(learner: Learner, request: str) -> None:
    for record in records(request):
        learner.apply(0, record)
    learner.flush()


class Opened:
    """What a worker opens for a partition."""


class Worker:
    """A worker as its metrics see it: the learners of the shards that it has now."""

    def __init__(self) -> None:
        self.learners: dict[int, Learner] = {}
        self.opened: dict[tuple[str, int], Opened] = {}
        self.metrics = Metrics(lambda: Observed(learners=self.learners, opened=self.opened), Health(most_lag=100))

    def open(self, learner: Learner) -> Learner:
        self.learners, self.opened = {0: learner}, {("learn", 0): Opened()}
        self.metrics.look()
        return learner

    def close(self) -> None:
        self.metrics.look()
        self.learners, self.opened = {}, {}

    def exported(self, name: str) -> float:
        found = re.search(rf'^{name}{{shard="0"}} (\S+)$', generate_latest(self.metrics.registry).decode(), re.M)
        assert found, name
        return float(found[1])


def copy_of(learner: Learner) -> Learner:
    """A learner that goes on from another's snapshot, as a restarted worker does."""
    state, segments = learner.state()
    encoded = {name: codec.decode(codec.encode(make())) for name, make in segments}
    return Learner.restore(SMALL, codec.decode(codec.encode(state)), encoded)


def test_what_came_out_of_a_snapshot_is_no_traffic_of_this_process() -> None:
    before = Learner(SMALL)
    learn(before, "r1")
    worker = Worker()
    learner = worker.open(copy_of(before))
    assert worker.exported("heft_samples_total") == 0.0
    assert worker.exported("heft_log_samples") == before.samples > 0
    learn(learner, "r2")
    assert worker.exported("heft_samples_total") == learner.samples - before.samples > 0
    assert worker.exported("heft_log_samples") == learner.samples


def test_a_partition_that_goes_and_comes_back_with_what_another_counted_moves_no_counter() -> None:
    worker = Worker()
    learner = worker.open(Learner(SMALL))
    learn(learner, "r1")
    worker.close()
    mine = learner.samples
    assert worker.exported("heft_samples_total") == mine, "what was done stays, also what nobody had looked at"
    elsewhere = copy_of(learner)
    learn(elsewhere, "r2")
    back = worker.open(copy_of(elsewhere))
    assert worker.exported("heft_samples_total") == mine
    learn(back, "r3")
    assert worker.exported("heft_samples_total") == mine + back.samples - elsewhere.samples


def test_an_older_snapshot_makes_no_counter_fall() -> None:
    worker, old = Worker(), Learner(SMALL)
    learn(old, "r1")
    learner = worker.open(copy_of(old))
    learn(learner, "r2")
    counted = worker.exported("heft_samples_total")
    worker.close()
    worker.open(copy_of(old))
    assert worker.exported("heft_samples_total") == counted > 0


def test_a_count_that_a_snapshot_does_not_hold_begins_where_it_was() -> None:
    """What the score stage counts begins anew with each opening."""
    scores: dict[int, dict[str, int]] = {0: {"on_time": 5}}
    opened = {("score", 0): Opened()}
    metrics = Metrics(lambda: Observed(scores=Scores(scores), opened=opened), Health(most_lag=100))
    line = 'heft_scores_total{partition="0",when="on_time"} '
    metrics.look()
    scores[0]["on_time"] = 7
    metrics.look()
    scores[0], opened["score", 0] = {}, Opened()
    metrics.look()
    scores[0]["on_time"] = 1
    assert f"{line}3.0" in generate_latest(metrics.registry).decode()
