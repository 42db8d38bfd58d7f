"""What waits in a learner and never changes meanwhile: written once, in segments that its snapshots name.

Things are numbered as they come. Each snapshot ends a segment; it names the segments of which something still waits,
and says by a byte for each thing which do. So what a snapshot costs follows the traffic since the one before, however
much waits, and it is taken in no time. A segment also ends when it is full, and is forgotten when nothing of it waits,
so that memory is bounded where no snapshot is ever taken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

T = TypeVar("T")


MOST = 4_096
"""Things in a segment."""


class _Segment(Generic[T]):
    __slots__ = ("first", "things", "waiting", "waits")

    def __init__(self, first: int, things: list[T], waits: bytearray) -> None:
        self.first = first
        self.things = things
        self.waits = waits
        self.waiting = sum(waits)


class Segments(Generic[T]):
    """Things that wait, in the order in which they came.

    Parameters
    ----------
    prefix
        What the names of the segments begin with; behind it stand the numbers of their first and last thing.

    Examples
    --------
    >>> slates = Segments("slates")
    >>> slates.add("a"), slates.add("b"), slates.add("c")
    (0, 1, 2)
    >>> slates.remove(1)
    >>> state, contents = slates.state()
    >>> contents
    [('slates-000000000000-000000000002', ['a', 'b', 'c'])]
    >>> again = Segments("slates")
    >>> list(again.restore(state, dict(contents)))
    ['a', 'c']
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._segments: list[_Segment[T]] = []
        self._grows = False  # whether the last segment does
        self.next_number = 0

    def add(self, thing: T) -> int:
        """Take a thing that will not change; return its number."""
        if not self._grows or len(self._segments[-1].things) == MOST:
            self._forget()
            self._segments.append(_Segment(self.next_number, [], bytearray()))
            self._grows = True
        segment, number = self._segments[-1], self.next_number
        segment.things.append(thing)
        segment.waits.append(1)
        segment.waiting += 1
        self.next_number += 1
        return number

    def remove(self, number: int) -> None:
        """Say that a thing waits no longer."""
        segment = self._segments[bisect_right(self._segments, number, key=_FIRST) - 1]
        segment.waits[number - segment.first] = 0
        segment.waiting -= 1

    def state(self) -> tuple[dict[str, Any], list[tuple[str, Sequence[T]]]]:
        """Return what a snapshot says, and the segments it names; these do not change any more."""
        self._grows = False
        self._forget()
        contents: list[tuple[str, Sequence[T]]] = [(self._name(each), each.things) for each in self._segments]
        waits = [(self._name(each), each.first, bytes(each.waits)) for each in self._segments]
        return {"next": self.next_number, "segments": waits}, contents

    def restore(self, state: Mapping[str, Any], contents: Mapping[str, Iterable[T]]) -> Iterator[T]:
        """Go on from what `state` returned; yield what still waits, in order."""
        self.next_number = state["next"]
        self._segments = [_Segment(first, list(contents[name]), bytearray(w)) for name, first, w in state["segments"]]
        for segment in self._segments:
            for thing, waits in zip(segment.things, segment.waits, strict=True):
                if waits:
                    yield thing

    def _forget(self) -> None:
        """Drop the segments of which nothing waits; only where none grows."""
        self._segments = [segment for segment in self._segments if segment.waiting]

    def _name(self, segment: _Segment[T]) -> str:
        last = segment.first + len(segment.things) - 1
        return f"{self._prefix}-{segment.first:012d}-{last:012d}"


_FIRST = attrgetter("first")
