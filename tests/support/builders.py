"""Builders of events and joiners with sensible defaults, so that a test says only what matters to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from heft.models.records import Record
from heft.stream.events.wire import Action, Click, Event, Impression, Item, Order, encode
from heft.stream.join.config import JoinConfig
from heft.stream.join.joiner import Joiner

T0 = 1_600_000_000_000
SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def impression(
    request: str = "r1", user: str = "u1", at: int = 0, items: Iterable[str] = "abc", **more: Any
) -> Impression:
    """An impression ``at`` milliseconds after T0; ``items`` are ids."""
    shown = [Item(item_id=item) for item in items]
    return Impression(request_id=request, user_id=user, at_ms=T0 + at, items=shown, **more)


def click(request: str = "r1", item: str = "a", user: str = "u1", at: int = SECOND, **more: Any) -> Click:
    return Click(request_id=request, user_id=user, item_id=item, at_ms=T0 + at, **more)


def order(
    order_id: str = "o1", item: str = "a", user: str = "u1", at: int = MINUTE, value: float = 1.0, **more: Any
) -> Order:
    return Order(order_id=order_id, user_id=user, item_id=item, at_ms=T0 + at, value=value, **more)


def action(item: str = "a", user: str = "u1", at: int = 0, kind: str = "cart", **more: Any) -> Action:
    return Action(user_id=user, item_id=item, at_ms=T0 + at, kind=kind, **more)


def crowd(at: int, users: int = 5) -> list[Event]:
    """Acts of five users: what it takes to move a watermark to ``at``, less the lateness."""
    return [action(item="x", user=f"crowd{n}", at=at, kind="view") for n in range(users)]


def joined(events: Sequence[Event | bytes], config: JoinConfig | None = None) -> tuple[list[Record], Joiner]:
    """The records of a log of these events, read to its end, and the joiner that made them."""
    joiner = Joiner(config or JoinConfig(), ["log"])
    records = []
    for offset, event in enumerate(events):
        joiner.push(0, offset, event if isinstance(event, bytes) else encode(event))
        records += joiner.drain()
    records += joiner.finish()
    return [record for _, record in records], joiner
