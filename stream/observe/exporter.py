"""What one worker exports to Prometheus. The stages know no metrics: a scrape reads what they know about themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from heft.stream.observe.families import (
    HEADS,
    JOIN,
    LEARN,
    READERS,
    SCORES,
    TEACHER,
    Family,
    Labels,
    counter,
    counters,
    gauge,
    heads,
    read,
)

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.stream.events.messages import ScoredReader
    from heft.stream.join.joiner import Joiner
    from heft.stream.learn.learner import Learner
    from heft.stream.score.requests import ScoreRequests

_DELAYS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_STALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


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
    """For how long the snapshot store has failed; 0 while all is well."""


class Scores(NamedTuple):
    """What the score stage has done."""

    passed: Mapping[int, Mapping[str, int]] = {}
    """Scores that went along, by partition and by when: on time or later."""
    requests: ScoreRequests | None = None
    """Where the worker's pairs wait for the teacher; None without one."""


class Observed(NamedTuple):
    """What a worker knows about itself when it is asked."""

    joiners: Mapping[int, Joiner] = {}
    """The joins of the partitions that this worker has now."""
    learners: Mapping[int, Learner] = {}
    """The learners of the shards that this worker has now."""
    lag: Mapping[tuple[str, str, int], int] = {}
    """Records not yet taken, by stage, topic and partition."""
    missing: Missing = Missing()
    scores: Scores = Scores()
    readers: Mapping[tuple[str, int], Sequence[ScoredReader]] = {}
    """The readers of messages, by stage and by partition or shard."""


class _Written(NamedTuple):
    at_seconds: float
    size: int


_SNAPSHOTS: tuple[Family[_Written], ...] = (
    gauge("heft_snapshot_timestamp_seconds", "When the newest snapshot was written", lambda it: it.at_seconds),
    gauge("heft_snapshot_bytes", "Bytes written for the newest snapshot", lambda it: it.size),
)
_LAG: tuple[Family[int], ...] = (gauge("heft_lag_records", "Records not yet taken", lambda records: records),)
_MISSING: tuple[Family[Missing], ...] = (
    counter("heft_snapshots_damaged", "Damaged snapshots passed over", lambda missing: missing.snapshots),
    counters(
        "heft_lost_records", "Offsets that were gone, and were accepted as lost", ("topic", "partition"),
        lambda missing: [((topic, str(partition)), n) for (topic, partition), n in missing.records.items()],
    ),
    counters(
        "heft_gaps", "Times a topic did not hold what was expected, accepted", ("topic", "partition"),
        lambda missing: [((topic, str(partition)), n) for (topic, partition), n in missing.gaps.items()],
    ),
    counter(
        "heft_snapshot_failures", "Times the snapshot store failed; each is tried again",
        lambda missing: missing.failures,
    ),
    gauge(
        "heft_snapshot_store_away_seconds", "For how long the snapshot store has failed",
        lambda missing: missing.away_seconds,
    ),
)  # fmt: skip


class Metrics:
    """What one worker exports.

    Parameters
    ----------
    observe
        Returns what the worker knows about itself; called by each scrape, in a thread of its own.
    """

    def __init__(self, observe: Callable[[], Observed]) -> None:
        self.registry = CollectorRegistry()
        self._observe = observe
        self._snapshots: dict[str, _Written] = {}
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

        Where the port is taken, by another worker on this host say, a free one is used, as it is for port 0.
        """
        try:
            server, _ = start_http_server(port, address, registry=self.registry)
        except OSError:
            server, _ = start_http_server(0, address, registry=self.registry)
        return int(server.server_port)

    @staticmethod
    def where(wanted: int, port: int) -> str:
        """Return the line that a worker logs about its endpoint: where it is, and what to do if a port was taken.

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
        """Note that a snapshot was written, when, and how many bytes."""
        self._snapshots[owner] = _Written(at_seconds, size)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now; the Prometheus client calls this for each scrape."""
        now = self._observe()
        yield from read(JOIN, ("partition",), {(str(each),): joiner for each, joiner in now.joiners.items()})
        passed: dict[Labels, Mapping[str, int]] = {
            (str(partition),): by_when for partition, by_when in now.scores.passed.items()
        }
        yield from read(SCORES, ("partition",), passed)
        if now.scores.requests is not None:
            yield from read(TEACHER, (), {(): now.scores.requests})
        yield from read(LEARN, ("shard",), {(str(shard),): learner for shard, learner in now.learners.items()})
        yield from read(HEADS, ("shard", "head"), heads(now.learners))
        readers: dict[Labels, Sequence[ScoredReader]] = {
            (stage, str(n)): each for (stage, n), each in now.readers.items()
        }
        yield from read(READERS, ("stage", "partition"), readers)
        lag: dict[Labels, int] = {(stage, topic, str(n)): left for (stage, topic, n), left in now.lag.items()}
        yield from read(_LAG, ("stage", "topic", "partition"), lag)
        yield from read(_SNAPSHOTS, ("owner",), {(owner,): written for owner, written in self._snapshots.items()})
        yield from read(_MISSING, (), {(): now.missing})
