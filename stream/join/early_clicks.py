"""Clicks that came before their slate: each waits for it for as long as the clocks of two producers may differ."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from heft.stream.join.state import Early


class EarlyClicks:
    """Clicks by request, in the order in which the first click of each request came.

    Parameters
    ----------
    most
        At most this many wait; beyond that the oldest goes.
    clicks
        What `pairs` gave of an earlier one.
    """

    def __init__(self, most: int, clicks: Iterable[tuple[str, tuple[Early, ...]]] = ()) -> None:
        self._most = most
        self._by_request = OrderedDict(clicks)
        self._many = sum(map(len, self._by_request.values()))

    def __len__(self) -> int:
        return self._many

    def has(self, request: str, item: str) -> bool:
        """Whether a click on this item waits already."""
        return any(click.item_id == item for _, _, click in self._by_request.get(request, ()))

    def add(self, request: str, early: Early) -> bool:
        """Let a click wait; return whether the oldest had to go for it."""
        self._by_request[request] = (*self._by_request.get(request, ()), early)
        self._many += 1
        if self._many <= self._most:
            return False
        oldest, clicks = self._by_request.popitem(last=False)
        self._many -= 1
        if len(clicks) > 1:
            self._by_request[oldest] = clicks[1:]
            self._by_request.move_to_end(oldest, last=False)
        return True

    def pop(self, request: str) -> tuple[Early, ...]:
        """Remove and return the clicks that wait for a slate: it has come."""
        clicks = self._by_request.pop(request, ())
        self._many -= len(clicks)
        return clicks

    def give_up(self, request: str, input: int, serial: int) -> bool:
        """Remove a click whose slate has not come in time; return False where it no longer waits."""
        clicks = self._by_request.get(request, ())
        left = tuple([early for early in clicks if early[:2] != (input, serial)])
        if len(left) == len(clicks):
            return False
        self._many -= 1
        if left:
            self._by_request[request] = left
        else:
            del self._by_request[request]
        return True

    def pairs(self) -> list[tuple[str, tuple[Early, ...]]]:
        """Return a copy: requests and the clicks that wait for each."""
        return list(self._by_request.items())
