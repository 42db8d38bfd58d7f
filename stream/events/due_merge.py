"""Partitions of one topic in the order of the due times of their records, none far ahead of one that has more to come.

The messages of all partitions of `samples` end in the same shards of `scored`, in the order in which they are handed
out. A learner that is shown one partition to its end before the next cannot measure the next: it knows the future.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

AHEAD_MS = 20_000
"""How far a partition may be ahead of the slowest; with as much within one message, well within ``max_skew``."""

PATIENCE_SECONDS = 10.0
"""A partition that has more and gives nothing for so long is not waited for: its broker may be away."""


class HasDue(Protocol):
    """A record that says when it is due, in milliseconds; 0: not known."""

    @property
    def due_ms(self) -> int:
        """When it is due."""
        ...


P = TypeVar("P", bound=Hashable)
R = TypeVar("R", bound=HasDue)


class DueMerge(Generic[P, R]):
    """Keeps what has come of each partition, and says what may be handed out. Times without ``_ms`` are in seconds."""

    def __init__(self) -> None:
        self._kept: dict[P, deque[R]] = {}
        self._reached: dict[P, int] = {}  # at least this is the due time of what is still to come
        self._moved_at: dict[P, float] = {}

    def keep(self, partition: P, records: Iterable[R], now: float) -> None:
        """Take the next records of a partition."""
        self._kept.setdefault(partition, deque()).extend(records)
        self._moved_at[partition] = now

    def keeps(self, partition: P) -> bool:
        """Whether something of a partition waits here."""
        return bool(self._kept.get(partition))

    def take(
        self, ready: Collection[P], at_work: Collection[P], more: Collection[P], now: float
    ) -> tuple[P, list[R]] | None:
        """Return records of the partition that is furthest behind; None if no partition may go on.

        Parameters
        ----------
        ready
            Partitions that may be handed out.
        at_work
            Partitions of which something has been handed out and is not done.
        more
            Partitions of which more is known to come.
        now
            The time.
        """
        heads = {each: max(kept[0].due_ms, self._reached.get(each, 0)) for each, kept in self._kept.items() if kept}
        to_come = {each for each in more if each not in heads and self._moved_lately(each, now)}
        behind = heads | {each: self._reached[each] for each in {*at_work, *to_come} if each in self._reached}
        possible = [(due_ms, each) for each, due_ms in heads.items() if each in ready]
        if not possible:
            return None
        due_ms, partition = min(possible, key=lambda pair: pair[0])
        until_ms = min(behind.values()) + AHEAD_MS
        if due_ms > until_ms:
            return None
        kept, taken = self._kept[partition], list[R]()
        while kept and kept[0].due_ms <= until_ms:
            taken.append(kept.popleft())
        self._reached.setdefault(partition, due_ms)
        return partition, taken

    def _moved_lately(self, partition: P, now: float) -> bool:
        return now - self._moved_at.get(partition, -PATIENCE_SECONDS) < PATIENCE_SECONDS

    def done(self, partition: P, records: Iterable[R], now: float) -> None:
        """Note that records which were handed out have been dealt with."""
        newest = max(record.due_ms for record in records)
        self._reached[partition] = max(self._reached.get(partition, 0), newest)
        self._moved_at[partition] = now

    def drop(self) -> None:
        """Forget what is kept: the same will come again."""
        self._kept.clear()

    def forget(self) -> None:
        """Forget everything: the partitions may be others."""
        self._kept.clear()
        self._reached.clear()
        self._moved_at.clear()
