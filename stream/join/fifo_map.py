"""A mapping in the order of arrival, where only the oldest goes, and which is copied in next to no time.

The windows of the join are constant, so what waits goes in the order in which it came. An `OrderedDict` would do the
same, but looks every key up again while it is copied: a million entries in 280 ms, here in 10 (LOG.md). That copy is
what a snapshot takes while the stage stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Fifo(Generic[K, V]):
    """Keys and values that never change, oldest first.

    Parameters
    ----------
    pairs
        What it begins with, oldest first; no key twice.

    Examples
    --------
    >>> slates = Fifo([("r1", 10)])
    >>> slates.add("r2", 20)
    >>> "r1" in slates, slates.get("r2"), slates.oldest
    (True, 20, 10)
    >>> slates.pop_oldest(), slates.pairs()
    (('r1', 10), [('r2', 20)])
    """

    def __init__(self, pairs: Iterable[tuple[K, V]] = ()) -> None:
        self.queue = deque(pairs)
        """Keys and values, oldest first: to look at, where a call for each look would take longer than the look."""
        self._values = dict(self.queue)

    def __len__(self) -> int:
        return len(self.queue)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __getitem__(self, key: K) -> V:
        return self._values[key]

    def get(self, key: K) -> V | None:
        """Return the value of a key, None without one."""
        return self._values.get(key)

    @property
    def oldest(self) -> V:
        """The value that came first of those still here; there must be one."""
        return self.queue[0][1]

    def add(self, key: K, value: V) -> None:
        """Take a key that is not here; its value must not be changed any more."""
        self.queue.append((key, value))
        self._values[key] = value

    def pop_oldest(self) -> tuple[K, V]:
        """Remove and return what came first."""
        pair = self.queue.popleft()
        del self._values[pair[0]]
        return pair

    def pairs(self) -> list[tuple[K, V]]:
        """Return a copy, oldest first."""
        return list(self.queue)
