"""Pairs that wait for the teacher: the most valuable go first, and when there are too many the least valuable go.

A pair is worth the more the more slates wait for it; of equals the one goes first that has been so for longest, as its
slates close first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair


class Score(NamedTuple):
    """A score, and since when it is known."""

    logits: Logits
    version: str
    wall_ms: int
    event_ms: int
    """How far the stream had come."""


class Request:
    """A pair that somebody asked for: its score, or why there is none yet."""

    __slots__ = ("asked_at", "known", "pair", "reason", "slates")

    def __init__(self, pair: Pair, asked_at: float = 0.0) -> None:
        self.pair = pair
        self.asked_at = asked_at  # seconds
        self.slates = 1  # that wait for it
        self.known: Score | None = None
        self.reason = "waiting"


class PairQueue:
    """A bounded queue of pairs by value.

    Parameters
    ----------
    capacity
        Pairs that wait at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._by_slates: dict[int, OrderedDict[Request, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, asked: Request) -> Request | None:
        """Let a pair wait; return the one that had to go for it, which may be itself."""
        self._by_slates.setdefault(asked.slates, OrderedDict())[asked] = None
        self._size += 1
        if self._size <= self._capacity:
            return None
        least = next(reversed(self._by_slates[min(self._by_slates)]))
        self.remove(least)
        return least

    def remove(self, asked: Request) -> bool:
        """Take a pair out; return whether it waited."""
        bucket = self._by_slates.get(asked.slates)
        if bucket is None or asked not in bucket:
            return False
        del bucket[asked]
        if not bucket:
            del self._by_slates[asked.slates]
        self._size -= 1
        return True

    def revalue(self, asked: Request, slates: int) -> None:
        """Say how many slates wait for a pair, in the queue or not."""
        waited = self.remove(asked)
        asked.slates = slates
        if waited and slates > 0:
            self.add(asked)

    def take(self, n: int) -> list[Request]:
        """Take the most valuable pairs out."""
        taken: list[Request] = []
        while self._size and len(taken) < n:
            first = next(iter(self._by_slates[max(self._by_slates)]))
            self.remove(first)
            taken.append(first)
        return taken
