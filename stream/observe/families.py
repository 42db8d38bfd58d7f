"""The metrics of the stages as tables: name, meaning, labels, and how each is read from what a stage knows.

Units are in the names: ``_seconds`` and ``_bytes``, ``_timestamp_seconds`` for moments of event time, ``_ratio`` for
numbers without a unit. What only grows is a counter, and Prometheus appends ``_total`` to its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from heft.stream.join.joiner import DROPPED

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.models.rankers.head import Head
    from heft.stream.events.messages import ScoredReader
    from heft.stream.join.joiner import Joiner
    from heft.stream.learn.learner import Learner
    from heft.stream.score.requests import ScoreCounts

Source = TypeVar("Source")
Labels: TypeAlias = tuple[str, ...]
Values: TypeAlias = Iterable[tuple[Labels, float]]
"""Pairs of label values and the number that belongs to them."""

QUALITY = {
    "auc": "heft_auc_ratio",
    "logloss": "heft_log_loss_nats",
    "ne": "heft_normalised_entropy_ratio",
    "ne_raw": "heft_normalised_entropy_raw_ratio",
    "calibration": "heft_calibration_ratio",
    "ece": "heft_calibration_error_ratio",
    "gauc": "heft_gauc_ratio",
    "ndcg_at_10": "heft_ndcg_at_10_ratio",
    "mrr": "heft_mrr_ratio",
    "auc_rank": "heft_position_free_auc_ratio",
}
"""Windowed metrics of `models.evaluate.prequential`, and their names here."""


class Family(NamedTuple, Generic[Source]):
    """One metric of something that a worker has several of: the join of each partition, say.

    ``labels`` come after those that name the source itself.
    """

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    meaning: str
    values: Callable[[Source], Values]
    labels: Labels = ()


def gauge(name: str, meaning: str, value: Callable[[Source], float]) -> Family[Source]:
    """Return a gauge with one number for each source."""
    return Family(GaugeMetricFamily, name, meaning, lambda source: [((), value(source))])


def moment(name: str, meaning: str, at_ms: Callable[[Source], int]) -> Family[Source]:
    """Return a gauge with a moment of event time for each source, of 0 milliseconds none: it is not known yet."""
    return Family(GaugeMetricFamily, name, meaning, lambda source: [((), at / 1000)] if (at := at_ms(source)) else [])


def counter(name: str, meaning: str, value: Callable[[Source], float]) -> Family[Source]:
    """Return a counter with one number for each source."""
    return Family(CounterMetricFamily, name, meaning, lambda source: [((), value(source))])


def gauges(name: str, meaning: str, labels: Labels, values: Callable[[Source], Values]) -> Family[Source]:
    """Return a gauge with several numbers for each source, told apart by labels."""
    return Family(GaugeMetricFamily, name, meaning, values, labels)


def counters(name: str, meaning: str, labels: Labels, values: Callable[[Source], Values]) -> Family[Source]:
    """Return a counter with several numbers for each source, told apart by labels."""
    return Family(CounterMetricFamily, name, meaning, values, labels)


def from_zero(names: Sequence[str], counts: Mapping[str, int]) -> Values:
    """Return all counts, also of what has never happened: a rate sees the first event only if it starts from 0."""
    return [((name,), n) for name, n in {**dict.fromkeys(names, 0), **counts}.items()]


# ---------------------------------------------------------------- join


def _fates(join: Joiner) -> Values:
    return [((kind, fate), n) for kind, by_fate in join.fates.items() for fate, n in by_fate.items()]


JOIN: tuple[Family[Joiner], ...] = (
    counters("heft_events", "Events by fate", ("type", "fate"), _fates),
    counters(
        "heft_join_dropped", "Joined state dropped to stay bounded", ("what",),
        lambda join: from_zero(DROPPED, join.dropped),
    ),
    gauges(
        "heft_log_events", "Events by fate since the log began, those that earlier workers took included",
        ("type", "fate"), _fates,
    ),
    gauges(
        "heft_watermark_timestamp_seconds", "How far each input's event time has come; no sample while unknown",
        ("topic",),
        lambda join: [
            ((topic,), at_ms / 1000) for topic, at_ms in zip(join.names, join.watermarks, strict=True) if at_ms
        ],
    ),
    gauges(
        "heft_input_idle", "1 while an input has run dry", ("topic",),
        lambda join: [((topic,), idle) for topic, idle in zip(join.names, join.idle, strict=True)],
    ),
    moment("heft_frontier_timestamp_seconds", "Event time below which all is decided", lambda join: join.frontier),
    gauge("heft_join_pending_events", "Events that have no fate yet", lambda join: join.pending),
    gauge("heft_join_open_slates", "Slates whose click window runs", lambda join: join.open_slates),
    gauge("heft_join_open_clicks", "Clicks whose conversion window runs", lambda join: join.open_clicks),
)  # fmt: skip


# ---------------------------------------------------------------- score

SCORES: tuple[Family[Mapping[str, int]], ...] = (
    counters(
        "heft_scores", "Reference scores that went along", ("when",),
        lambda by_when: [((when,), n) for when, n in by_when.items()],
    ),
)  # fmt: skip


class TeacherNow(NamedTuple):
    """What a worker knows of the teacher that it asks."""

    counts: ScoreCounts
    """What happened to the requests of the teacher's versions, summed."""
    ready: bool
    """Whether the version in use is loaded or reached."""
    waiting: int
    """Pairs that wait for a score."""


