"""The simulated shop at work: visits, slates, clicks, orders, and the network that carries their events.

One `Shop` runs once, from its first midnight on, and holds nothing of what has gone by: memory does not grow with the
log.

Every draw comes from generators spawned from one seed, in a fixed order, and what is drawn decides by comparison with
probabilities, so that a last bit that differs between processors (`exp`, `log`) practically never changes an event;
whatever of such numbers is logged is rounded. The same numpy gives the same log.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.random import SeedSequence, default_rng

from heft.models.records import Value
from heft.stream.events.wire import Action, Click, Event, Impression, Item, Order
from heft.stream.shop.catalogue import ABSENT, CATEGORY_NAMES, KIND_CATEGORY, Catalogue
from heft.stream.shop.delays import DAY, HOUR, MINUTE, SECOND, exponential, order_delay, within
from heft.stream.shop.demand import MOBILE, Demand, Floats, Ints, relevance
from heft.stream.shop.shoppers import AGES, DEVICES, MEMBERSHIPS, Intent, Shoppers, ask
from heft.stream.shop.truth import Drift, SlateTruth, World, rounded


class ShopConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How big the shop is and how noisy its log. The defaults are what all published figures are about: they stay.

    Raises
    ------
    ValueError
        If a number is outside its range.
    """

    requests_per_day: int = 5_000
    start_ms: int = 1_704_067_200_000
    """When its first day begins, in milliseconds since the epoch; a midnight, UTC."""
    products: int = 4_000
    new_each_day: int = 100
    shoppers: int = 3_000
    slate: int = 10
    """Items in a slate."""
    pool: int = 24
    """Items that the shop's ranker chooses from, of which a slate shows the first."""
    exploring: float = 0.25
    """Share of slates that are drawn from the pool blindly."""
    clicks: float = 0.034
    """Share of items clicked on purpose, on the first day as the shop's ranker shows them."""
    search: float = 0.7
    """Share of requests with a query; the others are recommendations."""
    drifts: tuple[tuple[float, str], ...] = ((2.5, "brands"), (3.75, "bargains"), (4.75, "layout"))
    """When, in days from the start, and what changes at once."""
    bots: float = 0.025
    """Share of requests made by bots."""
    flagged: float = 0.3
    """Share of bots that the shop knows for what they are."""
    accidental: float = 0.002
    """Probability of touching an item by accident; twice that on a mobile."""
    lost: float = 0.0003
    """Share of events that never arrive."""
    late: float = 0.0005
    """Share of events that arrive half a minute to ten minutes late."""
    repeated: float = 0.002
    """Share of events that arrive twice."""
    wrong_clock: float = 0.002
    """Share of carts reported by a device whose clock is a year ahead."""
    click_window_ms: int = 10 * MINUTE
    """The truth speaks of clicks within this time of the slate ..."""
    conversion_window_ms: int = DAY
    """... and of orders within this time of their click."""

    def __post_init__(self) -> None:
        for name in ("requests_per_day", "shoppers", "slate", "new_each_day"):
            if getattr(self, name) < 1:
                msg = f"shop: {name} is {getattr(self, name)}; expected at least 1"
                raise ValueError(msg)
        if self.pool < self.slate:
            msg = f"shop: pool is {self.pool}; expected at least slate, {self.slate}"
            raise ValueError(msg)
        for name in (
            "exploring",
            "clicks",
            "search",
            "bots",
            "flagged",
            "accidental",
            "lost",
            "late",
            "repeated",
            "wrong_clock",
        ):
            if not 0.0 <= getattr(self, name) < 1.0:
                msg = f"shop: {name} is {getattr(self, name)}; expected a share, at least 0 and below 1"
                raise ValueError(msg)


class Arrival(NamedTuple):
    """An event as it reaches the log. ``truth`` comes with each slate that is not lost, when it first arrives."""

    arrived_ms: int
    event: Event
    truth: SlateTruth | None


