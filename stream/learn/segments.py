"""What waits in a learner and never changes meanwhile: written once, in segments that its snapshots name.

What waits has a key and a number, numbered as it comes. Each snapshot ends a segment; it names the segments of which
something still waits, and says by a byte for each number which do. So what a snapshot costs follows the traffic since
the one before, however much waits, and it is taken in no time. A segment also ends when it is full, and is forgotten
when nothing of it waits, so that memory is bounded where no snapshot is ever taken.

A segment that has been written is its keys and one buffer, in memory as in its file. The thread that writes it packs
what is in it, so that the stage does not stand still for that; where no snapshot is taken, nothing is packed. A segment
is read without looking at what is in its buffer: each thing is unpacked when it is asked for.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate, compress
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray

T = TypeVar("T")

MOST = 4_096
"""Things in a segment."""

Content = dict[str, Any]
"""What the file of a segment holds: ``keys``; where the bytes of each ``ends`` [n]; all ``bytes``, compressed one by
one."""

# Things are small and compressed one by one: higher levels take twice the time and find next to nothing more.
_LEVEL = -1


class _Packed(NamedTuple):
    """All things of a segment that has been written, one after another."""

    buffer: NDArray[np.uint8]
    ends: array[int]

    def of(self, place: int) -> memoryview:
        return self.buffer.data[self.ends[place - 1] if place else 0 : self.ends[place]]


class _Segment(Generic[T]):
    __slots__ = ("first", "keys", "things", "waiting", "waits")

    def __init__(self, first: int) -> None:
        self.first = first
        self.keys: list[str] = []
        self.things: list[T] | _Packed = []
        self.waits = bytearray()
        self.waiting = 0

    @classmethod
    def restore(cls, first: int, waits: bytes, content: Content) -> _Segment[T]:
        segment = cls(first)
        segment.keys = content["keys"]
        segment.things = _Packed(content["bytes"], array("q", content["ends"].tobytes()))
        segment.waits, segment.waiting = bytearray(waits), sum(waits)
        return segment

    def content(self, pack: Callable[[T], bytes]) -> Content:
        """Pack what is in it, unless it is packed, and return what its file holds; it must not grow any more."""
        if not isinstance(self.things, _Packed):
            squeeze = zstandard.ZstdCompressor(level=_LEVEL).compress
            parts = [squeeze(pack(thing)) for thing in self.things]
            self.things = _Packed(np.frombuffer(b"".join(parts), np.uint8), array("q", accumulate(map(len, parts))))
        buffer, ends = self.things
        return {"keys": self.keys, "ends": np.frombuffer(ends, np.int64), "bytes": buffer}


class Segments(Generic[T]):
    """Things that wait under a key, in the order in which they came.

    Parameters
    ----------
    prefix
        What the names of the segments begin with; behind it stand the first and the last number in them.
    pack, unpack
        From a thing to bytes, and back; what is unpacked may lie in the bytes that it is unpacked from.

    Examples
    --------
    >>> slates = Segments("slates", str.encode, bytearray.decode)
    >>> slates.add("a", "one"), slates.add("b", "two"), slates.add("c", "three")
    (0, 1, 2)
    >>> slates.remove(0)
    >>> slates.oldest(), slates[1]
    ('b', 'two')
    >>> state, contents = slates.state()
    >>> [(name, content()["keys"]) for name, content in contents]
    [('slates-000000000000-000000000002', ['a', 'b', 'c'])]
    >>> again = Segments("slates", str.encode, bytearray.decode)
    >>> list(again.restore(state, {name: content() for name, content in contents}))
    [('b', 1), ('c', 2)]
    >>> again[2]
    'three'
    """

    def __init__(self, prefix: str, pack: Callable[[T], bytes], unpack: Callable[[bytearray], T]) -> None:
        self._prefix = prefix
        self._pack = pack
        self._unpack = unpack
        self._segments: list[_Segment[T]] = []
        self._grows = False  # whether the last segment does
        self._next = 0
        self._decompress = zstandard.ZstdDecompressor().decompress

    def add(self, key: str, thing: T) -> int:
        """Take a thing that will not change; return its number."""
        if not self._grows or len(self._segments[-1].keys) == MOST:
            self._forget()
            self._segments.append(_Segment(self._next))
            self._grows = True
        segment, number = self._segments[-1], self._next
        assert isinstance(segment.things, list)  # it grows
        segment.keys.append(key)
        segment.things.append(thing)
        segment.waits.append(1)
        segment.waiting += 1
        self._next += 1
        return number

    def __getitem__(self, number: int) -> T:
        """Return the thing of a number that waits."""
        segment = self._of(number)
        things, place = segment.things, number - segment.first  # looked up once: a thread may be packing them
        if isinstance(things, _Packed):
            return self._unpack(bytearray(self._decompress(things.of(place))))
        return things[place]

    def remove(self, number: int) -> None:
        """Say that a number waits no longer."""
        segment = self._of(number)
        segment.waits[number - segment.first] = 0
        segment.waiting -= 1

    def oldest(self) -> str:
        """Return the key of what has waited longest; something must."""
        segment = next(each for each in self._segments if each.waiting)
        return segment.keys[segment.waits.index(1)]

    def state(self) -> tuple[dict[str, Any], list[tuple[str, Callable[[], Content]]]]:
        """Return what a snapshot says, and the segments it names; what these return does not change any more."""
        self._grows = False
        self._forget()
        contents: list[tuple[str, Callable[[], Content]]] = [
            (self._name(each), partial(each.content, self._pack)) for each in self._segments
        ]
        waits = [(self._name(each), each.first, bytes(each.waits)) for each in self._segments]
        return {"next": self._next, "segments": waits}, contents

    def restore(self, state: Mapping[str, Any], contents: Mapping[str, Content]) -> Iterator[tuple[str, int]]:
        """Go on from what `state` returned; yield keys and numbers of what still waits, in order."""
        self._next = state["next"]
        self._segments = [_Segment.restore(first, waits, contents[name]) for name, first, waits in state["segments"]]
        for segment in self._segments:
            numbered = zip(segment.keys, range(segment.first, self._next), strict=False)
            yield from compress(numbered, segment.waits)

    def _of(self, number: int) -> _Segment[T]:
        return self._segments[bisect_right(self._segments, number, key=_FIRST) - 1]

    def _forget(self) -> None:
        """Drop the segments of which nothing waits; only where none grows."""
        self._segments = [segment for segment in self._segments if segment.waiting]

    def _name(self, segment: _Segment[T]) -> str:
        last = segment.first + len(segment.keys) - 1
        return f"{self._prefix}-{segment.first:012d}-{last:012d}"


_FIRST = attrgetter("first")
