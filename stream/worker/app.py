"""The Faust app of a worker: an agent for each stage, and the tasks that tick, save and look at the lag."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import closing
from math import inf
from time import monotonic, sleep
from typing import Any, cast

import faust
from aiokafka.errors import KafkaError

from heft.stream.config.settings import Config, ConfigError
from heft.stream.kafka.batch_consumer import drive, merge_by_due_time
from heft.stream.kafka.connect import ClientSettings, client_settings, require_reachable
from heft.stream.kafka.connection_errors import BrokerAwayError
from heft.stream.kafka.faust_app import App, faust_settings
from heft.stream.observe.exporter import Metrics
from heft.stream.worker.stage import LossPolicy
from heft.stream.worker.worker import STAGES, StageName, Worker

log = logging.getLogger("heft.worker")

_LAG_SECONDS = 5.0
_COMMIT_SECONDS = 1.0
_RETRY_SECONDS, _SAY_AGAIN_SECONDS = 1.0, 60.0  # while no broker answers, or topics are missing
_FIRST_LAG_SECONDS = 0.2


def make_worker(config: Config, stages: Sequence[StageName] = STAGES, *, accept_loss: bool = False) -> Worker:
    """Return a worker whose Faust app, with its agents and tasks, is not started yet.

    Parameters
    ----------
    config
        Everything that can be set.
    stages
        Which stages this worker runs.
    accept_loss
        Whether to go on, and count, where records to go on from are gone.
    """
    session_seconds = config.kafka.session_timeout_ms / 1000
    app = App(
        config.kafka.group,
        broker=[f"kafka://{server}" for server in config.kafka.bootstrap.split(",")],
        broker_session_timeout=session_seconds,
        broker_heartbeat_interval=session_seconds / 6,
        **faust_settings(),
    )
    worker = Worker(app, config, LossPolicy(accept_loss))
    drive(
        app, worker.client, worker.assigned, worker.revoked,
        together=[worker.topics(stage) for stage in STAGES], instance=config.kafka.instance, accept_loss=accept_loss,
    )  # fmt: skip

    merge_by_due_time(app, config.kafka.topics.samples, config.inputs)

    async def run(stream: Any) -> None:
        try:
            async for batch in stream.noack():
                worker.take(batch)
        except asyncio.CancelledError:
            # When Faust stops it cancels all agents before it tells each to stop, and would take that for a crash.
            if not app.should_stop:
                raise

    for stage in stages:
        app.agent(app.topic(*worker.topics(stage), acks=False), name=stage)(run)

    async def tick() -> None:
        while True:
            await asyncio.sleep(config.join.idle_after_ms / 2000)
            await worker.tick()

    async def save() -> None:
        while True:
            await asyncio.sleep(worker.next_save_seconds())
            await worker.save()

    async def look_at_lag() -> None:
        looked = -inf
        while True:
            # Nobody is ready before the lag is known: after partitions have come it is looked at soon.
            await asyncio.sleep(_FIRST_LAG_SECONDS)
            if not worker.health.lag_known or monotonic() - looked >= _LAG_SECONDS:
                await worker.fetch_ends()
                looked = monotonic()

    async def commit() -> None:
        while True:
            await asyncio.sleep(_COMMIT_SECONDS)
            await worker.commit()

    async def stop(*_: Any, **__: Any) -> None:
        await worker.close()

    if "join" in stages:
        app.task(tick)
    app.task(save)
    app.task(look_at_lag)
    app.task(commit)
    app.on_before_shutdown.connect(stop, weak=False)
    return worker


def stages_of(text: str) -> list[StageName]:
    """Return the stages named in a list with commas, in the order of the path.

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
    """Run until SIGTERM or SIGINT; the process exits with 0 after a clean stop and with a traceback after an error.

    Raises
    ------
    ListenError
        If it cannot answer for its metrics and its health where it was told to; nothing has begun then.
    TopicError
        If brokers refuse something, or stay away for longer than ``kafka.patience``.
    """
    worker = make_worker(config, stages, accept_loss=accept_loss)
    address = config.metrics.address
    with closing(worker.metrics.serve(address, config.metrics.port)) as server:
        log.warning("%s", Metrics.where(address, server.port))
        client = client_settings(config.kafka)
        _wait_for_cluster(client, worker, config, stages)
        if "learn" in stages:
            # Compiling takes a minute once, and loading what was compiled a second: better now than while slates wait.
            from heft.stream.learn.learner import warm_up

            warm_up(config.learner)
        _run(worker, client)


def _run(worker: Worker, client: ClientSettings) -> None:
    runner = faust.Worker(worker.app, redirect_stdouts=False, override_logging=False)
    runner.spinner = None  # it writes escape codes into files too
    # No task of the app: Faust starts those when the first partitions have come, and probes ask before.
    runner.add_future(worker.metrics.keep_fresh())
    try:
        runner.execute_from_commandline()
    except SystemExit as ended:
        # The log has said it already, among what else fell; the last line is the reason alone.
        reason = runner.crash_reason or worker.app.crash_reason
        if isinstance(reason, KafkaError):
            raise client.why(reason) from None
        if ended.code and type(reason).__module__.startswith("heft."):
            raise cast(BaseException, reason) from None
        raise


def _wait_for_cluster(client: ClientSettings, worker: Worker, config: Config, stages: Sequence[StageName]) -> None:
    """Return when a broker answers, refuses nothing and has all topics: a worker may be started before its cluster.

    Topics are waited for without end. Whoever joined the group without one would not notice it for minutes.
    """
    names = config.kafka.topics
    used: dict[StageName, list[str]] = {
        "join": [*config.inputs, names.samples, names.rejected],
        "score": [names.samples, names.scored],
        "learn": [names.scored],
    }
    topics = list(dict.fromkeys(topic for stage in stages for topic in used[stage]))
    since, said = monotonic(), -inf
    while True:
        try:
            missing = require_reachable(client, topics, config.kafka.group)
            if not missing:
                break
            state = f"waiting for topics: {', '.join(missing)}"
            advice = "; `heft topics --create` makes what is missing"
            since = monotonic()
        except BrokerAwayError as error:
            if monotonic() - since >= config.kafka.patience_ms / 1000:
                worker.health.gives_up(str(error))
                raise
            state, advice = "waiting for a broker", f": {error}"
            worker.health.error(str(error))
        worker.health.state(state)
        if monotonic() - said >= _SAY_AGAIN_SECONDS:
            log.warning("%s%s", state, advice)
            said = monotonic()
        sleep(_RETRY_SECONDS)
    worker.health.state("starting")
