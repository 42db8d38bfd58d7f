"""The Faust app of a worker: an agent for each stage, and the tasks that tick, save and look at the lag."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast

import faust
from aiokafka.errors import KafkaError

from heft.stream.config.settings import Config, ConfigError
from heft.stream.kafka.batch_consumer import App, drive, faust_settings
from heft.stream.kafka.connect import client_settings, require_reachable
from heft.stream.observe.exporter import Metrics
from heft.stream.worker.stage import LossPolicy
from heft.stream.worker.worker import STAGES, StageName, Worker

log = logging.getLogger("heft.worker")

_LAG_SECONDS = 5.0


def make_app(config: Config, stages: Sequence[StageName] = STAGES, *, accept_loss: bool = False) -> faust.App:
    """Return the Faust app of a worker, not started.

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
    drive(app, worker.client, worker.offsets_for, worker.on_revoked, accept_loss=accept_loss)

    async def run(stream: Any) -> None:
        try:
            async for batch in stream.noack():
                await worker.take(batch)
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

    async def export() -> None:
        wanted = config.metrics.port
        log.warning("%s", Metrics.where(wanted, worker.metrics.serve(wanted)))
        while True:
            await asyncio.sleep(_LAG_SECONDS)
            await worker.fetch_ends()

    async def stop(*_: Any, **__: Any) -> None:
        await worker.close()

    if "join" in stages:
        app.task(tick)
    app.task(save)
    app.task(export)
    app.on_before_shutdown.connect(stop, weak=False)
    return app


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
    TopicError
        If the brokers cannot be reached at the start, or refuse something later.
    """
    client = client_settings(config.kafka)
    names = config.kafka.topics
    used: dict[StageName, list[str]] = {
        "join": [*config.inputs, names.samples, names.rejected],
        "score": [names.samples, names.scored],
        "learn": [names.scored],
    }
    require_reachable(client, [topic for stage in stages for topic in used[stage]], config.kafka.group)
    if "learn" in stages:
        # Compiling takes a minute once, and loading what was compiled a second: better now than while slates wait.
        from heft.stream.learn.learner import warm_up

        warm_up(config.learner)
    app = make_app(config, stages, accept_loss=accept_loss)
    worker = faust.Worker(app, redirect_stdouts=False, override_logging=False)
    worker.spinner = None  # it writes escape codes into files too
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        # The log has said it already, among what else fell; the last line is the reason alone.
        reason = worker.crash_reason or app.crash_reason
        if isinstance(reason, KafkaError):
            raise client.why(reason) from None
        if ended.code and type(reason).__module__.startswith("heft."):
            raise cast(BaseException, reason) from None
        raise
