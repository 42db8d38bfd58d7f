"""What waits for the frontier to pass it, and in which order it is then decided."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from heft.models.records import Slate
from heft.stream.events.wire import Action, Click, Event, Order
from heft.stream.state.codec import InOrder, Later


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


def packed_steps(steps: Iterable[Step]) -> Later:
    """Return steps in their order, each as its bytes, made when they are written."""
    return Later(lambda: [InOrder(step) for step in sorted(steps)])  # features are handed on in the order they came


unpacked_step = msgspec.msgpack.Decoder(Step).decode
