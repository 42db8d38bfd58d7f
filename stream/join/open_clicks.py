"""Joined clicks whose conversion window runs, and which of them an order is credited to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from heft.stream.events.wire import Order
from heft.stream.join.fifo_map import Fifo
from heft.stream.join.state import OpenClick

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
    clicks, values
        What `pairs` and `values` gave of an earlier one.
    """

    def __init__(
        self,
        window_ms: int,
        most: int,
        clicks: Sequence[tuple[_Key, OpenClick]] = (),
        values: Iterable[tuple[_Key, float]] = (),
    ) -> None:
        self._window_ms = window_ms
        self._most = most
        self._clicks = Fifo(clicks)
        self._values = dict(values)  # of the clicks that have led to orders
        self._requests: dict[tuple[str, str], tuple[str, ...]] = {}  # by user and item: the last click is credited
        self.queue = self._clicks.queue
        """Keys and clicks, oldest first: to look at, where a call for each look would take longer than the look."""
        for (request, item), click in clicks:
            self._note(click.user_id, item, request)

    def __len__(self) -> int:
        return len(self._clicks)

    def __contains__(self, key: _Key) -> bool:
        return key in self._clicks

    def add(self, request: str, item: str, click: OpenClick) -> bool:
        """Let a click wait; return whether the oldest had to go for it."""
        self._clicks.add((request, item), click)
        self._note(click.user_id, item, request)
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
        self._values[key] = self._values.get(key, 0.0) + order.value
        return self._clicks[key].shard

    def pop_oldest(self) -> MatureClick:
        """Remove and return the click that was joined first."""
        (request, item), click = self._clicks.pop_oldest()
        left = tuple([other for other in self._requests[click.user_id, item] if other != request])
        if left:
            self._requests[click.user_id, item] = left
        else:
            del self._requests[click.user_id, item]
        return MatureClick(request, item, click.shard, self._values.pop((request, item), None))

    def pairs(self) -> list[tuple[_Key, OpenClick]]:
        """Return a copy of the clicks, oldest first."""
        return self._clicks.pairs()

    def values(self) -> list[tuple[_Key, float]]:
        """Return a copy of the values of the clicks that have led to orders."""
        return list(self._values.items())

    def _note(self, user: str, item: str, request: str) -> None:
        self._requests[user, item] = (*self._requests.get((user, item), ()), request)
