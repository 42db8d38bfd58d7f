"""Every Prometheus metric, once. The stages know none of them: a scrape reads what the stages know about themselves.

Units are in the names: ``_seconds`` and ``_bytes``, ``_timestamp_seconds`` for moments of event time, ``_ratio`` for
numbers without a unit, ``_total`` for what only grows.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from heft.stream.join.joiner import DROPPED
from heft.stream.score.requests import FAILURES, MISSING, PAIRS

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.models.rankers.head import Head
    from heft.stream.events.messages import ScoredReader
    from heft.stream.join.joiner import Joiner
    from heft.stream.learn.learner import Learner
    from heft.stream.score.requests import ScoreRequests

_DELAYS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_STALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

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


class Missing(NamedTuple):
    """What a worker went on without."""

    snapshots: int = 0
    """Damaged snapshots passed over."""
    records: Mapping[tuple[str, int], int] = {}
    """Offsets that were gone, by topic and partition."""
    gaps: Mapping[tuple[str, int], int] = {}
    """How often a topic did not hold what was expected, by topic and partition."""
    failures: int = 0
    """Times the snapshot store could not be reached or refused; each was, or will be, tried again."""
    away_seconds: float = 0.0
    """How long the snapshot store has failed by now; 0 while all is well."""


class Scores(NamedTuple):
    """What the score stage has done."""

    passed: Mapping[int, Mapping[str, int]] = {}
    """Scores that went along, by partition and by when: on time or later."""
    desk: ScoreRequests | None = None
    """Where the worker's pairs wait for the teacher; None without one."""


