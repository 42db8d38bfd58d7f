"""Scores of a live teacher for one partition: the stream asks and goes on, and takes along what is known by then."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from heft.models.records import ReferenceScore, Slate
from heft.stream.score.request_state import Request, Score
from heft.stream.score.requests import ScoreRequests


class _OpenSlate(NamedTuple):
    at_ms: int
    waiting: list[tuple[ScoreRequests, list[tuple[str, Request]]]]
    """Item ids and their requests, by the version of the teacher that was asked."""


class LiveSource:
    """The scores of one partition; a `ScoreSource`.

    Parameters
    ----------
    versions
        Returns the requests of the versions of the teacher that are asked about a slate shown at a time; shared by
        the partitions of a worker.
    score_delay_ms
        How long a score takes to reach the rankers.
    open_for_ms
        How long a slate can stay open: the click window.
    """

    def __init__(
        self, versions: Callable[[int], Sequence[ScoreRequests]], score_delay_ms: int, open_for_ms: int
    ) -> None:
        self._versions, self._delay_ms, self._open_for_ms = versions, score_delay_ms, open_for_ms
        self._open: OrderedDict[str, _OpenSlate] = OrderedDict()

    def expect(self, slate: Slate) -> None:
        """Do nothing: a live slate is asked about when it comes."""

    def on_time(self, slate: Slate) -> list[ReferenceScore]:
        """Return the scores that were known long enough before the slate was shown, and ask for the others."""
        self._forget(slate.at_ms)
        scores: list[ReferenceScore] = []
        open_slate = _OpenSlate(slate.at_ms, [])
        for requests in self._versions(slate.at_ms):
            waiting = []
            for item_id, request in requests.ask(slate):
                score = request.score
                if score is not None and requests.was_known(score, slate.at_ms, self._delay_ms):
                    scores.append(_reference_score(item_id, score, True))
                else:
                    waiting.append((item_id, request))
            if waiting:
                open_slate.waiting.append((requests, waiting))
        if open_slate.waiting:
            self._open[slate.request_id] = open_slate
        return scores

    def by_now(self, request_id: str) -> list[ReferenceScore]:
        """Return the scores of a slate that have come since, and forget the slate."""
        found = self._open.pop(request_id, None)
        if found is None:
            return []
        scores = [each for requests, waiting in found.waiting for each in requests.leave(found.at_ms, waiting)]
        return [_reference_score(item_id, score, False) for item_id, score in scores]

    def _forget(self, now_ms: int) -> None:
        """Forget slates that the join dropped: their `Closed` never comes."""
        while self._open:
            request_id, first = next(iter(self._open.items()))
            if first.at_ms + self._open_for_ms >= now_ms:
                return
            self.by_now(request_id)


def _reference_score(item_id: str, score: Score, on_time: bool) -> ReferenceScore:
    return ReferenceScore(item_id, score.logits.logit_256, score.version, on_time, score.logits.order_256)
