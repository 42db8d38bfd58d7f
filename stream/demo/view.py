"""What the demo shows while it runs, and what it says at the end."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console, Group
from rich.table import Table

from heft.stream.config.settings import Config
from heft.stream.demo.leaderboard import HEAD, MIXTURE, race_table, runners, verdict
from heft.stream.demo.oracle import Oracle
from heft.stream.demo.teachers import Kind
from heft.stream.observe.scrape import Scrape
from heft.stream.shop.delays import DAY
from heft.stream.terminal.table import number

SPEED = 1_728
"""Event time for wall time: three days of the shop in 150 seconds."""

_LABELS_KNOWN_MS = 10 * 60_000 + 70_000 + 300_000  # after a slate was shown: click window, serve delay, lateness


def known_until(seen: Scrape) -> float:
    """Return the event time in milliseconds up to which slates were shown whose labels the worker has learned."""
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
        auc, ne = oracle.scores(int(known_until(seen)))
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
    """Known when the slate was shown: an arm may read them as an input."""
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


def summary(console: Console, config: Config, seen: Scrape, oracle: Oracle, kind: Kind) -> None:
    """Say who won, how far the mixture has come, and what to try next."""
    auc, ne = oracle.scores(int(known_until(seen)))
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
