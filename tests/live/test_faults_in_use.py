"""A teacher that the mixture believes is killed, hangs, is slow, answers no numbers, and is exchanged for a random one.

What is asked for in a search is scored in line: the shop's ranker asks the teacher, and its impressions bring what it
was told along, as much as came in time. What was not scored that way, recommendations and whatever the ranker went
without, the worker asks for itself. The log that comes out is learned again as it grows: the losses are those of what
was shown, expected under the true probabilities of the clicks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from heft.models.evaluate import formulas
from heft.models.importance.weightings import Input
from heft.models.records import Closed, Record, Shown
from heft.models.teacher.template import Pair, Template
from heft.stream.events import messages
from heft.stream.events.messages import ScoredReader
from heft.stream.events.wire import Event, Impression
from heft.stream.kafka.local_broker import running_broker
from heft.stream.learn.learner import Learner, Outcome
from heft.stream.score.teacher import ScorerError
from heft.stream.shop import traffic
from heft.stream.shop.truth import SlateTruth
from heft.stream.teacher.clients import RemoteTeacher
from tests.support.builders import HOUR, SECOND, T0, action, click, impression, order
from tests.support.live import NEVER_IDLE, Shop, learned_late
from tests.support.scorer_process import TEMPLATE, Scorer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

START_MS = 2_208_988_800_000
"""A midnight to come: the wall clock makes no score late, only the time of the stream."""

SHOP = traffic.ShopConfig(requests_per_day=20_000, start_ms=START_MS, clicks=0.06)
LATENESS_MS = 10 * SECOND
PORTION = 250
"""Slates that are published at once; the worker has learned them before the next."""

PATIENCE_SECONDS = 0.5
"""Of the ranker."""

WORSE = 0.002
"""How much more than `uniform` the mixture may lose."""

FAULTS = ("killed", "hanging", "ten times slower", "no numbers", "exchanged")


class Part(NamedTuple):
    """A stretch of the log, and what the scorer does meanwhile."""

    name: str
    slates: int
    orders: dict[str, object] | None
    """None: it is dead."""


def parts(knows: Path) -> list[Part]:
    good: dict[str, object] = {"version": "v1@0", "knows": str(knows)}
    return [
        Part("good", 4_250, good),
        Part("killed", 500, None),
        Part("back", 500, good),
        Part("hanging", 250, good | {"seconds": 3.0}),
        Part("ten times slower", 250, good | {"seconds": 0.7}),
        Part("no numbers", 250, good | {"nan": True}),
        Part("good again", 750, good),
        Part("exchanged", 3_750, {"version": "v2@0", "random": True}),
    ]


class Row(NamedTuple):
    """What one slate cost: `uniform`, then the mixture."""

    at_ms: int
    samples: int
    clicks: float
    logged: tuple[float, float]
    expected: tuple[float, float]


class Again:
    """The log that a worker leaves, learned again while it grows."""

    def __init__(self, shop: Shop, truths: dict[str, SlateTruth]) -> None:
        self._shop, self._truths = shop, truths
        self._read, self._reader = 0, ScoredReader()
        self.records: list[Record] = []
        self.rows: list[Row] = []
        self.learner = Learner(shop.config.learner, self._note)

    def read(self) -> None:
        raw = self._shop.read("scored")
        for each in raw[self._read :]:
            message = messages.decode(each)
            for record in self._reader.read(message):
                self.learner.apply(message.source, record)
                self.records.append(record)
        self._read = len(raw)

    def _note(self, outcome: Outcome) -> None:
        truth = self._truths.get(outcome.request_id)
        if outcome.head != "click" or not outcome.measured or truth is None:
            return
        seen = outcome.vectors.seen
        p = np.clip(outcome.shown.p[seen].astype(np.float64)[:, [0, -1]], formulas.LEAST_P, 1.0 - formulas.LEAST_P)

        def losses(y: NDArray[np.float64]) -> tuple[float, float]:
            uniform, mixture = -(y @ np.log(p) + (1.0 - y) @ np.log1p(-p))
            return float(uniform), float(mixture)

        y = outcome.labels[seen].astype(np.float64)
        self.rows.append(
            Row(outcome.vectors.at_ms, len(y), float(y.sum()), losses(y), losses(np.array(truth.click)[seen]))
        )

    @property
    def believed(self) -> float:
        """How much of what is served comes from arms that take the teacher's logit in."""
        reading = [each.input is not Input.NONE for each in self.learner.click.weightings]
        return float(self.learner.click.hedge.weights[reading].sum())

    def worse(self, name: str, from_ms: int, until_ms: int) -> float:
        """Return how much more the mixture lost than `uniform`, and say it."""
        rows = [row for row in self.rows if from_ms <= row.at_ms < until_ms]
        samples, clicks = sum(row.samples for row in rows), sum(row.clicks for row in rows)
        logged, expected = (np.array([row[which] for row in rows]).sum(axis=0) for which in (3, 4))
        more = float(expected[1] / expected[0] - 1.0)
        print(
            f"{name:32} {samples:6} samples, {clicks:4.0f} clicks: NE of uniform "
            f"{logged[0] / (samples * formulas.entropy(clicks / samples)):.4f}, of the mixture {100 * more:+.3f} % "
            f"(by the clicks logged {100 * (logged[1] / logged[0] - 1.0):+.3f} %)"
        )
        return more


