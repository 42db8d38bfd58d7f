"""The pairs that wait for the teacher, by value: the most valuable leave first, the least valuable go when it is full.

A pair is worth the more the more slates wait for it. Of pairs with equally many slates, the one that reached that
number first leaves first, because its slates close first.
"""

from __future__ import annotations

from collections import OrderedDict

from heft.stream.score.request_state import Request


class PairQueue:
    """A bounded queue of requests by value.

    Parameters
    ----------
    capacity
        The largest number of requests that wait.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._by_slates: dict[int, OrderedDict[Request, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, request: Request) -> Request | None:
        """Add a request; return the one that had to go because the queue was full, which may be the one added."""
        self._by_slates.setdefault(request.slates, OrderedDict())[request] = None
        self._size += 1
        if self._size <= self._capacity:
            return None
        least = next(reversed(self._by_slates[min(self._by_slates)]))
        self.remove(least)
        return least

    def remove(self, request: Request) -> bool:
        """Take a request out; return whether it was in the queue."""
        bucket = self._by_slates.get(request.slates)
        if bucket is None or request not in bucket:
            return False
        del bucket[request]
        if not bucket:
            del self._by_slates[request.slates]
        self._size -= 1
        return True

    def revalue(self, request: Request, slates: int) -> None:
        """Set how many slates wait for a request; one in the queue moves, or leaves when no slate waits for it."""
        was_in_queue = self.remove(request)
        request.slates = slates
        if was_in_queue and slates > 0:
            self.add(request)

    def take(self, n: int) -> list[Request]:
        """Take the ``n`` most valuable requests out, or all if there are fewer."""
        taken: list[Request] = []
        while self._size and len(taken) < n:
            first = next(iter(self._by_slates[max(self._by_slates)]))
            self.remove(first)
            taken.append(first)
        return taken
