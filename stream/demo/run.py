"""`heft demo`: a simulated shop, a broker and a worker, for as long as it takes to see the models race.

Where the teacher's libraries are installed, the shop first does business that nobody watches, a teacher is fine-tuned
on the log of it, and then the same shop goes on, live. Its events go through a real broker and real Faust agents, event
time running many times faster than the clock on the wall, so that click windows close and orders mature. Only the demo
knows the truth: what the best possible predictions would have scored on the same samples stands beside what was scored.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

from rich.console import Console
from rich.live import Live

from heft.stream.config.settings import Config, load
from heft.stream.demo.oracle import Oracle
from heft.stream.demo.teachers import STATIC, Kind, lacking, why_no_teacher
from heft.stream.demo.view import SPEED, summary, view
from heft.stream.kafka.local_broker import free_port, running_broker
from heft.stream.kafka.publish import Publisher
from heft.stream.kafka.topics import Topics
from heft.stream.observe.scrape import Scrape
from heft.stream.shop.delays import DAY, HOUR
from heft.stream.shop.raters import Raters
from heft.stream.shop.simulate import opened_now, paced, write_until
from heft.stream.shop.traffic import Arrival, Shop
from heft.stream.terminal.progress import counting
from heft.stream.terminal.report_tables import open_console

YESTERDAY_MS = 12 * HOUR
"""What the teacher learns from, with the judgements below: its fine-tuning takes half a minute of one core."""

_JUDGEMENTS = 10_000
_PARTITIONS = 2


class WorkerError(RuntimeError):
    """The worker ended by itself; the message has its last words."""


@contextmanager
def running_worker(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run all three stages in one worker process, configured by a file; what it says goes into a log beside that.

    Raises
    ------
    WorkerError
        If it has ended before it was asked to.
    """
    said = file.with_name("worker.log")
    command = [sys.executable, "-m", "heft", "worker", "--config", str(file)]
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
        if process.poll() is not None:
            msg = f"the worker ended with status {process.returncode}: {said.read_text()[-4000:]}"
            raise WorkerError(msg)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Traffic(NamedTuple):
    """A shop at work, and the event time it has come to."""

    shop: Shop
    arrivals: Iterator[Arrival]
    now_ms: int


def open_shop(seed: int) -> Traffic:
    """Return the traffic of a shop whose first day begins now.

    Now, because a score is on time by the wall clock as well: the teacher of a shop of the past came too late for it.
    """
    shop = opened_now(seed)
    return Traffic(shop, shop.arrivals(), shop.config.start_ms)


def run_demo(seconds: float = 150.0, seed: int = 1, *, teach: bool = True, kind: Kind = STATIC) -> int:
    """Run the demo, with a teacher of this kind where its libraries are; return the exit status."""
    console = open_console()
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="heft-demo-") as name:
        folder = Path(name)
        try:
            traffic, teacher = open_shop(seed), None
            if said := why_no_teacher(teach, lacking()):
                console.print(said, markup=False)
            else:
                traffic, teacher = _taught(console, traffic, folder, kind)
            console.print("Starting an embedded broker, and a worker that joins, scores and learns ...")
            with running_broker("tansu") as bootstrap:
                file = _write_config(bootstrap, folder, teacher)
                config = load(file)
                with Topics(config) as topics:
                    topics.create()
                with running_worker(file) as worker:
                    _watch(console, config, worker, traffic, seconds, kind)
        except KeyboardInterrupt:
            console.print("Stopping ...")
            return 130
    return 0


def _end(number: int, _: object) -> NoReturn:
    """End as after an error, so that the worker, the broker and the folder go too."""
    raise SystemExit(128 + number)


def _taught(console: Console, traffic: Traffic, folder: Path, kind: Kind) -> tuple[Traffic, Path | None]:
    """Let the shop do business for a while and fine-tune a teacher on it; return how the shop goes on."""
    log, config, out = folder / "yesterday.jsonl", folder / "finetune.toml", folder / "teacher"
    config.write_text("")  # what lies in the working folder is not the demo's
    judged, raters = folder / "judged.csv", Raters(_JUDGEMENTS, traffic.shop.seed, of_a_slate=8)
    with counting("events of yesterday, which nobody watches") as advance:
        now_ms = write_until(traffic.arrivals, traffic.now_ms + YESTERDAY_MS, log, advance, raters)
    raters.write(judged)
    console.print(
        f"A teacher is made of them and of {len(raters.rows):,} human judgements of what was shown.\n"
        f"{kind.learns}\nAbout half a minute ..."
    )
    command = [sys.executable, "-m", "heft", "teacher", "finetune", str(log), "--relevance", str(judged)]
    command += [*kind.options, "--config", str(config), "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        console.print(f"[red]That ended with status {done.returncode}; the demo goes on without a teacher.")
    return traffic._replace(now_ms=now_ms), None if done.returncode else out


def _write_config(bootstrap: str, folder: Path, teacher: Path | None) -> Path:
    text = f"""
[kafka]
bootstrap = "{bootstrap}"
partitions = {_PARTITIONS}
[join]
lateness = "5m"
align = "1h"
[snapshots]
url = "{folder}/snapshots"
interval = "20s"
[metrics]
port = {free_port()}
"""
    if teacher is not None:
        text += f'[teacher]\nmodel = "{teacher}"\ndevice = "cpu"\n'
    path = folder / "heft.toml"
    path.write_text(text)
    return path


def _watch(
    console: Console, config: Config, worker: subprocess.Popen[bytes], traffic: Traffic, seconds: float, kind: Kind
) -> None:
    oracle, port = Oracle(), config.metrics.port
    with console.status("The worker compiles what it learns with; up to a minute, the first time ..."):
        while worker.poll() is None and not Scrape.at(port).answered:
            time.sleep(0.2)
    if config.has_teacher:
        with console.status("It loads the teacher ..."):
            while worker.poll() is None and not Scrape.at(port).total("heft_teacher_ready"):
                time.sleep(0.2)
    started = next_look = time.monotonic()
    sent, seen = 0, Scrape()
    opened_ms = traffic.shop.config.start_ms
    with Live(console=console, refresh_per_second=4) as live, closing(Publisher(config)) as publisher:
        for batch in paced(traffic.arrivals, traffic.now_ms, SPEED):
            for arrival in batch:
                publisher.send(arrival.event)
                oracle.see(arrival)
            sent += len(batch)
            elapsed = time.monotonic() - started
            if elapsed >= seconds or worker.poll() is not None:
                break
            if started + elapsed >= next_look:
                next_look = started + elapsed + 1.0
                seen = Scrape.at(port)
                day = (traffic.now_ms - opened_ms + elapsed * 1000 * SPEED) / DAY
                live.update(view(config, seen, oracle, sent, elapsed, day))
    if worker.poll() is None:
        summary(console, config, seen, oracle, kind)
