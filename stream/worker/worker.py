"""The stages of the partitions that one worker has: opened, fed, saved and closed. Faust itself is in app.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from random import Random
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from aiokafka.errors import KafkaError

from heft.stream.config.settings import Config
from heft.stream.events.messages import ScoredReader
from heft.stream.kafka.batch_consumer import TP, App, Batch, BatchConsumer, Starts, consumer_of
from heft.stream.kafka.connect import aiokafka_settings
from heft.stream.kafka.connection_errors import BrokerAwayError
from heft.stream.kafka.patient_producer import PatientProducer, new_producer, passes_by_itself
from heft.stream.observe.exporter import Metrics, Missing, Observed, Scores
from heft.stream.observe.families import TeacherNow
from heft.stream.observe.health import Health, name_of
from heft.stream.score.requests import Clocks
from heft.stream.score.scorer import Scorer
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.pauses import pause_after
from heft.stream.state.store import SnapshotStore, StoreError
from heft.stream.teacher.clients import Scoring
from heft.stream.worker.join_stage import JoinStage
from heft.stream.worker.score_stage import ScoreStage
from heft.stream.worker.stage import Connections, LossPolicy, PendingSnapshot, Stage

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.stream.worker.learn_stage import LearnStage

log = logging.getLogger("heft.worker")
retries = logging.getLogger("heft.retry")

StageName: TypeAlias = Literal["join", "score", "learn"]
STAGES: tuple[StageName, ...] = ("join", "score", "learn")
"""All stages, in the order of the path."""

StageKey: TypeAlias = tuple[StageName, int]
"""A stage, and the number of its partition or shard."""

_PAUSES = (0.1, 5.0)  # seconds, the first and the longest between two attempts to open a stage
_YOUNG_OBJECTS, _YOUNG_ROUNDS = 700, 10  # Python's own defaults
_ROUNDS_TO_A_FULL_ONE = 10_000  # Python's default is 10; at full speed this is one in a quarter of an hour


class OpenStage:
    """A stage of one partition, the lock of who touches it, and when each of its inputs gave its last batch."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.lock = asyncio.Lock()
        self.taken_at: dict[TP, float] = {}


