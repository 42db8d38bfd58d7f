"""The stages of the partitions that one worker has: opened, fed, saved and closed. Faust itself is in app.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator, Sequence
from random import Random
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from aiokafka.errors import KafkaError

from heft.stream.config.settings import Config
from heft.stream.events.messages import ScoredReader
from heft.stream.kafka.batch_consumer import TP, Batch, BatchConsumer, Starts, consumer_of
from heft.stream.kafka.connect import aiokafka_settings
from heft.stream.kafka.connection_errors import BrokerAwayError
from heft.stream.kafka.faust_app import App
from heft.stream.kafka.patient_producer import PatientProducer, new_producer, passes_by_itself
from heft.stream.observe.exporter import Metrics, Missing, Observed, Scores
from heft.stream.observe.families import TeacherNow
from heft.stream.observe.health import Health, name_of
from heft.stream.score.requests import Clocks
from heft.stream.score.scorer import Scorer
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.pauses import RETRIES, pause_after
from heft.stream.state.store import SnapshotStore, StoreError
from heft.stream.teacher.clients import Scoring
from heft.stream.worker.collector import settle
from heft.stream.worker.join_stage import JoinStage
from heft.stream.worker.open_stage import OpenStage
from heft.stream.worker.score_stage import ScoreStage
from heft.stream.worker.stage import Connections, LossPolicy, PendingSnapshot, Stage

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.stream.worker.learn_stage import LearnStage

log = logging.getLogger("heft.worker")
retries = logging.getLogger(RETRIES)

StageName: TypeAlias = Literal["join", "score", "learn"]
STAGES: tuple[StageName, ...] = ("join", "score", "learn")
"""All stages, in the order of the path."""

StageKey: TypeAlias = tuple[StageName, int]
"""A stage, and the number of its partition or shard."""

_PAUSES = (0.1, 5.0)  # seconds, the first and the longest between two attempts to open a stage


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
        self._at_work: dict[StageKey, asyncio.Task[None]] = {}
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
        self._taken_to: dict[TP, int] = {}  # since the last commit
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
            opened.go_on()
            if isinstance(opened.stage, JoinStage):
                opened.stage.wait_for_all()  # nothing was read during the rebalance
            self.health.restored(key)
            starts |= opened.stage.offsets()
        return starts

    async def _open_stage(self, key: StageKey) -> Starts:
        """Open a partition's stage, anew for as long as brokers are away; return where each of its inputs goes on."""
        since, times, name = monotonic(), 0, name_of(key)
        with self._told_or_stopping():
            while True:
                try:
                    return await self._open_once(key)
                except KafkaError as error:
                    times += 1
                    if not passes_by_itself(error) or monotonic() - since >= self.config.kafka.patience_ms / 1000:
                        raise
                    self.health.error(f"{name} cannot be restored yet: {error!r}")
                    retries.warning("%s cannot be restored, attempt %d; it is tried again: %r", name, times, error)
                    await asyncio.sleep(pause_after(times, *_PAUSES, self._chance))
        return {}

    async def _open_once(self, key: StageKey) -> Starts:
        connections = await self._connect()
        stage = self._new(key, connections)
        gaps, started = self.losses.gaps.total(), perf_counter()
        starts = await stage.open()
        if self.losses.gaps.total() > gaps:
            # What is done from here on cannot be done again from older snapshots.
            pending = await stage.pending()
            await self._store.save(pending.name, pending.state, pending.segments)
        opened = self.open_stages[key] = OpenStage(stage, list(starts), self._end_silence, self._taken)
        self._at_work[key] = asyncio.create_task(self._run(opened))
        self.metrics.look()
        self.metrics.restored(key, perf_counter() - started)
        self._opening -= 1
        if not self._opening:
            settle()
        return starts

    async def _connect(self) -> Connections:
        async with self._connecting:
            if self._connections is None:
                counted = self.metrics.retries.labels("producer").inc
                producer = PatientProducer(new_producer(self.client), self.config.kafka.patience_ms, counted)
                await producer.start()
                self._connections = Connections(self.client, producer, self._store, self.losses)
            return self._connections

    async def revoked(self, tps: set[TP]) -> None:
        """Let each stage finish what it has in hand. They stay open: the next assignment says which of them go."""
        async with self._changing:
            keys = {self._key(tp) for tp in tps}
            self.health.revoked(keys)
            for key in keys & self.open_stages.keys():
                await self.open_stages[key].pause()

    def _forget(self, key: StageKey) -> None:
        """Drop a stage that another worker has now, which goes on from the newest snapshot and the log."""
        self.open_stages.pop(key)
        self._at_work.pop(key).cancel()
        self._store.forget(name_of(key))

    async def _run(self, opened: OpenStage) -> None:
        try:
            with self._told_or_stopping():
                await opened.run()
        except Exception as error:
            await self.app.crash(error)

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
        for key in sorted(self.open_stages):
            closing = self.open_stages[key]
            async with closing.lock:
                self.metrics.look()
                del self.open_stages[key]
                self._at_work.pop(key).cancel()
                # Where this fails, what came since the last one is done again.
                with self._told_or_stopping():
                    if closing.stage.healthy and closing.stage.dirty:
                        await self._write(await closing.stage.pending())
                if not closing.stage.healthy:
                    log.warning("%s stops in the midst of something: it goes on at its last snapshot", name_of(key))
        await self.commit()

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

    def take(self, batch: Batch) -> None:
        """Give a batch to its stage. Without one the partition has gone; the worker that has it reads this again."""
        opened = self.open_stages.get(self._key(batch.tp))
        if opened is not None and batch.generation == self.app.consumer_generation_id:
            opened.give(batch)

    def _taken(self, stage: Stage, batches: Sequence[Batch]) -> None:
        now = time()
        for batch in batches:
            delay = self.metrics.stage_delay.labels(self._stage_of[batch.tp.topic])
            for record in batch.records:
                delay.observe(max(0.0, now - record.due_since_ms / 1000))
            self.consumer.done(batch)
            self._taken_to[batch.tp] = batch.end_offset
        self._align(stage)

    def _end_silence(self, opened: OpenStage) -> None:
        """Wait for all inputs of a join where none gave anything for long and nobody could find them dry.

        So it is when brokers were away, or this process was stopped. A silence of inputs that were found dry is for
        the joiner to notice.
        """
        now, stage = monotonic(), opened.stage
        silent = now - opened.heard_at > self.config.join.lateness_ms / 1000
        if isinstance(stage, JoinStage) and silent and not all(map(stage.idle, opened.taken_at)):
            stage.wait_for_all(long=True)
        opened.heard_at = now

    def _align(self, stage: Stage) -> None:
        if isinstance(stage, JoinStage):
            for tp, held in stage.held().items():
                (self.consumer.hold if held else self.consumer.release)(tp)

    async def tick(self) -> None:
        """Tell the joins which of their inputs have run dry."""
        with self._told_or_stopping():
            await self._tick()

    async def _tick(self) -> None:
        quiet = [
            (opened, opened.stage, tp)
            for opened in self.open_stages.values()
            if isinstance(opened.stage, JoinStage)
            for tp in opened.taken_at
            if self._quiet(opened, opened.stage, tp) and self._dry(tp) and not opened.stage.idle(tp)
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

    def _quiet(self, opened: OpenStage, stage: JoinStage, tp: TP) -> bool:
        """Whether an input has given nothing for ``idle_after``; for ``lateness`` where it is waited for."""
        now, join = monotonic(), self.config.join
        if not stage.awaited(tp):
            opened.awaited_at.pop(tp, None)
            return now - opened.taken_at[tp] >= join.idle_after_ms / 1000
        waited = now - opened.awaited_at.setdefault(tp, now)
        return waited >= max(join.idle_after_ms, join.lateness_ms) / 1000

    def _dry(self, tp: TP) -> bool:
        return tp in self.consumer.assigned and self.consumer.idle_hand(tp)

    # ---------------------------------------------------------------- snapshots

    async def save(self) -> None:
        """Take a snapshot of every stage that has changed."""
        with self._told_or_stopping():
            await self._save()

    async def _save(self) -> None:
        if not self._settled:
            settle()
            self._settled = True
        for key, opened in list(self.open_stages.items()):
            pending: PendingSnapshot | None = None
            async with opened.lock:
                if opened in self.open_stages.values() and opened.stage.healthy and opened.stage.dirty:
                    started = perf_counter()
                    pending = await opened.stage.pending()
                    self.metrics.snapshot_stall.labels(key[0]).observe(perf_counter() - started)
            if pending is not None and not await self._write(pending):
                opened.stage.dirty = True  # the next snapshot takes the place of this one
        self._store.check()

    def next_save_seconds(self) -> float:
        """Return how long to wait until `save`: the interval, or less where a failed snapshot is to be tried again."""
        return self._store.pause_seconds(self.config.snapshots.interval_ms / 1000)

    async def _write(self, pending: PendingSnapshot) -> bool:
        written = await self._store.try_save(pending.name, pending.state, pending.segments)
        if written is None:
            self.health.error(f"the snapshot store failed: {self._store.last_error}")
            return False
        self.metrics.snapshot_written(pending.name.owner, time(), written)
        return True

    # ---------------------------------------------------------------- what is exported

    async def commit(self) -> None:
        """Commit how far the stages are, for lag tools and autoscalers: what they have taken they have also written."""
        taken_to, self._taken_to = self._taken_to, {}
        if taken_to:
            await self.consumer.commit_offsets(taken_to)

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
