"""The worker: one Faust app, an agent for each stage, and the clock that the stages themselves do not have."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Sequence
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import faust
from aiokafka import AIOKafkaProducer

from heft.stream.config.settings import Config, ConfigError
from heft.stream.events.messages import ScoredReader
from heft.stream.kafka.batch_consumer import TP, App, Batch, BatchConsumer, consumer_of, drive, faust_settings
from heft.stream.kafka.connect import client_settings
from heft.stream.observe.exporter import Metrics, Missing, Scores
from heft.stream.score.requests import Clocks
from heft.stream.score.scorer import Scorer
from heft.stream.state.patient_store import PatientStore
from heft.stream.state.store import SnapshotStore, StoreError
from heft.stream.teacher.clients import Scoring
from heft.stream.worker.join_stage import JoinStage
from heft.stream.worker.score_stage import ScoreStage
from heft.stream.worker.stage import Connections, LossPolicy, PendingSnapshot, Stage

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.stream.join.joiner import Joiner
    from heft.stream.learn.learner import Learner
    from heft.stream.worker.learn_stage import LearnStage

StageName: TypeAlias = Literal["join", "score", "learn"]
STAGES: tuple[StageName, ...] = ("join", "score", "learn")

log = logging.getLogger("heft.worker")

_LAG_SECONDS = 5.0
_YOUNG_OBJECTS, _YOUNG_ROUNDS = 700, 10  # as Python has them
_ROUNDS_TO_A_FULL_ONE = 10_000  # Python: 10; at full speed one in a quarter of an hour


class OpenStage:
    """A stage of one partition, and who may touch it now."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.lock = asyncio.Lock()
        self.taken_at: dict[TP, float] = {}


StageKey: TypeAlias = tuple[StageName, int]


