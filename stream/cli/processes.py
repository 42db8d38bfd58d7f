"""One worker as two processes, so that what comes in and what learns each has a core; from outside they look like one.

Each is an ordinary `heft worker --stages ...` in the same group. This process starts them, passes signals on, ends them
all when one ends, and answers for all of them where one worker would answer. Join and score stay together: the score
stage keeps its partitions in order by what it sees of their joins.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import closing
from http import HTTPStatus
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Thread
from time import sleep
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from heft.stream.cli.status import ask
from heft.stream.config.settings import Config
from heft.stream.kafka.local_broker import free_port
from heft.stream.observe.exporter import METRICS_KIND, STARTING, Metrics
from heft.stream.observe.http_server import HttpServer, Page
from heft.stream.observe.together import metrics_together, readiness_together
from heft.stream.terminal.logs import Form, Level, set_up_logging

if TYPE_CHECKING:  # Faust is loaded in the processes alone
    from heft.stream.worker.worker import StageName

log = logging.getLogger("heft.worker")

_PATIENCE = 2.0  # seconds for an answer of a process on this machine
_NOT_UP = HTTPStatus.SERVICE_UNAVAILABLE


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Options(NamedTuple):
    """What each process is told besides the configuration."""

    accept_loss: bool
    log_level: Level
    log_form: Form


def groups_of(stages: Sequence[StageName]) -> list[list[StageName]]:
    """Return which stages share a process."""
    feeding: list[StageName] = [stage for stage in stages if stage != "learn"]
    learning: list[StageName] = [stage for stage in stages if stage == "learn"]
    return [group for group in (feeding, learning) if group]


def run_apart(config: Config, groups: Sequence[Sequence[StageName]], options: Options) -> int:
    """Run each group of stages as a process until one ends or a signal comes; return the exit status.

    Raises
    ------
    ListenError
        If it cannot answer for its metrics and its health where it was told to; nothing has begun then.
    """
    ports = {"+".join(group): free_port() for group in groups}
    pages = _Pages(ports)
    address = config.metrics.address
    with closing(HttpServer(address, config.metrics.port, pages.by_path)) as server:
        log.warning("%s", Metrics.where(address, server.port))
        spawn = multiprocessing.get_context("spawn")
        children: list[BaseProcess] = []
        for (name, port), group in zip(ports.items(), groups, strict=True):
            child = spawn.Process(target=_run_one, args=(_of(config, name, port), group, options), name=name)
            child.start()
            children.append(child)
        return _wait_for(children)


def _of(config: Config, name: str, port: int) -> Config:
    """Return the configuration of one process: it answers to this one alone, and has a name of its own."""
    instance = config.kafka.instance and f"{config.kafka.instance}-{name}"
    return replace(
        config,
        metrics=replace(config.metrics, address="127.0.0.1", port=port),
        kafka=replace(config.kafka, instance=instance),
    )


def _wait_for(children: Sequence[BaseProcess]) -> int:
    """Return when all have ended: the status of the first that ended with an error, else 0."""
    told: list[BaseProcess] = []

    def end_all(*_: int | FrameType | None) -> None:
        for child in children:
            if child not in told:  # a second signal would kill one that is just ending well
                told.append(child)
                child.terminate()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end_all)
    status, left = 0, list(children)
    while left:
        wait([child.sentinel for child in left])
        for child in [child for child in left if not child.is_alive()]:
            left.remove(child)
            # A signal that ended it is a negative number; a shell expects 128 and the signal.
            code = child.exitcode or 0
            status = status or (128 - code if code < 0 else code)
            end_all()
    return status


def _run_one(config: Config, stages: Sequence[StageName], options: Options) -> None:
    """Run one group of stages; end when the process that started it has gone."""
    from heft.stream.cli.main import say_what_failed
    from heft.stream.worker.app import run_worker

    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        while os.getppid() == parent.pid:  # it ends just now, or this process does and has closed what it waits for
            sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=end_with_parent, name="parent", daemon=True).start()
    set_up_logging(options.log_level, options.log_form)
    with say_what_failed():
        run_worker(config, stages, accept_loss=options.accept_loss)


class _Pages:
    """What is answered for all, asked of each process when somebody asks."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = ports
        self.by_path = {"/": self._index, "/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}

    def _index(self) -> Page:
        return Page(f"A worker of heft in {len(self._ports)} processes: /metrics /livez /readyz\n".encode())

    def _metrics(self) -> Page:
        answers = [self._ask(port, "/metrics") for port in self._ports.values()]
        found = [body.decode() for status, body in answers if status == HTTPStatus.OK]
        if not found:
            return STARTING
        return Page(metrics_together(found).encode(), kind=METRICS_KIND)

    def _livez(self) -> Page:
        still = [name for name, port in self._ports.items() if self._ask(port, "/livez")[0] != HTTPStatus.OK]
        if still:
            return Page(f"the event loop stands still: {', '.join(still)}\n".encode(), _NOT_UP)
        return Page(b"the event loops turn\n")

    def _readyz(self) -> Page:
        readiness = readiness_together(
            [(name, ask(f"127.0.0.1:{port}").readiness) for name, port in self._ports.items()]
        )
        status = HTTPStatus.OK if readiness.ready else _NOT_UP
        return Page(msgspec.json.encode(readiness) + b"\n", status, "application/json")

    @staticmethod
    def _ask(port: int, path: str) -> tuple[int, bytes]:
        """Return status and body of a page; 0 where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=_PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""
