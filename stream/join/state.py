"""What waits in the join, and how it lies in a snapshot.

What waits never changes: a snapshot takes it along as it is, and is encoded later, while the join goes on. Ids are in
tuples, not lists: the cyclic collector then has nothing to walk of what waits in great number.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from heft.stream.events.wire import Click, Event


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