class Ranker:
    """The shop's, which has the teacher score what is searched for: a few slates at a time, and not when it fails."""

    def __init__(self, url: str) -> None:
        self._teacher, self._template = RemoteTeacher(url, PATIENCE_SECONDS), Template(TEMPLATE)
        self.no_numbers = 0

    def rank(self, events: Sequence[Event]) -> list[Event]:
        """Return the events; impressions of searches with what the teacher said in time."""
        searches = [event for event in events if isinstance(event, Impression) and event.query]
        told: dict[int, Impression] = {}
        try:
            for few in (searches[n : n + 25] for n in range(0, len(searches), 25)):
                told |= {id(slate): ranked for slate, ranked in zip(few, self._ask(few), strict=True)}
        except ScorerError:
            pass  # the others go without
        return [told.get(id(event), event) for event in events]

    def _ask(self, slates: Sequence[Impression]) -> list[Impression]:
        answer = self._teacher.score([self._template.render(slate, item) for slate in slates for item in slate.items])
        self.no_numbers += sum(each is None for each in answer.logits)
        logits, ranked = iter(answer.logits), []
        for slate in slates:
            said = [None if each is None else (each.logit_256 / 256, None) for each in islice(logits, len(slate.items))]
            items = [msgspec.structs.replace(item, teacher=each) for item, each in zip(slate.items, said, strict=True)]
            known = any(each is not None for each in said)
            version = answer.teacher.version
            ranked.append(msgspec.structs.replace(slate, items=items, teacher=version) if known else slate)
        return ranked

    def close(self) -> None:
        self._teacher.close()