TEACHER: tuple[Family[TeacherNow], ...] = (
    counters(
        "heft_teacher_pairs", "Pairs asked for, those that were known or asked for already, and what became of them",
        ("what",), lambda teacher: from_zero((), teacher.counts.pairs),
    ),
    counters(
        "heft_scores_missing", "Items that went on without a score", ("reason",),
        lambda teacher: from_zero((), teacher.counts.missing),
    ),
    counters(
        "heft_teacher_failures", "Batches that the teacher did not answer", ("reason",),
        lambda teacher: from_zero((), teacher.counts.failures),
    ),
    gauge("heft_teacher_ready", "1 once the teacher is loaded or reached", lambda teacher: teacher.ready),
    gauge("heft_teacher_waiting_pairs", "Pairs that wait for a score", lambda teacher: teacher.waiting),
)  # fmt: skip

READERS: tuple[Family[Sequence[ScoredReader]], ...] = (
    counter(
        "heft_repeated_records", "Records that had been read before, dropped",
        lambda readers: sum(reader.repeated for reader in readers),
    ),
    counter(
        "heft_fenced_messages", "Messages of a worker that another had replaced, dropped",
        lambda readers: sum(reader.fenced for reader in readers),
    ),
)  # fmt: skip


# ---------------------------------------------------------------- learn

LEARN: tuple[Family[Learner], ...] = (
    counter("heft_samples", "Samples learned", lambda learner: learner.samples),
    counters(
        "heft_learner_skipped", "What was dropped or not measured", ("what",),
        lambda learner: [((what,), n) for what, n in learner.counts.items()],
    ),
    counter(
        "heft_ignored_fields", "Fields of slates and items that had no room",
        lambda learner: learner.featurizer.ignored_fields,
    ),
    counter(
        "heft_history_evicted", "Keys of the history dropped for newer ones",
        lambda learner: learner.featurizer.history.evicted,
    ),
    counters(
        "heft_reference_samples", "Samples whose reference score was there, or why not", ("head", "arm", "score"),
        lambda learner: [
            ((name, arm, why), n)
            for name, head in heads_of(learner)
            for arm, reasons in head.missing().items()
            for why, n in reasons.items()
        ],
    ),
    gauge(
        "heft_log_samples", "Samples learned since the log began, those that earlier workers learned included",
        lambda learner: learner.samples,
    ),
    moment("heft_learner_timestamp_seconds", "The largest due time learned", lambda learner: learner.clock_ms),
    gauge("heft_learner_open_slates", "Slates that wait for their labels", lambda learner: learner.open_slates),
    gauge("heft_learner_open_clicks", "Clicks that wait to mature", lambda learner: learner.open_clicks),
)  # fmt: skip


