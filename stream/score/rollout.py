"""How a new version of the teacher comes into use: it scores beside the old one until learners know it.

====================  =================  ====================================================================
who is asked          since              until
====================  =================  ====================================================================
the version in use    the start          another version has come (`begin`)
both                  `begin`            the new one was asked for `SHADOW_ITEMS` items
both                  those items        the labels of those items are known, by event time
the new version       those labels       another version has come
====================  =================  ====================================================================
"""

from __future__ import annotations

import logging
import threading

from heft.stream.score.requests import ScoreCounts, ScoreRequests
from heft.stream.score.scoring_thread import ScoringThread

SHADOW_ITEMS = 100_000
"""After so many items learners of orders know a version, where three of a hundred items shown are clicked and one click
in twenty becomes an order."""

log = logging.getLogger("heft.scoring")


class ShadowRollout:
    """The one or two versions of the teacher that the partitions of a worker ask for scores.

    While both are asked, learners go by the old one, so that they always have scores that they may use. A worker that
    starts again starts with the newest version alone.

    Parameters
    ----------
    first
        The version in use at the start.
    labels_after_ms
        Event time after which the labels of a slate are known, those of its orders among them.
    """

    def __init__(self, first: ScoringThread, labels_after_ms: int) -> None:
        self._in_use = first
        self._labels_after_ms = labels_after_ms
        self._newer: ScoringThread | None = None
        self._enough_at_ms = 0  # when the newer version had been asked for enough items; 0 before
        self._now_ms = 0  # event time of the partition that is ahead
        # Old versions count on: slates may still wait for them when a new one comes into use.
        self._old_counts: list[ScoreCounts] = []
        self._lock = threading.Lock()  # `begin` is called from a thread that scores, the others from the stream's

    @property
    def current(self) -> ScoreRequests:
        """The requests of the version in use."""
        return self._in_use.requests

    def at(self, at_ms: int) -> tuple[ScoreRequests, ...]:
        """Return the requests of the versions to ask about a slate shown at a time, the version in use first."""
        if self._newer is None:
            return (self._in_use.requests,)
        with self._lock:
            older, newer = self._in_use.requests, self._newer.requests
            self._now_ms = max(self._now_ms, at_ms)
            if self._enough_at_ms == 0:
                if newer.counts.pairs["asked"] - newer.counts.missing["in_sample"] >= SHADOW_ITEMS:
                    self._enough_at_ms = self._now_ms
            elif self._now_ms > self._enough_at_ms + self._labels_after_ms:
                log.warning("the teacher is now %s; %s is asked no more", newer.version, older.version)
                self._in_use.stop(0.0)
                self._old_counts.append(older.counts)
                self._in_use, self._newer = self._newer, None
                return (newer,)
            return older, newer

    def begin(self, newer: ScoringThread) -> bool:
        """Ask a new version too; return False, and do nothing, while two are asked already."""
        with self._lock:
            if self._newer is not None:
                return False
            self._newer, self._enough_at_ms = newer, 0
        log.warning("another version of the teacher has come: it scores in shadow beside %s", self.current.version)
        newer.start()
        return True

    def counts(self) -> ScoreCounts:
        """Return the counts of all versions so far, summed: no number is ever smaller than it was before."""
        with self._lock:
            return ScoreCounts.total([*self._old_counts, *(thread.requests.counts for thread in self._threads())])

    def waiting(self) -> int:
        """Return how many pairs wait for the versions that are asked."""
        with self._lock:
            return sum(thread.requests.waiting for thread in self._threads())

    def stop(self) -> None:
        """Stop the threads of all versions that are asked."""
        with self._lock:
            threads = self._threads()
        for thread in threads:  # without the lock: a thread that ends may still call `begin`
            thread.stop()

    def _threads(self) -> list[ScoringThread]:
        return [self._in_use] if self._newer is None else [self._in_use, self._newer]
