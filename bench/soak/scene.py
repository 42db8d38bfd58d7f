"""A broker, heft's topics, a shop's traffic, and worker processes that are looked at ten times a second."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep, time  # noqa: TID251 - a benchmark is a shell: it asks the wall clock
from typing import Any

import msgspec

from bench.soak.timeline import Look, changes
from bench.soak.traffic import Traffic
from heft.stream.config.settings import Config, load
from heft.stream.kafka.local_broker import Broker, free_port
from heft.stream.kafka.topics import Topics

LOOK_EVERY = 0.1
LAG_SECONDS = 5.0  # between two looks of a worker at its lag
_SAY_EVERY = 15.0  # seconds between two lines of progress where there is no terminal
_STOP_SECONDS = 60.0

Say = Callable[[str], None]


class SoakError(RuntimeError):
    """The soak cannot go on; the message says why."""


class Form(msgspec.Struct, frozen=True):
    """How much of everything."""

    rate: float
    minutes: float
    """Of traffic before something happens."""
    partitions: int
    churn: float
    """Minutes of workers that come and go."""
    quiet: float
    """Seconds from a kill to the next start."""
    away: float
    """Seconds that a broker or a store is away."""
    full: float
    """Seconds that the disk is full."""
    after: float
    """Seconds that are looked at after each cause."""
    settings: str
    """Further lines of the configuration."""


class Slot:
    """A place for one worker process after another, always on the same port, and the looks at it."""

    def __init__(self, name: str, file: Path, folder: Path) -> None:
        self.name, self.port = name, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.looks: list[Look] = []
        self.stops: list[float] = []
        self.faults: list[str] = []
        self.log = folder / f"{name}.log"
        self._file = file
        self._asked: float | None = None
        threading.Thread(target=self._look_on, name=f"looks at {name}", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether the last look found it ready."""
        return self.process is not None and bool(self.looks) and self.looks[-1].ready

    def start(self) -> float:
        """Start a process; return when."""
        environment = {**os.environ, "HEFT_METRICS__PORT": str(self.port)}  # noqa: TID251
        command = [sys.executable, "-m", "heft", "worker", "--config", str(self._file)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        return time()

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        self._asked = monotonic()
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> float:
        """Ask the process to stop, if nobody has, and wait for its end; return how many seconds that took."""
        if self._asked is None:
            self.ask_to_stop()
        process, asked, self._asked = self._taken(), self._asked or monotonic(), None
        try:
            status = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = 0
            self.faults.append(f"{self.name}: SIGTERM, and not stopped after {_STOP_SECONDS:.0f} s")
        if status:
            self.faults.append(f"{self.name}: SIGTERM, and exit status {status}; {self.last_words()}")
        self.stops.append(monotonic() - asked)
        return self.stops[-1]

    def kill(self) -> None:
        """End the process at once."""
        process = self._taken()
        process.kill()
        process.wait()

    def check(self) -> None:
        """Note a process that has ended by itself."""
        if self.process is not None and (status := self.process.poll()) is not None:
            self.process = None
            self.faults.append(f"{self.name}: ended by itself with status {status}; {self.last_words()}")

    def last_words(self) -> str:
        """Return the last line that it logged."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1][:300] if lines else "it said nothing"

    def _taken(self) -> subprocess.Popen[bytes]:
        process, self.process = self.process, None
        if process is None:
            msg = f"{self.name} does not run: {' '.join(self.faults) or self.last_words()}"
            raise SoakError(msg)
        return process

    def _look_on(self) -> None:
        while True:
            began = monotonic()
            look = self._look()
            if self.process is not None or self.looks:
                self.looks.append(look)
            sleep(max(0.0, LOOK_EVERY - (monotonic() - began)))

    def _look(self) -> Look:
        at = time()
        try:
            alive, _ = self._ask("/livez")
            _, told = self._ask("/readyz")
            said = json.loads(told)
        except (OSError, http.client.HTTPException, ValueError):
            return Look(at, self.name, "no answer")
        return Look(
            at, self.name, said["state"], alive, said["ready"], frozenset(said["held"]), frozenset(said["restored"]),
            tuple(said["missing"]), said["error"], said["lag"],
        )  # fmt: skip

    def _ask(self, path: str) -> tuple[bool, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status == 200, answer.read()
        finally:
            connection.close()


class Scene:
    """Everything of one case: topics of its own, snapshots of its own, its workers and its traffic.

    Parameters
    ----------
    broker
        It runs.
    folder
        Where configuration, logs and snapshots go.
    name
        Of the case; prefix of the topics.
    form
        How much.
    say
        Prints a line.
    """

    def __init__(self, broker: Broker, folder: Path, name: str, form: Form, say: Say) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.broker, self.folder, self.name, self.form, self.say = broker, folder, name, form, say
        self.snapshots = folder / "snapshots"
        topics = ("impressions", "clicks", "orders", "actions", "samples", "scored", "rejected")
        names = "\n".join(f'{topic} = "{name}.{topic}"' for topic in topics)
        self._file = folder / "heft.toml"
        self._file.write_text(
            f'[kafka]\nbootstrap = "{broker.bootstrap}"\ngroup = "{name}"\npartitions = {form.partitions}\n'
            f'[kafka.topics]\n{names}\n[snapshots]\nurl = "{self.snapshots}"\n{form.settings}'
        )
        self.config: Config = load(self._file, {})
        with Topics(self.config) as cluster:
            cluster.create()
        self.traffic = Traffic(self.config, form.rate)
        self.workers: list[Slot] = []
        self.back: list[float] = []
        """Seconds until each partition was back, where a case knows better than the looks."""
        self.doing = ""
        self.keeps = ExitStack()
        """What must stay until all has been compared."""
        self._began, self._said, self._shown = monotonic(), 0.0, 0

    @property
    def partitions(self) -> list[str]:
        """All partitions of all stages, named as workers name them."""
        of_each = [f"{stage}-{n}" for stage in ("join", "score") for n in range(self.form.partitions)]
        return of_each + [f"learn-{n}" for n in range(self.config.shards)]

    @property
    def running(self) -> list[Slot]:
        """The workers that should run."""
        return [worker for worker in self.workers if worker.process is not None]

    @property
    def looks(self) -> list[Look]:
        """All looks so far, in order."""
        return sorted((look for worker in self.workers for look in list(worker.looks)), key=lambda look: look.at)

    def open(self, workers: int) -> None:
        """Start the workers, and the traffic when they are ready; let it grow for the form's minutes."""
        for number in range(workers):
            self.slot(f"worker{number + 1}").start()
        if not self.until(lambda: all(worker.ready for worker in self.workers) and self.all_restored(), 240, "start"):
            msg = f"workers did not start within four minutes; {self.workers[0].last_words()}"
            raise SoakError(msg)
        self.traffic.start()
        self.watch(self.form.minutes * 60, "state grows")

    def slot(self, name: str) -> Slot:
        """Return a new place for a worker."""
        worker = Slot(name, self._file, self.folder)
        self.workers.append(worker)
        return worker

    def all_restored(self) -> bool:
        """Whether every partition is with a worker, by the last looks."""
        return set(self.partitions) <= {each for slot in self.running for each in slot.looks[-1].restored}

    def watch(self, seconds: float, doing: str) -> None:
        """Let time pass, and show what happens."""
        end = monotonic() + seconds
        self.doing = doing
        while (left := end - monotonic()) > 0:
            self._step(min(left, 0.2), left)

    def until(self, reached: Callable[[], Any], seconds: float, doing: str) -> bool:
        """Wait until something is so; return whether it came to that."""
        end = monotonic() + seconds
        self.doing = doing
        while not reached():
            if (left := end - monotonic()) <= 0:
                return False
            self._step(0.2, left)
        return True

    def drained(self, since: float) -> bool:
        """Whether each worker, looked at after this time, has nothing left to read."""
        return self.all_restored() and all(
            slot.looks[-1].lag == 0 and slot.looks[-1].at > since for slot in self.running
        )

    def finish(self) -> bool:
        """End the traffic, let the workers finish, and stop them; return whether they had taken everything."""
        self.traffic.end()
        self.traffic.check()
        ended = time()
        self.watch(2 * LAG_SECONDS, "the last events come through")  # the lag is looked at anew meanwhile
        done = self.until(lambda: self.drained(ended), 120, "what is left comes through")
        stopping = self.running  # all at once: else the last ones would take over from the first
        for worker in stopping:
            worker.ask_to_stop()
        for worker in stopping:
            worker.stop()
        return done

    def close(self) -> None:
        """End what still runs."""
        for worker in self.running:
            worker.kill()
        if self.traffic.is_alive():
            self.traffic.end()
        self.keeps.close()

    def _step(self, seconds: float, left: float) -> None:
        sleep(seconds)
        self.traffic.check()
        for worker in self.workers:
            worker.check()
        looks = list(changes(self.looks))
        for look in looks[self._shown :]:
            self.say(line_of(look, self._began - monotonic() + time()))
        self._shown = len(looks)
        now, terminal = monotonic(), sys.stderr.isatty()
        if terminal or now - self._said >= _SAY_EVERY:
            self._said = now
            ready = sum(slot.ready for slot in self.running)
            lag = sum(slot.looks[-1].lag or 0 for slot in self.running if slot.looks)
            text = (
                f"{self.name} {now - self._began:5.0f} s: {self.doing}, {left:.0f} s at most; "
                f"{ready} of {len(self.running)} ready, lag {lag}"
            )
            print(f"\r{text:<79}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


def line_of(look: Look, began: float) -> str:
    """Return a change as a line of the timeline."""
    flags = f"{'live' if look.alive else '-':4} {'ready' if look.ready else '-':5}"
    why = f"  ({look.missing[0]})" if look.missing and look.missing[0] != look.state else ""
    return f"{look.at - began:7.1f} {look.worker:8} {flags} {len(look.restored)}/{len(look.held)}  {look.state}{why}"