class Worker:
    """Opens the stages of the partitions that this worker has, feeds them, saves them, and closes them.

    Parameters
    ----------
    app
        The Faust app whose consumer feeds the stages.
    config
        Everything that can be set.
    losses
        Decides what happens where a topic does not hold what a stage expects.
    """

    def __init__(self, app: App, config: Config, losses: LossPolicy) -> None:
        self.app = app
        self.config = config
        self.losses = losses
        self.open_stages: dict[StageKey, OpenStage] = {}
        self._topics = config.kafka.topics
        self._stage_of: dict[str, StageName] = {self._topics.samples: "score", self._topics.scored: "learn"}
        self._stage_of |= dict.fromkeys(config.inputs, "join")
        snapshots = config.snapshots
        self._store = PatientStore(SnapshotStore(snapshots.url, snapshots.keep), snapshots.patience_ms)
        self.client = aiokafka_settings(config.kafka)
        self.health = Health(config.metrics.ready_lag)
        self.metrics = Metrics(self._observed, self.health)
        self._scoring: Scoring | None = None
        self._ends: dict[TP, int] = {}
        self._connections: Connections | None = None
        self._changing = asyncio.Lock()  # assignments, revocations and the stop happen one after another
        self._connecting = asyncio.Lock()
        self._generation = -1
        self._opening = 0
        self._stopping = False
        self._closed = False
        self._chance = Random()  # workers should not come back all at once
        self._settled = False

    @property
    def consumer(self) -> BatchConsumer:
        """The consumer of this worker."""
        return consumer_of(self.app)

    def topics(self, stage: StageName) -> list[str]:
        """Return what a stage reads."""
        return [topic for topic, reader in self._stage_of.items() if reader == stage]

    # ---------------------------------------------------------------- partitions come and go

    async def assigned(self, tps: set[TP], generation: int) -> list[Coroutine[Any, Any, Starts]]:
        """Take over an assignment; return what opens its stages, each beside the others.

        A stage that this worker had in the generation before stays open: nobody else can have had it in between. It is
        read on from where it is, and only stages that are new here are restored.
        """
        async with self._changing:
            if self._closed:
                return []
            keys = {self._key(tp) for tp in tps}
            self._check_complete(tps, keys)
            self.metrics.rebalances.inc()
            self.metrics.look()
            self.health.revoked(self.open_stages)
            self.health.assigned(keys)
            unbroken = generation == self._generation + 1
            for key in sorted(self.open_stages):
                if key not in keys or not unbroken or not self.open_stages[key].stage.healthy:
                    self._forget(key)
            kept, new = sorted(self.open_stages), sorted(keys - self.open_stages.keys())
            self._generation, self._opening = generation, len(new)
            return [self._go_on(kept), *[self._open_stage(key) for key in new]]

    async def _go_on(self, kept: Sequence[StageKey]) -> Starts:
        """Return where the inputs of the stages that stayed open go on."""
        starts: dict[TP, int | None] = {}
        for key in kept:
            opened = self.open_stages[key]
            opened.taken_at = dict.fromkeys(opened.taken_at, monotonic())
            self.health.restored(key)
            starts |= opened.stage.offsets()
        return starts

    async def _open_stage(self, key: StageKey) -> Starts:
        """Open a partition's stage, anew for as long as brokers are away; return where each of its inputs goes on."""
        since, times = monotonic(), 0
        with self._told_or_stopping():
            while True:
                try:
                    return await self._open_once(key)
                except KafkaError as error:
                    times += 1
                    if not passes_by_itself(error) or monotonic() - since >= self.config.kafka.patience_ms / 1000:
                        raise
                    self.health.error(f"{name_of(key)} cannot be restored yet: {error!r}")
                    retries.warning(
                        "%s cannot be restored, attempt %d; it is tried again: %r", name_of(key), times, error
                    )
                    await asyncio.sleep(pause_after(times, *_PAUSES, self._chance))
        return {}

    async def _open_once(self, key: StageKey) -> Starts:
        connections = await self._connect()
        opened = OpenStage(self._new(key, connections))
        gaps, started = self.losses.gaps.total(), perf_counter()
        starts = await opened.stage.open()
        if self.losses.gaps.total() > gaps:
            # What is done from here on cannot be done again from older snapshots.
            await self._save_at_once(opened.stage)
        opened.taken_at = dict.fromkeys(starts, monotonic())
        self.open_stages[key] = opened
        self.metrics.look()
        self.metrics.restored(key, perf_counter() - started)
        self._opening -= 1
        if not self._opening:
            self._settle()
        return starts

    async def _connect(self) -> Connections:
        async with self._connecting:
            if self._connections is None:
                producer = PatientProducer(
                    new_producer(self.client),
                    self.config.kafka.patience_ms,
                    self.metrics.retries.labels("producer").inc,
                )
                await producer.start()
                self._connections = Connections(self.client, producer, self._store, self.losses)
            return self._connections

    async def revoked(self, tps: set[TP]) -> None:
        """Let each stage finish what it has in hand. They stay open: the next assignment says which of them go."""
        async with self._changing:
            keys = {self._key(tp) for tp in tps}
            self.health.revoked(keys)
            for key in keys & self.open_stages.keys():
                async with self.open_stages[key].lock:
                    pass

    def _forget(self, key: StageKey) -> None:
        """Drop a stage that another worker has now, which goes on from the newest snapshot and the log."""
        self.open_stages.pop(key)
        self._store.forget(name_of(key))

    async def close(self) -> None:
        """Save everything and leave the cluster: the worker stops. Partitions that are being opened are waited for."""
        self._stopping = True
        self.health.stopping()
        self._store.stop_waiting()
        if self._connections is not None:
            self._connections.producer.stop_waiting()
        async with self._changing:
            self._closed = True
            await self._close_all()
            self._store.close()
            if self._scoring is not None:
                self._scoring.stop()
            if self._connections is not None:
                await self._connections.producer.stop()

    async def _close_all(self) -> None:
        durable: dict[TP, int] = {}
        for key in sorted(self.open_stages):
            closing = self.open_stages[key]
            async with closing.lock:
                self.metrics.look()
                del self.open_stages[key]
                # Where this fails, what came since the last one is done again.
                with self._told_or_stopping():
                    if closing.stage.healthy and closing.stage.dirty:
                        durable |= await self._write(await closing.stage.pending()) or {}
                if not closing.stage.healthy:
                    log.warning("%s stops in the midst of something: it goes on at its last snapshot", name_of(key))
        await self.consumer.commit_offsets(durable)

    @contextlib.contextmanager
    def _told_or_stopping(self) -> Iterator[None]:
        """Tell of an error that ends the worker. What fails while it stops is made anew by the next."""
        try:
            yield
        except Exception as error:
            if self._stopping and isinstance(error, KafkaError | BrokerAwayError | StoreError):
                return
            self.health.gives_up(str(error))
            raise

    def _key(self, tp: TP) -> StageKey:
        return self._stage_of[tp.topic], tp.partition

    def _check_complete(self, assigned: set[TP], keys: set[StageKey]) -> None:
        for stage, partition in keys:
            missing = [topic for topic in self.topics(stage) if TP(topic, partition) not in assigned]
            if missing:
                msg = (
                    f"partition {partition} of the inputs was assigned without {', '.join(missing)}: all inputs need "
                    "the same number of partitions; `heft doctor` shows them"
                )
                raise RuntimeError(msg)

    def _new(self, key: StageKey, connections: Connections) -> Stage:
        name, partition = key
        config, topics = self.config, self._topics
        if name == "join":
            decode, inputs = config.decoder(), config.inputs
            return JoinStage(connections, config.join, decode, partition, inputs, topics.samples, topics.rejected)
        if name == "score":
            if not config.has_teacher:
                return ScoreStage(connections, partition, topics.samples, topics.scored, config.shards, Scorer())
            if self._scoring is None:
                clocks = Clocks(lambda: round(time() * 1000), perf_counter)
                self._scoring = Scoring(config, clocks, self.metrics.scoring_delay.observe)
            scorer, open_for_ms = Scorer(self._scoring.source()), config.join.click_window_ms
            return ScoreStage(connections, partition, topics.samples, topics.scored, config.shards, scorer, open_for_ms)
        # A worker that only joins needs no models.
        from heft.stream.worker.learn_stage import LearnStage

        return LearnStage(connections, config.learner, partition, topics.scored)

    # ---------------------------------------------------------------- records

    async def take(self, batch: Batch) -> None:
        """Give a batch to its stage."""
        with self._told_or_stopping():
            await self._take(batch)

    async def _take(self, batch: Batch) -> None:
        key = self._key(batch.tp)
        opened = self.open_stages.get(key)
        if opened is None:
            return  # the partition has gone; the worker that has it now reads this batch again
        async with opened.lock:
            if batch.generation != self.app.consumer_generation_id or opened is not self.open_stages.get(key):
                return
            await opened.stage.take(batch)
            opened.taken_at[batch.tp] = monotonic()
            now, delay = time(), self.metrics.stage_delay.labels(key[0])
            for record in batch.records:
                delay.observe(max(0.0, now - record.due_since_ms / 1000))
            self.consumer.done(batch)
            self._align(opened.stage)

    def _align(self, stage: Stage) -> None:
        if isinstance(stage, JoinStage):
            for tp, held in stage.held().items():
                (self.consumer.hold if held else self.consumer.release)(tp)

    async def tick(self) -> None:
        """Tell the joins which of their inputs have run dry."""
        with self._told_or_stopping():
            await self._tick()

    async def _tick(self) -> None:
        idle_after = self.config.join.idle_after_ms / 1000
        quiet = [
            (opened, opened.stage, tp)
            for opened in self.open_stages.values()
            if isinstance(opened.stage, JoinStage)
            for tp, at in opened.taken_at.items()
            if monotonic() - at >= idle_after and self._dry(tp) and not opened.stage.idle(tp)
        ]
        if not quiet:
            return
        generation = self.app.consumer_generation_id
        # Fetched after the wait: a record that was appended before it lies below these ends.
        try:
            ends = await self.consumer.end_offsets([tp for _, _, tp in quiet])
        except KafkaError:
            return  # whether an input has run dry is not known while brokers are away
        for opened, stage, tp in quiet:
            async with opened.lock:
                still = generation == self.app.consumer_generation_id and opened in self.open_stages.values()
                if still and self._dry(tp) and self.consumer.next_offset(tp) >= ends[tp]:
                    await stage.tick(tp, round(time() * 1000))
                    self._align(stage)

    def _dry(self, tp: TP) -> bool:
        return tp in self.consumer.assigned and self.consumer.idle_hand(tp)

    # ---------------------------------------------------------------- snapshots

    async def save(self) -> None:
        """Take a snapshot of every stage that has changed."""
        with self._told_or_stopping():
            await self._save()

    async def _save(self) -> None:
        if not self._settled:
            self._settle()
            self._settled = True
        durable: dict[TP, int] = {}
        for key, opened in list(self.open_stages.items()):
            pending: PendingSnapshot | None = None
            async with opened.lock:
                if opened in self.open_stages.values() and opened.stage.healthy and opened.stage.dirty:
                    started = perf_counter()
                    pending = await opened.stage.pending()
                    self.metrics.snapshot_stall.labels(key[0]).observe(perf_counter() - started)
            written = None if pending is None else await self._write(pending)
            if pending is not None and written is None:
                opened.stage.dirty = True  # the next snapshot takes the place of this one
            durable |= written or {}
        await self.consumer.commit_offsets(durable)
        self._store.check()

    def next_save_seconds(self) -> float:
        """Return how long to wait until `save`: the interval, or less where a failed snapshot is to be tried again."""
        return self._store.pause_seconds(self.config.snapshots.interval_ms / 1000)

    async def _save_at_once(self, stage: Stage) -> None:
        pending = await stage.pending()
        await self._store.save(pending.name, pending.state, pending.segments)

    def _settle(self) -> None:
        """Spare the cyclic collector what stays for good: modules, compiled kernels, restored state.

        The cycles that Faust makes are short-lived, and young rounds collect them. Full rounds walk all that waits in
        the stages and never found a cycle there (LOG.md), but stall learning: they come seldom, against slow leaks.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, _ROUNDS_TO_A_FULL_ONE)

    async def _write(self, pending: PendingSnapshot) -> Mapping[TP, int] | None:
        """Write a snapshot; return the offsets that are durable then, None if the store failed."""
        written = await self._store.try_save(pending.name, pending.state, pending.segments)
        if written is None:
            self.health.error(f"the snapshot store failed: {self._store.last_error}")
            return None
        self.metrics.snapshot_written(pending.name.owner, time(), written)
        return pending.offsets

    # ---------------------------------------------------------------- what is exported

    async def fetch_ends(self) -> None:
        """Ask the broker how far the topics go, for the lag."""
        assigned = [tp for opened in list(self.open_stages.values()) for tp in opened.taken_at]
        if assigned:
            with contextlib.suppress(KafkaError):  # the lag stays as it was known; the consumer says what is wrong
                self._ends = await self.consumer.end_offsets(assigned)
                self.health.lag(sum(self._lag().values()))

    def _observed(self) -> Observed:
        return Observed(
            joiners={number: cast("JoinStage", stage).joiner for number, stage in self._open("join")},
            learners={number: cast("LearnStage", stage).learner for number, stage in self._open("learn")},
            lag=self._lag(),
            missing=self._missing(),
            scores=Scores(
                passed={number: cast("ScoreStage", stage).scorer.counts for number, stage in self._open("score")},
                teacher=self._teacher_now(),
            ),
            readers=self._readers(),
            opened={(name, number): opened for (name, number), opened in self.open_stages.items()},
        )

    def _teacher_now(self) -> TeacherNow | None:
        scoring = self._scoring
        return None if scoring is None else TeacherNow(scoring.counts(), scoring.current.ready, scoring.waiting())

    def _open(self, name: StageName) -> Iterator[tuple[int, Stage]]:
        for (stage_name, number), opened in self.open_stages.items():
            if stage_name == name:
                yield number, opened.stage

    def _readers(self) -> dict[tuple[str, int], Sequence[ScoredReader]]:
        readers: dict[tuple[str, int], Sequence[ScoredReader]] = {}
        for number, stage in self._open("score"):
            readers["score", number] = cast("ScoreStage", stage).readers
        for number, stage in self._open("learn"):
            readers["learn", number] = [cast("LearnStage", stage).reader]
        return readers

    def _lag(self) -> dict[tuple[str, str, int], int]:
        consumer = self.consumer
        return {
            (self._stage_of[tp.topic], tp.topic, tp.partition): max(0, end - consumer.next_offset(tp))
            for tp, end in self._ends.items()
            if tp in consumer.assigned
        }

    def _missing(self) -> Missing:
        lost, gaps = self.consumer.lost, self.losses.gaps
        return Missing(
            snapshots=self._store.store.damaged,
            records={(*tp,): n for tp, n in lost.items()},
            gaps={(*tp,): n for tp, n in gaps.items()},
            failures=self._store.failures,
            away_seconds=self._store.away_seconds,
        )