class Metrics:
    """What one worker exports.

    Parameters
    ----------
    joiners, learners
        Functions that return the joins and learners of the partitions this worker has now, by partition or shard.
    lag
        Function that returns the records not yet taken, by (stage, topic, partition).
    missing
        Function that returns what the worker went on without.
    scores
        Function that returns what the score stage has done.
    readers
        Function that returns the readers of messages, by stage and partition.
    """

    def __init__(
        self,
        joiners: Callable[[], dict[int, Joiner]],
        learners: Callable[[], dict[int, Learner]],
        lag: Callable[[], dict[tuple[str, str, int], int]],
        missing: Callable[[], Missing] = Missing,
        scores: Callable[[], Scores] = Scores,
        readers: Callable[[], Mapping[tuple[str, int], Sequence[ScoredReader]]] = dict,
    ) -> None:
        self.registry = CollectorRegistry()
        self._joiners, self._learners, self._lag, self._missing, self._scores = joiners, learners, lag, missing, scores
        self._readers = readers
        self._snapshots: dict[str, tuple[float, int]] = {}
        self.stage_delay = Histogram(
            "heft_stage_delay_seconds",
            "Wall time from the append, or the tick, that made a record due until the stage had taken it",
            ["stage"],
            buckets=_DELAYS,
            registry=self.registry,
        )
        self.snapshot_stall = Histogram(
            "heft_snapshot_stall_seconds",
            "How long a stage stood still to copy its state",
            ["stage"],
            buckets=_STALLS,
            registry=self.registry,
        )
        self.scoring_delay = Histogram(
            "heft_scoring_delay_seconds",
            "From the first slate that asked for a pair until its score was known",
            buckets=_DELAYS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve ``/metrics`` at `address`; return the port.

        A port that is taken, by another worker on this host say, is replaced by a free one, as 0 is.
        """
        try:
            server, _ = start_http_server(port, address, registry=self.registry)
        except OSError:
            server, _ = start_http_server(0, address, registry=self.registry)
        return int(server.server_port)

    @staticmethod
    def where(wanted: int, port: int) -> str:
        """Return what a worker says of its endpoint: where it is, and what to do where the port was taken.

        Examples
        --------
        >>> Metrics.where(9464, 9464)
        'metrics at http://127.0.0.1:9464/metrics'
        """
        at = f"metrics at http://127.0.0.1:{port}/metrics"
        if wanted in (0, port):
            return at
        return (
            f"{at} instead of port {wanted}, which is taken, by another worker on this host perhaps. Prometheus reads "
            f"this one only if it is told port {port}, and the next start changes that: give each worker a port of its "
            f"own (HEFT_METRICS__PORT={wanted + 1} heft worker) and name them all in monitoring/prometheus.yml"
        )

    def snapshot_written(self, owner: str, at_seconds: float, size: int) -> None:
        """Note that a snapshot was written."""
        self._snapshots[owner] = (at_seconds, size)

    def collect(self) -> Iterator[Metric]:
        """Yield all that is known now; called by a scrape."""
        yield from _join_metrics(self._joiners())
        yield from _score_metrics(self._scores())
        yield from _learn_metrics(self._learners())
        yield from _reader_metrics(self._readers())
        lag = GaugeMetricFamily("heft_lag_records", "Records not yet taken", labels=["stage", "topic", "partition"])
        for (stage, topic, partition), records in self._lag().items():
            lag.add_metric([stage, topic, str(partition)], records)
        yield lag
        taken = GaugeMetricFamily(
            "heft_snapshot_timestamp_seconds", "When the newest snapshot was written", labels=["owner"]
        )
        size = GaugeMetricFamily("heft_snapshot_bytes", "Bytes written for the newest snapshot", labels=["owner"])
        for owner, (at_seconds, written) in self._snapshots.items():
            taken.add_metric([owner], at_seconds)
            size.add_metric([owner], written)
        yield taken
        yield size
        yield from _missing_metrics(self._missing())


def _missing_metrics(missing: Missing) -> Iterable[Metric]:
    labels = ["topic", "partition"]
    damaged = CounterMetricFamily("heft_snapshots_damaged", "Damaged snapshots passed over", value=missing.snapshots)
    lost = CounterMetricFamily("heft_lost_records", "Offsets that were gone, and were accepted as lost", labels=labels)
    gaps = CounterMetricFamily("heft_gaps", "Times a topic did not hold what was expected, accepted", labels=labels)
    for family, counts in ((lost, missing.records), (gaps, missing.gaps)):
        for (topic, partition), n in counts.items():
            family.add_metric([topic, str(partition)], n)
    failures = CounterMetricFamily(
        "heft_snapshot_failures", "Times the snapshot store failed; each is tried again", value=missing.failures
    )
    away = GaugeMetricFamily(
        "heft_snapshot_store_away_seconds", "How long the snapshot store has failed by now", value=missing.away_seconds
    )
    return damaged, lost, gaps, failures, away


def _join_metrics(joiners: dict[int, Joiner]) -> Iterable[Metric]:
    labels = ["partition"]
    fates = CounterMetricFamily("heft_events", "Events by fate", labels=[*labels, "type", "fate"])
    dropped = CounterMetricFamily("heft_join_dropped", "Joined state dropped to stay bounded", labels=[*labels, "what"])
    watermark = GaugeMetricFamily(
        "heft_watermark_timestamp_seconds", "How far each input's event time has come", labels=[*labels, "topic"]
    )
    idle = GaugeMetricFamily("heft_input_idle", "1 while an input has run dry", labels=[*labels, "topic"])
    frontier = GaugeMetricFamily(
        "heft_frontier_timestamp_seconds", "Event time below which all is decided", labels=labels
    )
    pending = GaugeMetricFamily("heft_join_pending_events", "Events that have no fate yet", labels=labels)
    slates = GaugeMetricFamily("heft_join_open_slates", "Slates whose click window runs", labels=labels)
    clicks = GaugeMetricFamily("heft_join_open_clicks", "Clicks whose conversion window runs", labels=labels)
    for partition, joiner in joiners.items():
        at = str(partition)
        for kind, by_fate in joiner.fates.items():
            for fate, n in list(by_fate.items()):
                fates.add_metric([at, kind, fate], n)
        for what, n in _from_zero(DROPPED, joiner.dropped):
            dropped.add_metric([at, what], n)
        for topic, at_ms, quiet in zip(joiner.names, joiner.watermarks, joiner.idle, strict=True):
            watermark.add_metric([at, topic], at_ms / 1000)
            idle.add_metric([at, topic], quiet)
        frontier.add_metric([at], joiner.frontier / 1000)
        pending.add_metric([at], joiner.pending)
        slates.add_metric([at], joiner.open_slates)
        clicks.add_metric([at], joiner.open_clicks)
    return fates, dropped, watermark, idle, frontier, pending, slates, clicks


def _score_metrics(scores: Scores) -> Iterable[Metric]:
    passed = CounterMetricFamily("heft_scores", "Reference scores that went along", labels=["partition", "when"])
    for partition, by_when in scores.passed.items():
        for when, n in list(by_when.items()):
            passed.add_metric([str(partition), when], n)
    yield passed
    desk = scores.desk
    if desk is None:
        return
    pairs = CounterMetricFamily(
        "heft_teacher_pairs",
        "Pairs asked for, those that were known or asked for already, and what became of them",
        labels=["what"],
    )
    without = CounterMetricFamily("heft_scores_missing", "Items that went on without a score", labels=["reason"])
    failures = CounterMetricFamily(
        "heft_teacher_failures", "Batches that the teacher did not answer", labels=["reason"]
    )
    for family, names, counts in (
        (pairs, PAIRS, desk.counts), (without, MISSING, desk.missing), (failures, FAILURES, desk.failures)
    ):  # fmt: skip
        for what, n in _from_zero(names, counts):
            family.add_metric([what], n)
    yield from (pairs, without, failures)
    yield GaugeMetricFamily("heft_teacher_ready", "1 once the teacher is loaded or reached", value=desk.ready)
    yield GaugeMetricFamily("heft_teacher_waiting_pairs", "Pairs that wait for a score", value=desk.waiting)


def _from_zero(names: Sequence[str], counts: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    """Return all counts, those that have not begun too: a rate sees the first event only from 0 on."""
    return {**dict.fromkeys(names, 0), **counts}.items()


def _reader_metrics(readers: Mapping[tuple[str, int], Sequence[ScoredReader]]) -> Iterable[Metric]:
    labels = ["stage", "partition"]
    repeated = CounterMetricFamily("heft_repeated_records", "Records that had been read before, dropped", labels=labels)
    fenced = CounterMetricFamily(
        "heft_fenced_messages", "Messages of a worker that another had replaced, dropped", labels=labels
    )
    for (stage, partition), its in readers.items():
        repeated.add_metric([stage, str(partition)], sum(reader.repeated for reader in its))
        fenced.add_metric([stage, str(partition)], sum(reader.fenced for reader in its))
    return repeated, fenced


def _learn_metrics(learners: dict[int, Learner]) -> Iterator[Metric]:
    labels = ["shard"]
    samples = CounterMetricFamily("heft_samples", "Samples learned", labels=labels)
    counts = CounterMetricFamily("heft_learner_skipped", "What was dropped or not measured", labels=[*labels, "what"])
    ignored = CounterMetricFamily("heft_ignored_fields", "Fields of slates and items that had no room", labels=labels)
    evicted = CounterMetricFamily("heft_history_evicted", "Keys of the history dropped for newer ones", labels=labels)
    clock = GaugeMetricFamily("heft_learner_timestamp_seconds", "The largest due time learned", labels=labels)
    slates = GaugeMetricFamily("heft_learner_open_slates", "Slates that wait for their labels", labels=labels)
    clicks = GaugeMetricFamily("heft_learner_open_clicks", "Clicks that wait to mature", labels=labels)
    of_arm = [*labels, "head", "arm"]
    weight = GaugeMetricFamily("heft_mixture_weight_ratio", "How much the mixture believes a arm", labels=of_arm)
    benched = GaugeMetricFamily("heft_arm_benched", "1 while a arm is proven worse than uniform", labels=of_arm)
    against = GaugeMetricFamily(
        "heft_arm_against_uniform_nats",
        "Log loss a slate less that of uniform: mean, and bounds of a 95 % confidence sequence",
        labels=[*of_arm, "bound"],
    )
    decided = GaugeMetricFamily(
        "heft_arm_decision_timestamp_seconds",
        "Event time of the last decision about a arm, or about the mixture: put out, or let in again",
        labels=[*of_arm, "decision"],
    )
    evidence = GaugeMetricFamily(
        "heft_arm_decision_nats",
        "What decided: log loss a slate less that of uniform, mean and bounds of the confidence sequence",
        labels=[*of_arm, "bound"],
    )
    scores = CounterMetricFamily(
        "heft_reference_samples", "Samples whose reference score was there, or why not", labels=[*of_arm, "score"]
    )
    slope = GaugeMetricFamily(
        "heft_reference_slope_ratio", "What a unit of the teacher's logit is worth here; near 0: nothing",
        labels=[*labels, "head", "version"],
    )  # fmt: skip
    ess = GaugeMetricFamily("heft_effective_samples_ratio", "Effective share of the samples", labels=[*of_arm, "label"])
    quality = {
        metric: GaugeMetricFamily(name, f"{metric} over the newest samples", labels=of_arm)
        for metric, name in QUALITY.items()
    }
    for shard, learner in learners.items():
        at = str(shard)
        samples.add_metric([at], learner.samples)
        for what, n in list(learner.counts.items()):
            counts.add_metric([at, what], n)
        ignored.add_metric([at], learner.featurizer.ignored_fields)
        evicted.add_metric([at], learner.featurizer.history.evicted)
        clock.add_metric([at], learner.clock_ms / 1000)
        slates.add_metric([at], learner.open_slates)
        clicks.add_metric([at], learner.open_clicks)
        for name, head in (("click", learner.click), ("conversion", learner.order)):
            for arm, believed in zip(head.arms, head.hedge.weights, strict=True):
                weight.add_metric([at, name, arm.name], float(believed))
            _head_metrics([at, name], head, quality, ess)
            _arm_metrics([at, name], head, benched, against, scores)
            _decision_metrics([at, name], head, decided, evidence)
            if head.teacher is not None and head.teacher.takeovers:
                slope.add_metric([at, name, head.teacher.version], head.teacher.slope)
    yield from (samples, counts, ignored, evicted, clock, slates, clicks, weight, benched, against, decided, evidence)
    yield from (scores, slope, ess)
    yield from quality.values()


def _arm_metrics(
    labels: list[str],
    head: Head,
    benched: GaugeMetricFamily,
    against: GaugeMetricFamily,
    scores: CounterMetricFamily,
) -> None:
    names = [arm.name for arm in head.arms]
    for name, out in zip(names, head.hedge.benched, strict=True):
        benched.add_metric([*labels, name], float(out))
    sequence = head.hedge.sequence
    for name, mean, half in zip([*names, "mixture"], sequence.mean, sequence.half_width, strict=True):
        _add_interval(against, [*labels, name], float(mean), float(half))
    for name, reasons in head.missing().items():
        for reason, n in reasons.items():
            scores.add_metric([*labels, name, reason], n)


def _decision_metrics(
    labels: list[str], head: Head, decided: GaugeMetricFamily, evidence: GaugeMetricFamily
) -> None:  # fmt: skip
    names = [*(arm.name for arm in head.arms), "mixture"]
    for name, decision in zip(names, list(head.hedge.decisions), strict=True):
        if decision is not None:
            decided.add_metric([*labels, name, "out" if decision.out else "in"], decision.at_ms / 1000)
            _add_interval(evidence, [*labels, name], decision.mean, decision.half_width)


def _add_interval(family: GaugeMetricFamily, labels: list[str], mean: float, half: float) -> None:
    for bound, value in (("mean", mean), ("low", mean - half), ("high", mean + half)):
        family.add_metric([*labels, bound], value)


def _head_metrics(labels: list[str], head: Head, quality: dict[str, Any], ess: GaugeMetricFamily) -> None:
    for arm, metrics in head.metrics.window()["arms"].items():
        for metric, family in quality.items():
            family.add_metric([*labels, arm], metrics[metric])
    whole = head.metrics.total()
    for column, arm in enumerate(head.arms):
        sizes = whole.metrics(column)
        for label in ("positive", "negative"):
            ess.add_metric([*labels, arm.name, label], sizes[f"ess_{label}"])


class Scrape:
    r"""One look at a worker's metrics.

    Parameters
    ----------
    text
        What ``/metrics`` answered; empty: nothing.

    Examples
    --------
    >>> seen = Scrape('shown_total{of="a",at="0"} 2.5\nshown_total{of="a",at="1"} 3\nshown_total{of="b",at="0"} 1')
    >>> seen.total("shown_total", of="a"), seen.by("of", "shown_total", at="0")
    (5.5, {'a': 2.5, 'b': 1.0})
    """

    def __init__(self, text: str = "") -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @classmethod
    def at(cls, port: int) -> Scrape:
        """Ask the worker whose endpoint has this port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return cls(answer.read().decode())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return cls()  # not up yet, or busy: the next look comes in a second

    @property
    def answered(self) -> bool:
        """Whether the worker is up and said anything."""
        return bool(self._values)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum over all samples of a metric that have these labels."""
        wanted = set(labels.items())
        return sum(value for (metric, has), value in self._values.items() if metric == name and wanted <= has)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return the same sums, one for each value of a label."""
        wanted, sums = set(labels.items()), dict[str, float]()
        for (metric, has), value in self._values.items():
            if metric == name and wanted <= has:
                of = dict(has).get(label, "")
                sums[of] = sums.get(of, 0.0) + value
        return sums

    def delay_quantile(self, stage: str, q: float) -> float:
        """Return a bound on a quantile of the delay of a stage, in seconds."""
        buckets = sorted(
            (float(dict(has)["le"]), value)
            for (metric, has), value in self._values.items()
            if metric == "heft_stage_delay_seconds_bucket" and ("stage", stage) in has
        )
        return next((bound for bound, n in buckets if n and n >= q * buckets[-1][1]), float("nan"))
