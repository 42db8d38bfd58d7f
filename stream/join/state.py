"""What waits in the join, and how it lies in a snapshot.

What waits never changes: a snapshot takes it along as it is, and is encoded later, while the join goes on. Ids are in
tuples, not lists: the cyclic collector then has nothing to walk of what waits in great number.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from heft.models.records import Slate
from heft.stream.events.wire import Action, Click, Event, Order


class OpenSlate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A shown slate whose click window runs: ids only, its features have gone ahead in `Shown`."""

    shown_ms: int
    shard: int
    items: tuple[str, ...]


class OpenClick(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A joined click that waits for orders."""

    due_ms: int
    at_ms: int
    shard: int
    user_id: str


class Step(NamedTuple):
    """What waits for the frontier: an event, or the moment to give up on a click. Ordered by its first six fields."""

    due_ms: int
    kind: int
    id: str
    id2: str
    input: int
    serial: int  # offset and place within the record: breaks ties the same way on every run
    event: Event | None


NTH_BITS = 12
"""A record that a mapping splits has at most so many bits of events; a serial number ends with them."""

ACTION, SHOWN, CLICKED, CONVERTED, GIVE_UP = -1, 0, 1, 2, 5
"""Kinds of steps. At equal time they come in this order, what closes and matures before giving up."""


def step_of(input: int, serial: int, event: Event, clock_skew_ms: int) -> Step:
    """Return when and in which order an event is decided; an order waits for a click of a clock that is behind."""
    if type(event) is Action:
        return Step(event.at_ms, ACTION, event.user_id, event.item_id, input, serial, event)
    if type(event) is Slate:
        return Step(event.at_ms, SHOWN, event.request_id, "", input, serial, event)
    if type(event) is Click:
        return Step(event.at_ms, CLICKED, event.request_id, event.item_id, input, serial, event)
    assert type(event) is Order
    return Step(event.at_ms + clock_skew_ms, CONVERTED, event.order_id, event.item_id, input, serial, event)


Early: TypeAlias = tuple[int, int, Click]
"""A click ahead of its slate, behind the input and the serial number it came with."""


class SessionsState(msgspec.Struct):
    """Users, the longest quiet first, and what each did."""

    users: list[str]
    acts: list[tuple[tuple[int, str, str, str], ...]]


class JoinState(msgspec.Struct):
    """Everything a joiner needs to go on, as `Joiner.state` returns it once it has been decoded."""

    inputs: list[tuple[int, int, bool, list[tuple[str, int]], list[tuple[int, int]]]]
    """The fields of each `Input`, and what waits ahead in it."""
    ids: list[list[tuple[str, int]]]
    frontier: int
    steps: list[bytes]
    open: list[tuple[str, OpenSlate]]
    clicked: list[tuple[str, tuple[str, ...]]]
    closed: list[tuple[str, tuple[int, str]]]
    clicks: list[tuple[tuple[str, str], OpenClick]]
    values: list[tuple[tuple[str, str], float]]
    orders: list[tuple[tuple[str, str], int]]
    waiting: list[tuple[str, tuple[Early, ...]]]
    sessions: SessionsState
    fates: dict[str, dict[str, int]]
    dropped: dict[str, int]
    awaited: list[int] = []
    """The inputs that are waited for after a silence."""