class _Visit:
    """Someone in the shop, or a bot, and what they still mean to do."""

    __slots__ = ("flagged", "intent", "left", "person", "query", "touched", "user_id")

    def __init__(self, person: int, user_id: str, left: int, *, flagged: bool = False) -> None:
        self.person = person  # ABSENT: a bot
        self.user_id = user_id
        self.left = left
        self.flagged = flagged
        self.intent: Intent | None = None
        self.query = ""
        self.touched: list[tuple[int, str]] = []  # when, and which item


_TRIALS = 1_000  # slates that tell how much is clicked
_VISIT_LENGTH = 2.2  # requests, on average
_BOT_LENGTH = 12
_BOT_CLICKS = 0.12
_BOTS = 20
_CLICKS_TOO_LATE = 0.02


class Shop:
    """A shop and its customers, from the first midnight on.

    Parameters
    ----------
    config
        How big and how noisy.
    seed
        The same config and seed give the same log.

    Examples
    --------
    >>> shop = Shop(ShopConfig(products=200, shoppers=50), seed=1)
    >>> arrivals = list(shop.arrivals(100))
    >>> {type(arrival.event).__name__ for arrival in arrivals} >= {"Slate", "Click"}
    True
    """

    def __init__(self, config: ShopConfig | None = None, seed: int = 1) -> None:
        self.config = config = config or ShopConfig()
        goods, people, world, traffic, network = (default_rng(each) for each in SeedSequence(seed).spawn(5))
        self.seed = seed
        self.catalogue = Catalogue(config.products, config.new_each_day, config.start_ms, goods)
        self.shoppers = Shoppers(config.shoppers, people)
        self.demand = Demand(world)
        self._traffic = traffic
        self._network = network
        self._drifts = [Drift(config.start_ms + round(day * DAY), of) for day, of in sorted(config.drifts)]
        self._arriving: list[tuple[int, int, Event, SlateTruth | None]] = []
        self._sequence = 0
        self._requests = 0
        self._row_of = {item_id: row for row, item_id in enumerate(self.catalogue.ids)}
        sent = (1.0 - config.lost) * (1.0 - config.late)
        self._click_heard = (1.0 - _CLICKS_TOO_LATE) * sent
        self._order_heard = sent * within(config.conversion_window_ms)
        self._set_base()

    @property
    def world(self) -> World:
        """What a file of truth begins with."""
        config = self.config
        return World(
            seed=self.seed,
            start_ms=config.start_ms,
            drifts=[Drift(config.start_ms + round(day * DAY), of) for day, of in sorted(config.drifts)],
            click_window_ms=config.click_window_ms,
            conversion_window_ms=config.conversion_window_ms,
        )

    def arrivals(self, requests: int | None = None) -> Iterator[Arrival]:
        """Yield events in arrival order, for as many requests, or without end; the last hour's clicks still arrive.

        To be called once.
        """
        config = self.config
        visits: list[tuple[int, int, _Visit]] = []
        midnight = config.start_ms + DAY
        now = starts = config.start_ms
        starts = self._next_visit(starts)
        while requests is None or self._requests < requests:
            if not visits or starts <= visits[0][0]:
                now, visit = starts, self._visit()
                starts = self._next_visit(starts)
            else:
                now, _, visit = heapq.heappop(visits)
            yield from self._arrived(now)
            while now >= midnight:
                self.catalogue.midnight(midnight)
                self.demand.midnight()
                self._row_of = {item_id: row for row, item_id in enumerate(self.catalogue.ids)}
                midnight += DAY
            while self._drifts and now >= self._drifts[0].at_ms:
                self.demand.change(self._drifts.pop(0).of)
            self._show(now, visit)
            visit.left -= 1
            if visit.left > 0:
                pause = 5 * SECOND + int(12 * SECOND * exponential(self._traffic))
                if visit.person != ABSENT:
                    pause = 12 * SECOND + int(50 * SECOND * exponential(self._traffic))
                self._sequence += 1
                heapq.heappush(visits, (now + pause, self._sequence, visit))
        yield from self._arrived(now + HOUR)

    def _set_base(self) -> None:
        """Find the logit that brings the share of clicks wanted, on slates that are never shown."""
        config, rng = self.config, self._traffic
        appeals, seen = [], []
        for _ in range(_TRIALS):
            person = self.shoppers.comes(rng.random())
            intent = self.shoppers.wants(person, rng) if rng.random() < config.search else None
            pool = self._search_pool(intent) if intent else self._browse_pool(person)
            greedy = np.argsort(-self._score(pool, ask(intent, rng) if intent else ""), kind="stable")
            rows = pool[greedy[: config.slate]]
            appeals.append(self.demand.appeal(self.catalogue, rows, self.shoppers, person, intent, set()))
            seen.append(self.demand.seen(int(self.shoppers.device[person]), len(rows)))
        appeal, looked = np.concatenate(appeals), np.concatenate(seen)
        low, high = -20.0, 10.0
        while high - low > 0.001:
            middle = (low + high) / 2.0
            clicks = float((looked / (1.0 + np.exp(-(appeal + middle)))).mean())
            low, high = (middle, high) if clicks < config.clicks else (low, middle)
        self.demand.base = round(low, 2)

    def _arrived(self, until_ms: int) -> Iterator[Arrival]:
        arriving = self._arriving
        while arriving and arriving[0][0] <= until_ms:
            arrived_ms, _, event, truth = heapq.heappop(arriving)
            yield Arrival(arrived_ms, event, truth)

    def _next_visit(self, at_ms: int) -> int:
        """Return when the next visit begins: a Poisson process with the hours of the day, by thinning."""
        config = self.config
        by_bots = config.bots / _BOT_LENGTH
        by_people = (1.0 - config.bots) / _VISIT_LENGTH
        busiest = 1.6 * self.demand.visitors * config.requests_per_day * (by_bots + by_people) / DAY
        while True:
            at_ms += 1 + int(exponential(self._traffic) / busiest)
            hour = (at_ms - config.start_ms) % DAY / HOUR
            if self._traffic.random() * 1.6 < 1.0 + 0.6 * math.sin((hour - 9.0) * math.pi / 12.0):
                return at_ms

    def _visit(self) -> _Visit:
        config, rng = self.config, self._traffic
        by_bots = config.bots / _BOT_LENGTH
        if rng.random() < by_bots / (by_bots + (1.0 - config.bots) / _VISIT_LENGTH):
            # Bots come under ids like those of people.
            number = int(_BOTS * rng.random())
            return _Visit(ABSENT, f"u{90_000 + 7 * number}", _BOT_LENGTH, flagged=number < _BOTS * config.flagged)
        person = self.shoppers.comes(rng.random())
        length = 1 + int(exponential(rng) / -math.log1p(-1.0 / _VISIT_LENGTH))
        return _Visit(person, self.shoppers.ids[person], length)

    def _show(self, now: int, visit: _Visit) -> None:
        config, rng, items = self.config, self._traffic, self.catalogue
        self._requests += 1
        request_id = f"r{self._requests:08d}"
        searching = rng.random() < config.search
        person = visit.person
        someone = person if person != ABSENT else int(rng.random() * len(self.shoppers))
        intent = self._intent(visit, someone) if searching else None
        pool = self._search_pool(intent) if intent else self._browse_pool(someone)
        score = self._score(pool, visit.query if intent else "")
        greedy = np.argsort(-score, kind="stable")
        blind = config.exploring / len(pool)
        exploring = rng.random() < config.exploring
        order = (rng.permutation(len(pool)) if exploring else greedy)[: config.slate]
        chances = np.where(order == greedy[: config.slate], 1.0 - config.exploring + blind, blind)
        rows = pool[order]
        device = int(self.shoppers.device[someone])
        row_list = rows.tolist()
        shown = [
            Item(items.ids[row], place, items.titles[row], each, items.features[row], chance)
            for place, (row, each, chance) in enumerate(
                zip(row_list, score[order].tolist(), np.round(chances, 6).tolist(), strict=True)
            )
        ]
        context: dict[str, Value] = {
            "device": DEVICES[device],
            "age": AGES[self.shoppers.age[someone]],
            "member": MEMBERSHIPS[self.shoppers.membership[someone]],
        }
        impression = Impression(
            request_id=request_id,
            user_id=visit.user_id,
            at_ms=now,
            items=shown,
            surface="search" if intent else "recommendation",
            query=visit.query if intent else "",
            context=context,
            bot=visit.flagged,
        )
        if person == ABSENT:
            meant, slipped = np.zeros(len(rows)), np.full(len(rows), _BOT_CLICKS)
            buys = np.zeros(len(rows))
        else:
            touched = {self._row_of.get(item, ABSENT) for at_ms, item in visit.touched if at_ms < now}
            appeal = self.demand.appeal(items, rows, self.shoppers, person, intent, touched)
            meant = self.demand.seen(device, len(rows)) / (1.0 + np.exp(-appeal))
            slipped = np.full(len(rows), config.accidental * (2.0 if device == MOBILE else 1.0))
            buys = 1.0 / (1.0 + np.exp(-self.demand.purchase(items, rows, self.shoppers, person, intent)))
        clicks = meant + slipped - meant * slipped
        on_purpose = meant / clicks
        listed = items.listed_ms[rows]
        truth = SlateTruth(
            request_id=request_id,
            at_ms=now,
            items=[item.item_id for item in shown],
            click=rounded((clicks * self._click_heard).tolist()),
            human=rounded(meant.tolist()),
            order=rounded((on_purpose * buys * self._order_heard).tolist()),
            order_ever=rounded((on_purpose * buys).tolist()),
            relevance=np.round(relevance(items, rows, intent), 3).tolist() if intent else [0.0] * len(rows),
            new=(now - listed < DAY).tolist(),
            bot=visit.flagged,
        )
        self._send(impression, truth)
        draws = rng.random(len(rows))
        for place in np.flatnonzero(draws < clicks).tolist():
            self._click(now, visit, request_id, shown[place].item_id, float(on_purpose[place]), float(buys[place]))

    def _intent(self, visit: _Visit, someone: int) -> Intent:
        rng = self._traffic
        draw = rng.random(2)
        if visit.intent is None or draw[0] < 0.3 or visit.person == ABSENT:
            visit.intent = self.shoppers.wants(someone, rng)
            visit.query = ask(visit.intent, rng)
        elif draw[1] < 0.6:
            visit.query = ask(visit.intent, rng)
        return visit.intent

    def _search_pool(self, intent: Intent) -> Ints:
        """Return what the shop finds for a query: half of it of the kind meant, the rest near it or by mistake."""
        pool = self.config.pool
        category = int(KIND_CATEGORY[intent.kind])
        found = self._famous(self.catalogue.of_kind[intent.kind], pool // 2)
        near = self._famous(self.catalogue.of_category[category], pool)
        far = (self._traffic.random(4) * len(self.catalogue)).astype(np.int64)
        return _first(np.concatenate([found, near[: pool // 2 - 2], far, near]), pool)

    def _browse_pool(self, someone: int) -> Ints:
        """Return what the shop would recommend: much of a category it believes in, something of everything."""
        pool = self.config.pool
        draw = self._traffic.random(2)
        liked = np.argsort(-self.shoppers.taste[someone], kind="stable")
        category = int(liked[int(len(CATEGORY_NAMES) * draw[0] ** 2)])
        near = self._famous(self.catalogue.of_category[category], pool // 2)
        far = (self._traffic.random(3 * pool) * len(self.catalogue)).astype(np.int64)
        return _first(np.concatenate([near, far]), pool)

    def _famous(self, rows: Ints, most: int) -> Ints:
        """Draw rows without repeats, in proportion to their fame (Efraimidis & Spirakis 2006, algorithm A)."""
        keys = np.log(1.0 - self._traffic.random(len(rows))) / self.catalogue.fame[rows]
        return rows[np.argsort(-keys, kind="stable")[:most]]

    def _score(self, pool: Ints, query: str) -> Floats:
        """Return what the shop's own ranker thinks of items: it counts words and stars, and knows no one."""
        items = self.catalogue
        score: Floats = 0.25 * np.log(items.fame[pool]) + 0.3 * (items.rating[pool] - 4.0) + 0.3 * items.on_sale[pool]
        if query:
            asked = set(query.split())
            score = score + 0.7 * np.array([len(asked & items.words[row]) for row in pool.tolist()])
        return np.asarray(np.round(score, 4))

    def _click(
        self, shown_ms: int, visit: _Visit, request_id: str, item_id: str, on_purpose: float, buys: float
    ) -> None:
        """Send a click, and what follows from it."""
        config, rng = self.config, self._traffic
        draw = rng.random(6)
        meant = bool(draw[0] < on_purpose)
        if draw[1] < _CLICKS_TOO_LATE:
            at_ms = shown_ms + config.click_window_ms + int(25 * MINUTE * draw[2])
        else:
            at_ms = shown_ms + min(1_500 + int(14 * SECOND * exponential(rng)), config.click_window_ms - 1)
        user_id = visit.user_id
        self._send(Click(request_id=request_id, user_id=user_id, item_id=item_id, at_ms=at_ms, bot=visit.flagged), None)
        if not meant:
            return
        visit.touched = [*visit.touched[-7:], (at_ms, item_id)]
        bought = bool(draw[3] < buys)
        if draw[4] < (0.8 if bought else 0.12):
            wrong = 365 * DAY if rng.random() < config.wrong_clock else 0
            self._sequence += 1
            self._send(
                Action(
                    user_id=user_id,
                    item_id=item_id,
                    at_ms=at_ms + 5 * SECOND + int(30 * SECOND * exponential(rng)) + wrong,
                    kind="add_to_cart",
                    event_id=f"a{self._sequence:08d}",
                ),
                None,
                ahead_ms=wrong,
            )
        if bought:
            delay = order_delay(rng)
            row = self._row_of.get(item_id)
            self._sequence += 1
            self._send(
                Order(
                    order_id=f"o{self._sequence:08d}",
                    user_id=user_id,
                    item_id=item_id,
                    at_ms=at_ms + delay,
                    value=self.catalogue.prices[row] if row is not None else 0.0,
                    request_id=request_id if draw[5] < 0.5 else None,
                ),
                None,
            )

    def _send(self, event: Event, truth: SlateTruth | None, ahead_ms: int = 0) -> None:
        """Hand an event to the network, which delays, repeats and loses."""
        config, rng = self.config, self._network
        draw = rng.random(4)
        if draw[0] < config.lost:
            return
        arrives = event.at_ms - ahead_ms + 30 + min(int(-250.0 * math.log(1.0 - draw[1])), 8_000)
        if draw[2] < config.late:
            arrives += 30 * SECOND + int(9 * MINUTE * draw[2] / config.late)
        self._sequence += 1
        heapq.heappush(self._arriving, (arrives, self._sequence, event, truth))
        if draw[3] < config.repeated:
            self._sequence += 1
            heapq.heappush(self._arriving, (arrives + 2 * SECOND, self._sequence, event, None))


def _first(rows: Ints, most: int) -> Ints:
    """Return the first distinct rows."""
    return np.array(list(dict.fromkeys(rows.tolist()))[:most], np.int64)
