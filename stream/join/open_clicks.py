"""Joined clicks whose conversion window runs, and which of them an order is credited to."""

from __future__ import annotations

from typing import NamedTuple

from heft.stream.events.wire import Order
from heft.stream.join.columns import columns, things_of
from heft.stream.join.fifo_map import Fifo
from heft.stream.join.state import ClickValue, OpenClick, OpenClicksState
from heft.stream.state.codec import Later

_Key = tuple[str, str]  # request, item


class MatureClick(NamedTuple):
    """A click whose conversion window has ended. ``value`` is the summed value of its orders, None without any."""

    request_id: str
    item_id: str
    shard: int
    value: float | None


class OpenClicks:
    """Clicks that wait for orders, in the order in which they were joined, which is the order in which they mature.

    Parameters
    ----------
    window_ms
        How long after a click an order counts for it.
    most
        At most this many wait; beyond that the oldest goes.
    """

    def __init__(self, window_ms: int, most: int) -> None:
        self._window_ms = window_ms
        self._most = most
        self._clicks = Fifo[_Key, OpenClick](OpenClick, "request_id", "item_id")
        self._values: dict[_Key, ClickValue] = {}  # of the clicks that have led to orders
        self._requests: dict[tuple[str, str], tuple[str, ...]] = {}  # by user and item: the last click is credited
        self.queue = self._clicks.queue
        """Oldest first: to look at, where a call for each look would take longer than the look."""

    def __len__(self) -> int:
        return len(self._clicks)

    def __contains__(self, key: _Key) -> bool:
        return key in self._clicks

    def add(self, click: OpenClick) -> bool:
        """Let a click wait; return whether the oldest had to go for it."""
        self._clicks.add(click)
        self._note(click)
        if len(self._clicks) <= self._most:
            return False
        self.pop_oldest()
        return True

    def credited(self, order: Order) -> str | None:
        """Return the request of the click that an order is credited to, None where there is none.

        That is the click which the order names by its request, or else the user's last click on the item that is not
        later than the order. Of two clicks at the same time the one with the larger ``request_id`` is credited.
        """
        if order.request_id is not None:
            named = self._clicks.get((order.request_id, order.item_id))
            in_window = named is not None and order.at_ms < named.due_ms + self._window_ms
            return order.request_id if in_window else None
        best: tuple[int, str] | None = None
        for request in self._requests.get((order.user_id, order.item_id), ()):
            click = self._clicks[request, order.item_id]
            in_window = click.at_ms <= order.at_ms < click.due_ms + self._window_ms
            if in_window and (best is None or (click.at_ms, request) > best):
                best = (click.at_ms, request)
        return None if best is None else best[1]

    def convert(self, request: str, order: Order) -> int:
        """Add an order to the click that it is credited to; return the click's shard."""
        key = request, order.item_id
        before = self._values.get(key)
        value = 0.0 if before is None else before.value
        self._values[key] = ClickValue(request, order.item_id, value + order.value)
        return self._clicks[key].shard

    def pop_oldest(self) -> MatureClick:
        """Remove and return the click that was joined first."""
        click = self._clicks.pop_oldest()
        request, item, user = click.request_id, click.item_id, click.user_id
        left = tuple([other for other in self._requests[user, item] if other != request])
        if left:
            self._requests[user, item] = left
        else:
            del self._requests[user, item]
        value = self._values.pop((request, item), None)
        return MatureClick(request, item, click.shard, None if value is None else value.value)

    def state(self) -> dict[str, Later]:
        """Return a copy of everything."""
        return {"clicks": self._clicks.state(), "values": columns(ClickValue, list(self._values.values()))}

    def restore(self, state: OpenClicksState) -> None:
        """Go on from what `state` became when it was written."""
        self._clicks.restore(state.clicks)
        for click in self.queue:
            self._note(click)
        for value in things_of(ClickValue, state.values):
            self._values[value.request_id, value.item_id] = value

    def _note(self, click: OpenClick) -> None:
        key = click.user_id, click.item_id
        self._requests[key] = (*self._requests.get(key, ()), click.request_id)