def heads_of(learner: Learner) -> tuple[tuple[str, Head], tuple[str, Head]]:
    """Return the heads of a learner with their names."""
    return ("click", learner.click), ("conversion", learner.order)


class HeadNow(NamedTuple):
    """A head, and how good its newest samples were predicted when that was last measured."""

    head: Head
    quality: Mapping[str, Mapping[str, float]]
    """Metrics by arm."""

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in their order."""
        return [arm.name for arm in self.head.arms]


def _believed(now: HeadNow) -> Values:
    return [((arm,), float(weight)) for arm, weight in zip(now.arms, now.head.hedge.weights, strict=True)]


def _benched(now: HeadNow) -> Values:
    return [((arm,), float(benched)) for arm, benched in zip(now.arms, now.head.hedge.benched, strict=True)]


def _interval(name: str, mean: float, half_width: float) -> Values:
    return [((name, "mean"), mean), ((name, "low"), mean - half_width), ((name, "high"), mean + half_width)]


def _against_uniform(now: HeadNow) -> Values:
    sequence = now.head.hedge.sequence
    rows = zip([*now.arms, "mixture"], sequence.mean, sequence.half_width, strict=True)
    return chain.from_iterable(_interval(name, float(mean), float(half)) for name, mean, half in rows)


def _decisions(now: HeadNow) -> list[tuple[str, Any]]:
    named = zip([*now.arms, "mixture"], list(now.head.hedge.decisions), strict=True)
    return [(name, decision) for name, decision in named if decision is not None]


def _decision_times(now: HeadNow) -> Values:
    return [((name, "out" if each.out else "in"), each.at_ms / 1000) for name, each in _decisions(now)]


def _decision_evidence(now: HeadNow) -> Values:
    return chain.from_iterable(_interval(name, each.mean, each.half_width) for name, each in _decisions(now))


def _reference_slope(now: HeadNow) -> Values:
    reference = now.head.teacher
    return [((reference.version,), reference.slope)] if reference is not None and reference.takeovers else []


def _effective_samples(now: HeadNow) -> Values:
    shares = zip(now.arms, now.head.metrics.effective_samples(), strict=False)  # the mixture learns nothing
    return chain.from_iterable(
        [((arm, "positive"), positive), ((arm, "negative"), negative)] for arm, (negative, positive) in shares
    )


def _quality(key: str) -> Callable[[HeadNow], Values]:
    return lambda now: [((arm,), metrics[key]) for arm, metrics in now.quality.items()]


HEADS: tuple[Family[HeadNow], ...] = (
    gauges("heft_mixture_weight_ratio", "How much the mixture believes an arm", ("arm",), _believed),
    gauges("heft_arm_benched", "1 while an arm is proven worse than uniform", ("arm",), _benched),
    gauges(
        "heft_arm_against_uniform_nats",
        "Log loss a slate less that of uniform: mean, and bounds of a 95 % confidence sequence",
        ("arm", "bound"), _against_uniform,
    ),
    gauges(
        "heft_arm_decision_timestamp_seconds",
        "Event time of the last decision about an arm, or about the mixture: put out, or let in again",
        ("arm", "decision"), _decision_times,
    ),
    gauges(
        "heft_arm_decision_nats",
        "Evidence of that decision: log loss a slate less that of uniform, mean and bounds of the confidence sequence",
        ("arm", "bound"), _decision_evidence,
    ),
    gauges(
        "heft_reference_slope_ratio", "What a unit of the teacher's logit is worth here; near 0: nothing", ("version",),
        _reference_slope,
    ),
    gauges(
        "heft_effective_samples_ratio", "Effective share of the samples", ("arm", "label"), _effective_samples
    ),
    *(gauges(name, f"{key} over the newest samples", ("arm",), _quality(key)) for key, name in QUALITY.items()),
)  # fmt: skip
