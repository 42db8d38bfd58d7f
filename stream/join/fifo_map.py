"""A mapping in the order of arrival, where only the oldest goes, and which is copied in next to no time.

The windows of the join are constant, so what waits goes in the order in which it came. An `OrderedDict` would do the
same, but looks every key up again while it is copied: a million entries in 280 ms, here in 10 (LOG.md). That copy is
what a snapshot takes while the stage stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec

from heft.stream.join.columns import Columns, columns, things_of
from heft.stream.state.codec import Later

K = TypeVar("K")
V = TypeVar("V", bound=msgspec.Struct)


class Fifo(Generic[K, V]):
    """Values that never change, oldest first.

    Parameters
    ----------
    of
        The type of the values.
    key
        The fields of a value that are its key; a tuple where there are several.

    Examples
    --------
    >>> class Seen(msgspec.Struct):
    ...     id: str
    ...     at_ms: int
    >>> seen = Fifo[str, Seen](Seen, "id")
    >>> seen.add(Seen("a", 10))
    >>> seen.add(Seen("b", 20))
    >>> "a" in seen, seen.get("b"), seen.oldest
    (True, Seen(id='b', at_ms=20), Seen(id='a', at_ms=10))
    >>> seen.pop_oldest(), len(seen)
    (Seen(id='a', at_ms=10), 1)
    """

    def __init__(self, of: type[V], *key: str) -> None:
        self._of = of
        self._key: Callable[[V], Any] = attrgetter(*key)
        self._values: dict[K, V] = {}
        self.queue: deque[V] = deque()
        """Oldest first: to look at, where a call for each look would take longer than the look."""

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
        return self.queue[0]

    def add(self, value: V) -> None:
        """Take a value whose key is not here; it must not be changed any more."""
        self.queue.append(value)
        self._values[self._key(value)] = value

    def pop_oldest(self) -> V:
        """Remove and return what came first."""
        value = self.queue.popleft()
        del self._values[self._key(value)]
        return value

    def state(self) -> Later:
        """Return a copy."""
        return columns(self._of, list(self.queue))

    def restore(self, state: Columns) -> None:
        """Go on from what `state` became when it was written."""
        self.queue.extend(things_of(self._of, state))
        self._values.update(zip(map(self._key, self.queue), self.queue, strict=True))
