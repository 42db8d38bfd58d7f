"""`heft demo`: a simulated shop, a broker and a worker, for as long as it takes to see the model get better.

The shop's events go through a real broker and real Faust agents, event time running many times faster than the clock
on the wall, so that click windows close and orders mature. Only the demo knows the truth: what the best possible
predictions would have scored on the same samples stands beside what the model scored.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from models import exact
from stream.broker import free_port, running_broker
from stream.config import Config, load
from stream.events import Click
from stream.metrics import Seen
from stream.publish import Publisher
from stream.shop.simulate import paced
from stream.shop.traffic import Arrival, Shop
from stream.shop.truth import SlateTruth
from stream.topics import Topics

SPEED = 1_728
"""Event time for wall time: three days of the shop in 150 seconds."""

_WINDOW = 50_000
_LABELS_KNOWN_MS = 10 * 60_000 + 70_000 + 300_000
_PARTITIONS = 2


class _Slate(NamedTuple):
    truth: SlateTruth
    clicked: set[str]


class Oracle:
    """What the true probabilities score on the newest slates whose labels are known."""

    def __init__(self) -> None:
        self._slates: deque[_Slate] = deque()
        self._by_request: dict[str, _Slate] = {}

    def see(self, arrival: Arrival) -> None:
        """Take note of what the shop sent."""
        truth, event = arrival.truth, arrival.event
        if truth is not None and not truth.bot:
            slate = self._by_request[truth.request_id] = _Slate(truth, set())
            self._slates.append(slate)
        elif isinstance(event, Click) and event.request_id in self._by_request:
            self._by_request[event.request_id].clicked.add(event.item_id)

    def scores(self, until_ms: int) -> tuple[float, float]:
        """Return AUC and NE over the newest samples of slates shown before ``until_ms``."""
        known = [slate for slate in self._slates if slate.truth.at_ms < until_ms]
        slates = known[-_WINDOW // 10 :]
        while self._slates and len(self._slates) > 3 * _WINDOW // 10:
            del self._by_request[self._slates.popleft().truth.request_id]
        p = np.array([each for slate in slates for each in slate.truth.click])
        labels = np.array([item in slate.clicked for slate in slates for item in slate.truth.items], np.uint8)
        if not labels.any():
            return float("nan"), float("nan")
        return exact.auc(labels, p), exact.logloss(labels, p) / exact.entropy(float(labels.mean()))


@contextmanager
def _worker(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = (folder / "worker.log").open("wb")
    command = [sys.executable, "-m", "stream.cli", "worker", "--config", str(folder / "heft.toml")]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


def run_demo(seconds: float = 150.0, seed: int = 1) -> int:
    """Run the demo; return the exit status."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="heft-demo-") as name:
        folder = Path(name)
        console.print("Starting an embedded broker, and a worker that joins, scores and learns ...")
        with running_broker("tansu") as bootstrap:
            config = _config(bootstrap, folder)
            with Topics(config) as topics:
                topics.create()
            with _worker(folder) as worker:
                try:
                    return _watch(console, config, worker, folder, seconds, seed)
                except KeyboardInterrupt:
                    console.print("Stopping ...")
                    return 130


def _config(bootstrap: str, folder: Path) -> Config:
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
    path = folder / "heft.toml"
    path.write_text(text)
    return load(path)


def _watch(
    console: Console, config: Config, worker: subprocess.Popen[bytes], folder: Path, seconds: float, seed: int
) -> int:
    shop, oracle = Shop(seed=seed), Oracle()
    with console.status("The worker compiles what it learns with; up to a minute, the first time only ..."):
        while worker.poll() is None and not Seen(config.metrics.port).answered:
            time.sleep(0.2)
    started = next_look = time.monotonic()
    sent, seen = 0, Seen(config.metrics.port)
    with Live(console=console, refresh_per_second=4) as live, closing(Publisher(config)) as publisher:
        for batch in paced(shop.arrivals(), shop.config.start_ms, SPEED):
            for arrival in batch:
                publisher.send(arrival.event)
                oracle.see(arrival)
            sent += len(batch)
            if worker.poll() is not None:
                console.print((folder / "worker.log").read_text()[-4000:])
                console.print(f"[red]The worker ended with status {worker.returncode}; its last words are above.")
                return 1
            elapsed = time.monotonic() - started
            if elapsed >= seconds:
                break
            if started + elapsed >= next_look:
                next_look = started + elapsed + 1.0
                seen = Seen(config.metrics.port)
                live.update(_table(seen, oracle, sent, elapsed, elapsed * SPEED / 86_400))
    _summary(console, seen, oracle)
    return 0


def _known_until(seen: Seen) -> float:
    return seen.total("heft_learner_timestamp_seconds") * 1000 - _LABELS_KNOWN_MS


def _table(seen: Seen, oracle: Oracle, sent: int, elapsed: float, days: float) -> Table:
    table = Table(box=box.SIMPLE, title=f"day {days:.2f} of the shop, {SPEED:,} times as fast as the clock")
    for column in ("", "now"):
        table.add_column(column)
    samples = seen.total("heft_samples_total")
    table.add_row("events sent", f"{sent:,} ({sent / max(elapsed, 1):,.0f}/s)")
    table.add_row("not yet read", f"{seen.total('heft_lag_records', stage='join'):,.0f} records")
    table.add_row("samples learned", f"{samples:,.0f} ({samples / max(elapsed, 1):,.0f}/s)")
    table.add_row("slates, clicks waiting", f"{_waiting(seen)}")
    if samples:
        auc, ne = oracle.scores(int(_known_until(seen)))
        for name, metric, best in (("AUC", "heft_auc_ratio", auc), ("NE", "heft_normalised_entropy_ratio", ne)):
            model = seen.total(metric, head="click", policy="mixture")
            table.add_row(f"{name} of clicks", f"{model:.4f}   the truth itself: {best:.4f}")
        calibration = seen.total("heft_calibration_ratio", head="click", policy="mixture")
        table.add_row("predicted / actual", f"{calibration:.3f}")
    return table


def _waiting(seen: Seen) -> str:
    slates, clicks = seen.total("heft_learner_open_slates"), seen.total("heft_learner_open_clicks")
    return f"{slates:,.0f}, {clicks:,.0f}"


def _summary(console: Console, seen: Seen, oracle: Oracle) -> None:
    auc, ne = oracle.scores(int(_known_until(seen)))
    model = seen.total("heft_normalised_entropy_ratio", head="click", policy="mixture")
    delay = seen.delay_quantile("learn", 0.99)
    console.print(
        f"\nOver the newest samples the model's NE was {model:.4f}, that of the truth itself {ne:.4f} (1 is knowing "
        f"only the click rate):\nit has come [bold]{(1 - model) / (1 - ne):.0%}[/bold] of the way to what can be known."
        f" AUC of the truth: {auc:.4f}.\n99 % of messages were learned within {delay:g} s of their append.\n\n"
        "What next:\n"
        "  .venv/bin/heft simulate --requests 30000 --seed 1 --out shop.jsonl.zst    the same shop as a log\n"
        "  .venv/bin/heft replay shop.jsonl.zst                                      learn it at full speed\n"
        "  .venv/bin/heft config                                                     point it at your own Kafka: README"
    )
