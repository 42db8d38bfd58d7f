"""The desk of the teacher in use and, beside it, that of the version that is to come, until learners know that one."""

from __future__ import annotations

import logging
import threading

from heft.stream.score.requests import ScoreRequests, ScoringThread

SHADOW_ITEMS = 100_000
"""Of three clicks in a hundred shows and one order in twenty clicks, what learners of orders settle a version on."""

log = logging.getLogger("heft.scoring")


class ShadowRollout:
    """Where the partitions of a worker ask for scores: of one version of the teacher, or of two.

    A new version is asked beside the old one until it has been asked for `SHADOW_ITEMS` items and their labels have
    become known. Until then learners go by the old one, so that there is no time without scores that they may use. A
    worker that begins again begins with the newest version alone.

    Parameters
    ----------
    first
        Who scores to begin with.
    labels_after_ms
        Event time after which the labels of a slate, those of its orders too, are known.
    """

    def __init__(self, first: ScoringThread, labels_after_ms: int) -> None:
        self._first = first
        self._labels_after_ms = labels_after_ms
        self._newer: ScoringThread | None = None
        self._enough_at_ms = 0
        self._now_ms = 0  # of the partition that is ahead
        self._changing = threading.Lock()  # a version comes from the thread that scores

    @property
    def current(self) -> ScoreRequests:
        """The desk of the version in use."""
        return self._first.desk

    def at(self, at_ms: int) -> tuple[ScoreRequests, ...]:
        """Return whom to ask about a slate shown at a time: the version in use first."""
        if self._newer is None:
            return (self._first.desk,)
        with self._changing:
            older, newer = self._first.desk, self._newer.desk
            self._now_ms = max(self._now_ms, at_ms)
            if self._enough_at_ms == 0:
                if newer.counts["asked"] - newer.missing["in_sample"] >= SHADOW_ITEMS:
                    self._enough_at_ms = self._now_ms
            elif self._now_ms > self._enough_at_ms + self._labels_after_ms:
                log.warning("the teacher is now %s; %s is asked no more", newer.version, older.version)
                self._first.stop(0.0)
                newer.go_on_counting(older)
                self._first, self._newer = self._newer, None
                return (newer,)
            return older, newer

    def begin(self, newer: ScoringThread) -> bool:
        """Ask a new version too; False if another has not become known yet."""
        with self._changing:
            if self._newer is not None:
                return False
            self._newer, self._enough_at_ms = newer, 0
        log.warning("another version of the teacher has come: it scores in shadow beside %s", self.current.version)
        newer.start()
        return True

    def stop(self) -> None:
        """Ask nobody any more."""
        for thread in (self._first, self._newer):
            if thread is not None:
                thread.stop()