def portions(arrivals: Iterator[traffic.Arrival], slates: int) -> Iterator[list[traffic.Arrival]]:
    """Yield what arrives until so many slates have, a portion at a time."""
    for _ in range(slates // PORTION):
        portion, shown = list[traffic.Arrival](), 0
        for arrival in arrivals:
            portion.append(arrival)
            shown += arrival.truth is not None
            if shown == PORTION:
                break
        yield portion


def teach(arrivals: Sequence[traffic.Arrival], out: Path) -> None:
    """Write what a good teacher knows: the true relevance, and some noise."""
    noise = np.random.default_rng(1)
    template, logits = Template(TEMPLATE), dict[str, dict[str, float]]()
    for event, truth in ((each.event, each.truth) for each in arrivals if each.truth is not None):
        assert isinstance(event, Impression)
        assert truth is not None
        for item, relevance in zip(event.items, truth.relevance, strict=True):
            pair: Pair = template.render(event, item)
            logits.setdefault(pair.query, {}).setdefault(pair.item, relevance + float(noise.normal(0.0, 0.5)))
    out.write_text(json.dumps(logits), encoding="utf-8")


def movers(at_ms: int) -> list[Event]:
    """Acts of five users in each topic: all that was shown ``LATENESS_MS`` before is decided."""
    log: list[Event] = []
    for n in range(5):
        name, at = f"mover{n}", at_ms - T0
        log += [impression(f"{at_ms}{n}", name, at), click(f"none{n}", "a", name, at)]
        log += [order(f"{at_ms}{n}", "a", name, at), action("a", name, at)]
    return log


class Played(NamedTuple):
    """What is left when the plan was played to its end, and the worker has stopped."""

    shop: Shop
    again: Again
    begins: dict[str, int]
    """When each part began; the last of them is ``end``."""
    believed: float
    """What arms that take the teacher's logit in weighed before the first fault."""
    late_at_start: float
    no_numbers: int
    """Answers to the shop's ranker that were none."""
    seen: dict[str, float]
    """The worker's metrics at the end."""


def play(shop: Shop, scorer: Scorer, plan: Sequence[Part], arrivals: Sequence[traffic.Arrival]) -> Played:
    """Publish the log portion by portion, in step with the worker, while the scorer does what the plan says."""
    worker, ranker = shop.worker(), Ranker(scorer.url)
    again = Again(shop, {each.truth.request_id: each.truth for each in arrivals if each.truth is not None})

    def seen() -> dict[str, float]:
        found: dict[str, float] = shop.until(lambda: shop.scraped(worker), 180.0)  # a fresh clone compiles first
        return found

    def clock_ms() -> int:
        return round(seen().get('heft_learner_timestamp_seconds{shard="0"}', 0.0) * 1000)

    def learned(until_ms: int) -> bool:
        return clock_ms() >= until_ms

    def caught_up() -> bool:
        again.read()
        made = sum(len(message.records) for message in shop.messages("samples"))
        return shop.joined_all() and made == len(again.records) and clock_ms() == again.learner.clock_ms

    coming, begins, late_at_start, believed, end_ms = iter(arrivals), dict[str, int](), -1.0, 0.0, 0
    seen()
    for part in plan:
        if part.orders is None:
            scorer.kill()
        else:
            scorer.order(**part.orders)
            if scorer.process.poll() is not None:
                scorer.start()
        for portion in portions(coming, part.slates):
            end_ms = portion[-1].arrived_ms
            shown = [each.truth.at_ms for each in portion if each.truth is not None and not each.truth.bot]
            begins.setdefault(part.name, shown[0])
            shop.publish([*ranker.rank([each.event for each in portion]), *movers(end_ms)])
            again.read()  # while the worker learns the next
            decided_ms = max(at_ms for at_ms in shown if at_ms < end_ms - LATENESS_MS)
            shop.until(partial(learned, decided_ms))
            if late_at_start < 0.0:
                late_at_start = learned_late(seen())
        if part.name == "good":
            again.read()
            believed = again.believed
    ranker.close()
    shop.publish([*(each.event for each in coming), *movers(end_ms + 2 * HOUR)])
    shop.until(caught_up, 120.0)
    at_end = seen()
    shop.stop(worker)
    return Played(shop, again, begins | {"end": end_ms}, believed, late_at_start, ranker.no_numbers, at_end)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("shop")
    plan = parts(folder / "knows.json")
    arrivals = list(traffic.Shop(SHOP, seed=1).arrivals(sum(part.slates for part in plan)))
    teach(arrivals, folder / "knows.json")
    scorer = Scorer(folder, version="v1@0")
    with running_broker("tansu") as bootstrap:
        teacher = {"url": scorer.url, "template": TEMPLATE, "timeout": "2s"}
        shop = Shop(bootstrap, folder, "shop", interval="20s", teacher=teacher, idle_after_ms=NEVER_IDLE)
        try:
            yield play(shop, scorer, plan, arrivals)
        finally:
            shop.close()
            scorer.kill()


def test_the_mixture_believes_the_teacher_before_it_fails_and_learns_of_the_other(played: Played) -> None:
    reference = played.again.learner.click.teacher
    assert reference is not None
    assert reference.takeovers >= 1
    assert played.believed > 0.2, "or nothing of the rest is a test"
    assert reference.version == "v2@0"


def test_what_is_served_is_as_good_as_uniform_in_every_fault_and_the_hour_after(played: Played) -> None:
    again, begins = played.again, played.begins
    names, worse = list(begins), []
    for name, after in pairwise(names):
        if name in FAULTS:
            worse.append(again.worse(name, begins[name], begins[after]))
            worse.append(again.worse(f"{name}, and the hour after", begins[name], begins[after] + HOUR))
    worse.append(again.worse("from the first fault to the end", begins["killed"], begins["end"]))
    assert len(worse) == 2 * len(FAULTS) + 1
    for hour, at_ms in enumerate(range(begins["exchanged"], begins["end"] - HOUR, HOUR), start=1):
        worse.append(again.worse(f"hour {hour} of the other teacher", at_ms, at_ms + HOUR))
    assert max(worse) <= WORSE


def test_the_log_learned_again_is_what_was_learned_live_bit_by_bit_and_in_time(played: Played) -> None:
    shop = played.shop
    assert shop.latest("learn-0")[0]["offset"] == len(shop.read("scored"))
    assert shop.learned().digest() == played.again.learner.digest()
    assert learned_late(played.seen) == played.late_at_start


def test_every_event_has_one_fate_and_every_item_a_score_or_one_reason_why_not(played: Played) -> None:
    seen, records = played.seen, played.again.records
    assert played.shop.each_has_one_fate()
    slates = [record for record in records if isinstance(record, Shown)]
    asked = [record for record in slates if not record.slate.teacher]
    assert len(asked) < len(slates), "some bring their scores"
    items, in_time = (sum(map(len, each)) for each in zip(*((r.slate.items, r.scores) for r in asked), strict=True))
    later = sum(len(record.scores) for record in records if isinstance(record, Closed))
    missing = {name: n for name, n in seen.items() if name.startswith("heft_scores_missing_total")}
    for reason in ("failed", "timeout"):
        assert seen[f'heft_teacher_failures_total{{reason="{reason}"}}'] > 0
    assert played.no_numbers > 0
    assert seen['heft_teacher_pairs_total{what="asked"}'] == items == in_time + later + sum(missing.values())
    assert seen['heft_scores_total{partition="0",when="on_time"}'] == sum(len(record.scores) for record in slates)
    assert seen['heft_scores_total{partition="0",when="later"}'] == later
