"""What waits in the join, and how it lies in a snapshot.

What waits never changes: a snapshot takes it along as it is, and is encoded later, while the join goes on. What waits
in great number is a struct that the cyclic collector never walks.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from heft.models.records import Slate
from heft.stream.events.wire import Click
from heft.stream.join.columns import Columns

_as_bytes = msgspec.msgpack.Encoder().encode
_ids = msgspec.msgpack.Decoder(list[str]).decode


class OpenSlate(msgspec.Struct, frozen=True, gc=False):
    """A shown slate whose click window runs: ids only, its features have gone ahead in `Shown`."""

    request_id: str
    shown_ms: int
    shard: int
    items: bytes
    """The ids, packed: few slates are clicked, and one string of bytes is held, written and read at once."""

    @classmethod
    def of(cls, slate: Slate, shard: int) -> OpenSlate:
        """Return what the join keeps of a slate."""
        return cls(slate.request_id, slate.at_ms, shard, _as_bytes([item.item_id for item in slate.items]))

    def has(self, item_id: str) -> bool:
        """Whether an item was shown in it."""
        return item_id in _ids(self.items)


LATER_CLICKS = ("after_window", "evicted", "bot")
"""What may become of the clicks of a slate that is not open."""


class ClosedSlate(msgspec.Struct, frozen=True, gc=False):
    """A slate that is not open any more. ``fate``: the place of what becomes of its clicks in `LATER_CLICKS`."""

    request_id: str
    shown_ms: int
    fate: int


class OpenClick(msgspec.Struct, frozen=True, gc=False):
    """A joined click that waits for orders."""

    request_id: str
    item_id: str
    due_ms: int
    at_ms: int
    shard: int
    user_id: str


class ClickValue(msgspec.Struct, frozen=True, gc=False):
    """What the orders that were credited to a click add up to."""

    request_id: str
    item_id: str
    value: float


class KnownOrder(msgspec.Struct, frozen=True, gc=False):
    """An order that would be a duplicate if it came again."""

    order_id: str
    item_id: str
    due_ms: int


class KnownId(msgspec.Struct, frozen=True, gc=False):
    """The id of an event that would be a duplicate if it came again."""

    id: str
    until_ms: int


Early: TypeAlias = tuple[int, int, Click]
"""A click ahead of its slate, behind the input and the serial number it came with."""


class OpenSlatesState(msgspec.Struct):
    """Open slates; and the requests of those that have clicks, behind them the clicked items of each, packed."""

    slates: Columns
    clicked: list[str]
    items: list[bytes]


class OpenClicksState(msgspec.Struct):
    """Clicks that wait for orders, and what those that have come add up to."""

    clicks: Columns
    values: Columns


class JoinState(msgspec.Struct):
    """Everything a joiner needs to go on, as `Joiner.state` returns it once it has been decoded."""

    inputs: list[tuple[int, int, bool, list[tuple[str, int]], list[tuple[int, int]]]]
    """The fields of each `Input`, and what waits ahead in it."""
    ids: list[Columns]
    frontier: int
    steps: list[bytes]
    open: OpenSlatesState
    closed: Columns
    clicks: OpenClicksState
    orders: Columns
    waiting: list[tuple[str, tuple[Early, ...]]]
    sessions: Columns
    fates: dict[str, dict[str, int]]
    dropped: dict[str, int]
    awaited: list[int] = []
    """The inputs that are waited for after a silence."""