class Worker:
    """Opens the stages of the partitions this worker has, feeds them, saves them, and closes them."""

    def __init__(self, app: faust.App, config: Config, losses: LossPolicy) -> None:
        self.app = app
        self.config = config
        self.losses = losses
        self.running: dict[StageKey, OpenStage] = {}
        self._topics = config.kafka.topics
        self._stage_of: dict[str, StageName] = {self._topics.samples: "score", self._topics.scored: "learn"}
        self._stage_of |= dict.fromkeys(config.inputs, "join")
        snapshots = config.snapshots
        self._store = PatientStore(SnapshotStore(snapshots.url, snapshots.keep), snapshots.patience_ms)
        self.client = client_settings(config.kafka)
        self.metrics = Metrics(self._joiners, self._learners, self._lag, self._missing, self._scores, self._readers)
        self._scoring: Scoring | None = None
        self._ends: dict[TP, int] = {}
        self._connections: Connections | None = None
        self._changing = asyncio.Lock()  # partitions come, go and are let go of one after another
        self._stopping = False
        self._closed = False
        self._settled = False

    @property
    def consumer(self) -> BatchConsumer:
        """The consumer of this worker."""
        return consumer_of(self.app)

    def topics(self, stage: StageName) -> list[str]:
        """Return what a stage reads."""
        return [topic for topic, reader in self._stage_of.items() if reader == stage]

    # ---------------------------------------------------------------- partitions come and go

    async def offsets_for(self, assigned: set[TP]) -> dict[TP, int | None]:
        """Open the stages of these partitions; return where each input goes on."""
        async with self._changing:
            if self._closed:
                return {}
            if self._connections is None:
                # No idempotent producer: readers drop repeats themselves, and not every broker has it.
                producer = AIOKafkaProducer(**self.client, acks="all", linger_ms=0, request_timeout_ms=30_000)
                await producer.start()
                self._connections = Connections(self.client, producer, self._store, self.losses)
            places = {self._place(tp) for tp in assigned}
            self._check_complete(assigned, places)
            opened = {place: OpenStage(self._new(place, self._connections)) for place in sorted(places)}
            gaps = self.losses.gaps.total()
            try:
                offsets = await asyncio.gather(*[running.stage.open() for running in opened.values()])
                if self.losses.gaps.total() > gaps:
                    # What is done from here on cannot be done again from older snapshots.
                    await self._save_at_once([running.stage for running in opened.values()])
            except StoreError:
                if not self._stopping:
                    raise
                return {}
            now = monotonic()
            for running, its in zip(opened.values(), offsets, strict=True):
                running.taken_at = dict.fromkeys(its, now)
            self.running = opened
            self._settle()
            return {tp: offset for its in offsets for tp, offset in its.items()}

    async def on_revoked(self, revoked: set[TP]) -> None:
        """Let each stage finish what it has in hand, save it, and forget it."""
        async with self._changing:
            await self._close({self._place(tp) for tp in revoked})

    async def close(self) -> None:
        """Save everything and let go: the worker stops. Partitions that are just being opened are waited for."""
        self._stopping = True
        self._store.stop_waiting()
        async with self._changing:
            self._closed = True
            await self._close(set(self.running))
            self._store.close()
            if self._scoring is not None:
                self._scoring.stop()
            if self._connections is not None:
                await self._connections.producer.stop()

    async def _close(self, places: set[StageKey]) -> None:
        for place in sorted(places):
            running = self.running.pop(place, None)
            if running is not None:
                async with running.lock:
                    if running.stage.healthy and running.stage.dirty:
                        pending = await running.stage.pending()
                        await self._write(pending)  # where that fails, what came since is done again
                        self._store.forget(pending.name.owner)

    def _place(self, tp: TP) -> StageKey:
        return self._stage_of[tp.topic], tp.partition

    def _check_complete(self, assigned: set[TP], places: set[StageKey]) -> None:
        for stage, partition in places:
            missing = [topic for topic in self.topics(stage) if TP(topic, partition) not in assigned]
            if missing:
                msg = (
                    f"partition {partition} of the inputs was assigned without {', '.join(missing)}: all inputs need "
                    "the same number of partitions; `heft doctor` shows them"
                )
                raise RuntimeError(msg)

    def _new(self, place: StageKey, connections: Connections) -> Stage:
        name, partition = place
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
        running = self.running.get(self._place(batch.tp))
        if running is None:
            return  # of a partition that has gone; who has it now reads it again
        async with running.lock:
            if batch.generation != self.app.consumer_generation_id or running is not self.running.get(
                self._place(batch.tp)
            ):
                return
            await running.stage.take(batch)
            running.taken_at[batch.tp] = monotonic()
            now, delay = time(), self.metrics.stage_delay.labels(self._stage_of[batch.tp.topic])
            for record in batch.records:
                delay.observe(max(0.0, now - record.due_since_ms / 1000))
            self.consumer.done(batch)
            self._align(running.stage)

    def _align(self, stage: Stage) -> None:
        if isinstance(stage, JoinStage):
            for tp, held in stage.held().items():
                (self.consumer.hold if held else self.consumer.release)(tp)

    async def tick(self) -> None:
        """Tell the joins which of their inputs have run dry."""
        idle_after = self.config.join.idle_after_ms / 1000
        quiet = [
            (running, running.stage, tp)
            for running in self.running.values()
            if isinstance(running.stage, JoinStage)
            for tp, at in running.taken_at.items()
            if monotonic() - at >= idle_after and self.consumer.idle_hand(tp) and not running.stage.idle(tp)
        ]
        if not quiet:
            return
        generation = self.app.consumer_generation_id
        # Asked after the wait: nothing is left to take only up to an end that is fetched now.
        ends = await self.consumer.end_offsets([tp for _, _, tp in quiet])
        for running, stage, tp in quiet:
            async with running.lock:
                still = generation == self.app.consumer_generation_id and running in self.running.values()
                if still and self.consumer.idle_hand(tp) and self.consumer.next_offset(tp) >= ends[tp]:
                    await stage.tick(tp, round(time() * 1000))
                    self._align(stage)

    # ---------------------------------------------------------------- snapshots

    async def save(self) -> None:
        """Take a snapshot of every stage that has changed."""
        if not self._settled:
            self._settle()
            self._settled = True
        for place, running in list(self.running.items()):
            pending: PendingSnapshot | None = None
            async with running.lock:
                if running in self.running.values() and running.stage.healthy and running.stage.dirty:
                    started = perf_counter()
                    pending = await running.stage.pending()
                    self.metrics.snapshot_stall.labels(place[0]).observe(perf_counter() - started)
            if pending is not None and not await self._write(pending):
                running.stage.dirty = True  # the next snapshot takes its place
        self._store.check()

    def next_save_seconds(self) -> float:
        """Return how long to wait until `save`: the interval, less where a snapshot is to be tried again."""
        return self._store.pause_seconds(self.config.snapshots.interval_ms / 1000)

    async def _save_at_once(self, stages: Iterable[Stage]) -> None:
        for stage in stages:
            pending = await stage.pending()
            await self._store.save(pending.name, pending.state, pending.segments)

    def _settle(self) -> None:
        """Spare the cyclic collector what is there to stay: modules, compiled kernels, restored state.

        Faust's cycles are short-lived and go in the young rounds; in full ones, over all that waits in the stages, none
        were ever found (LOG.md). Those stall learning, so they come seldom, against what leaks slowly after all.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, _ROUNDS_TO_A_FULL_ONE)

    async def _write(self, pending: PendingSnapshot) -> bool:
        written = await self._store.try_save(pending.name, pending.state, pending.segments)
        if written is None:
            return False
        self.metrics.snapshot_written(pending.name.owner, time(), written)
        await self.consumer.commit_offsets(pending.offsets)
        return True

    # ---------------------------------------------------------------- what is exported

    async def look_ahead(self) -> None:
        """Ask the broker how far the topics go, for the lag."""
        assigned = [tp for running in list(self.running.values()) for tp in running.taken_at]
        if assigned:
            self._ends = await self.consumer.end_offsets(assigned)

    def _joiners(self) -> dict[int, Joiner]:
        found = [(place, running.stage) for place, running in list(self.running.items()) if place[0] == "join"]
        return {place[1]: cast("JoinStage", stage).joiner for place, stage in found}

    def _learners(self) -> dict[int, Learner]:
        found = [(place, running.stage) for place, running in list(self.running.items()) if place[0] == "learn"]
        return {place[1]: cast("LearnStage", stage).learner for place, stage in found}

    def _scores(self) -> Scores:
        found = [(place, running.stage) for place, running in list(self.running.items()) if place[0] == "score"]
        passed = {place[1]: cast("ScoreStage", stage).scorer.counts for place, stage in found}
        if (scoring := self._scoring) is None:
            return Scores(passed)
        return Scores(passed, scoring.counts(), scoring.current.ready, scoring.waiting())

    def _readers(self) -> dict[tuple[str, int], Sequence[ScoredReader]]:
        readers: dict[tuple[str, int], Sequence[ScoredReader]] = {}
        for place, running in list(self.running.items()):
            if place[0] == "score":
                readers[place] = cast("ScoreStage", running.stage).readers
            elif place[0] == "learn":
                readers[place] = [cast("LearnStage", running.stage).reader]
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


def make_app(config: Config, stages: Sequence[StageName] = STAGES, *, accept_loss: bool = False) -> faust.App:
    """Return the Faust app of a worker, not started.

    Parameters
    ----------
    config
        Everything that can be set.
    stages
        Which stages this worker runs.
    accept_loss
        Go on, and count, where records to go on from are gone.
    """
    session_seconds = config.kafka.session_timeout_ms / 1000
    app = App(
        config.kafka.group,
        broker=[f"kafka://{server}" for server in config.kafka.bootstrap.split(",")],
        broker_session_timeout=session_seconds,
        broker_heartbeat_interval=session_seconds / 6,
        **faust_settings(),
    )
    shell = Worker(app, config, LossPolicy(accept_loss))
    drive(app, shell.client, shell.offsets_for, shell.on_revoked, accept_loss=accept_loss)

    async def run(stream: Any) -> None:
        try:
            async for batch in stream.noack():
                await shell.take(batch)
        except asyncio.CancelledError:
            # Stopping, Faust cancels all agents before it tells each to stop, and would take that for a crash.
            if not app.should_stop:
                raise

    for stage in stages:
        app.agent(app.topic(*shell.topics(stage), acks=False), name=stage)(run)

    async def ticking() -> None:
        while True:
            await asyncio.sleep(config.join.idle_after_ms / 2000)
            await shell.tick()

    async def saving() -> None:
        while True:
            await asyncio.sleep(shell.next_save_seconds())
            await shell.save()

    async def looking() -> None:
        wanted = config.metrics.port
        log.warning("%s", Metrics.where(wanted, shell.metrics.serve(wanted)))
        while True:
            await asyncio.sleep(_LAG_SECONDS)
            await shell.look_ahead()

    async def stopping(*_: Any, **__: Any) -> None:
        await shell.close()

    if "join" in stages:
        app.task(ticking)
    app.task(saving)
    app.task(looking)
    app.on_before_shutdown.connect(stopping, weak=False)
    return app


def stages_of(text: str) -> list[StageName]:
    """Return the stages named in a list with commas.

    Raises
    ------
    ConfigError
        If there is no such stage.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        msg = f"--stages {text!r}: there is no stage {unknown[0]!r}; expected some of {', '.join(STAGES)}"
        raise ConfigError(msg)
    return [stage for stage in STAGES if stage in names]


def run_worker(config: Config, stages: Sequence[StageName] = STAGES, *, accept_loss: bool = False) -> None:
    """Run until SIGTERM or SIGINT; exits 0 after a clean stop and not 0 with a traceback after an error."""
    if "learn" in stages:
        # Compiling takes a minute once, loading what was compiled a second: not while the first slates wait.
        from heft.stream.learn.learner import warm_up

        warm_up(config.learner)
    app = make_app(config, stages, accept_loss=accept_loss)
    faust.Worker(app, loglevel="WARN", redirect_stdouts=False).execute_from_commandline()
