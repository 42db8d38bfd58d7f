"""What one worker exports to Prometheus, and how it answers who asks for its health.

The stages know no metrics: what they know about themselves is read on the event loop, where nothing changes meanwhile,
and written into a page that lies ready. A scrape costs the worker nothing, however many there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from platform import python_version
from time import thread_time
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from heft.stream.observe.counted import Counted
from heft.stream.observe.families import (
    HEADS,
    JOIN,
    LEARN,
    READERS,
    SCORES,
    TEACHER,
    Family,
    HeadNow,
    Labels,
    Source,
    TeacherNow,
    counter,
    counters,
    gauge,
    heads_of,
)
from heft.stream.observe.health import Health, Key
from heft.stream.observe.http_server import HttpServer, Page
from heft.stream.observe.quality import Quality

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.models.rankers.head import Head
    from heft.stream.events.messages import ScoredReader
    from heft.stream.join.joiner import Joiner
    from heft.stream.learn.learner import Learner

METRICS_KIND = CONTENT_TYPE_PLAIN_0_0_4
"""The content type of a page of metrics."""

STARTING = Page(b"The worker starts: nothing is known yet.\n", HTTPStatus.SERVICE_UNAVAILABLE)
"""The page of metrics before there are any."""

_DELAYS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_RESTORES = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_STALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_QUALITY_SECONDS = 5.0  # between two measurements of the newest samples
_LEAST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between two pages
_SHARE_OF_PAGES, _SHARE_OF_QUALITY = 0.01, 0.05  # of the event loop's time


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
    teacher: TeacherNow | None = None
    """None without a teacher."""


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
    opened: Mapping[Key, object] = {}
    """What was opened for each partition that this worker has: another object says that it was opened anew."""


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
        Returns what the worker knows about itself; called on its event loop.
    health
        How the worker is.
    """

    def __init__(self, observe: Callable[[], Observed], health: Health) -> None:
        self.registry = CollectorRegistry()
        self.health = health
        self._observe = observe
        self._snapshots: dict[str, _Written] = {}
        self._counted, self._quality = Counted(), Quality()
        self._opened: dict[Key, object] = {}
        self._page = STARTING
        histogram = partial(Histogram, registry=self.registry)
        self.stage_delay = histogram(
            "heft_stage_delay_seconds",
            "Wall time from the append, or the tick, that made a record due until the stage had taken it",
            ["stage"],
            buckets=_DELAYS,
        )
        self.snapshot_stall = histogram(
            "heft_snapshot_stall_seconds", "How long a stage stood still to copy its state", ["stage"], buckets=_STALLS
        )
        self.scoring_delay = histogram(
            "heft_scoring_delay_seconds",
            "From the first slate that asked for a pair until its score was known",
            buckets=_DELAYS,
        )
        self.restore = histogram(
            "heft_restore_seconds", "How long it took to restore the state of a partition", ["stage"], buckets=_RESTORES
        )
        self.rebalances = Counter(
            "heft_rebalances", "Times that partitions were given to this worker", registry=self.registry
        )
        self.retries = Counter(
            "heft_retries", "Calls to the cluster that failed and were made again", ["client"], registry=self.registry
        )
        for stage in ("join", "score", "learn"):
            self.restore.labels(stage)
        for client in ("producer", "consumer"):
            self.retries.labels(client)
        self._rendered = Gauge(
            "heft_exported_timestamp_seconds", "When these numbers were read from the stages", registry=self.registry
        )
        build = Info("heft_build", "The version that runs", registry=self.registry)
        build.info({"version": version("heft"), "python": python_version()})
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)

    # ---------------------------------------------------------------- what the worker says

    def restored(self, key: Key, seconds: float) -> None:
        """Note that the state of a partition is there, and how long that took."""
        self.restore.labels(key[0]).observe(seconds)
        self.health.restored(key)

    def snapshot_written(self, owner: str, at_seconds: float, size: int) -> None:
        """Note that a snapshot was written, when, and how many bytes."""
        self._snapshots[owner] = _Written(at_seconds, size)
        self.health.saved(owner)

    def look(self) -> None:
        """Read the counters of the stages: call it when partitions have been opened, and before one goes.

        What a stage comes with out of its snapshot, and what it does last, are known at these moments alone.
        """
        for _ in self.collect():
            pass

    # ---------------------------------------------------------------- over HTTP

    def serve(self, address: str, port: int) -> HttpServer:
        """Answer from now on, also while the event loop does not turn.

        Raises
        ------
        ListenError
            If the port is taken or the address is not this host's.
        """
        pages = {"/": self._index, "/metrics": lambda: self._page, "/livez": self._livez, "/readyz": self._readyz}
        return HttpServer(address, port, pages)

    @staticmethod
    def where(address: str, port: int) -> str:
        """Return the line that a worker logs about its endpoint.

        Examples
        --------
        >>> Metrics.where("127.0.0.1", 9464)
        'metrics at http://127.0.0.1:9464/metrics and health at /livez and /readyz'
        """
        host = f"[{address}]" if ":" in address else address
        return f"metrics at http://{host}:{port}/metrics and health at /livez and /readyz"

    def _index(self) -> Page:
        return Page(
            b"A worker of heft.\n"
            b"/metrics  its metrics, for Prometheus\n"
            b"/livez    200 while its event loop turns, else 503: start it again\n"
            b"/readyz   200 while its partitions are restored and their lag is bounded, else 503, and what is missing\n"
        )

    def _livez(self) -> Page:
        if self.health.alive():
            return Page(b"the event loop turns\n")
        return Page(b"the event loop stands still\n", HTTPStatus.SERVICE_UNAVAILABLE)

    def _readyz(self) -> Page:
        readiness = self.health.readiness()
        status = HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Page(msgspec.json.encode(readiness) + b"\n", status, "application/json")

    # ---------------------------------------------------------------- kept fresh

    async def keep_fresh(self) -> None:
        """Say that the event loop turns, and keep the page and the measurements fresh, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_rendered())
            tasks.create_task(self._keep_measured())

    async def _keep_rendered(self) -> None:
        while True:
            self.health.beat()
            started = thread_time()
            self.render()
            pause = (thread_time() - started) / _SHARE_OF_PAGES
            await asyncio.sleep(min(max(pause, _LEAST_PAUSE), _LONGEST_PAUSE))

    async def _keep_measured(self) -> None:
        while True:
            started = thread_time()
            for _ in self.measure():
                await asyncio.sleep((thread_time() - started) / _SHARE_OF_QUALITY)
                started = thread_time()
            await asyncio.sleep(_QUALITY_SECONDS)

    def render(self) -> None:
        """Write the page anew."""
        self._rendered.set_to_current_time()
        self._page = Page(generate_latest(self.registry), kind=METRICS_KIND)

    def measure(self) -> Iterator[None]:
        """Measure the newest samples of every head that has new ones; a step measures one arm."""
        return self._quality.steps(self._heads(self._observe()))

    @staticmethod
    def _heads(now: Observed) -> dict[Labels, Head]:
        return {(str(shard), name): head for shard, learner in now.learners.items() for name, head in heads_of(learner)}

    # ---------------------------------------------------------------- read

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now; the Prometheus client calls this for each page."""
        now, read = self._observe(), self._counted.read
        opened = {key for key, each in now.opened.items() if self._opened.get(key) is not each}
        self._opened = dict(now.opened)

        def of(stage: str) -> set[Labels]:
            return {(str(number),) for name, number in opened if name == stage}

        yield from read(JOIN, ("partition",), _numbered(now.joiners), of("join"))
        yield from read(SCORES, ("partition",), _numbered(now.scores.passed), of("score"))
        if now.scores.teacher is not None:
            yield from read(TEACHER, (), {(): now.scores.teacher}, set())
        yield from read(LEARN, ("shard",), _numbered(now.learners), of("learn"))
        heads = {labels: HeadNow(head, self._quality.of(labels)) for labels, head in self._heads(now).items()}
        yield from read(HEADS, ("shard", "head"), heads, set())
        readers: dict[Labels, Sequence[ScoredReader]] = {
            (stage, str(n)): each for (stage, n), each in now.readers.items()
        }
        yield from read(READERS, ("stage", "partition"), readers, {(stage, str(n)) for stage, n in opened})
        lag: dict[Labels, int] = {(stage, topic, str(n)): left for (stage, topic, n), left in now.lag.items()}
        yield from read(_LAG, ("stage", "topic", "partition"), lag, set())
        written: dict[Labels, _Written] = {(owner,): each for owner, each in self._snapshots.items()}
        yield from read(_SNAPSHOTS, ("owner",), written, set())
        yield from read(_MISSING, (), {(): now.missing}, set())


def _numbered(sources: Mapping[int, Source]) -> dict[Labels, Source]:
    return {(str(number),): source for number, source in sources.items()}
