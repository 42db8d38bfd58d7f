"""A pair of texts that slates wait for: the states of its request, and its score once there is one.

==========  ===============================================================  ========================================
state       what it means                                                    what may come next
==========  ===============================================================  ========================================
waiting     it is in the queue                                               asked, known, shed, swapped, left
asked       the teacher is working on it                                     known, not_finite, swapped, failed, timeout
failed      the teacher gave no answer; it is in the queue again             asked, known, shed, swapped, left
timeout     the teacher gave no answer in time; it is in the queue again     asked, known, shed, swapped, left
known       it has a score                                                   nothing
shed        the queue was full, and other pairs were worth more              nothing
not_finite  the teacher's score was no finite number                         nothing
swapped     a new teacher reads other texts than it was asked with           nothing
left        no slate waits for it any more                                   nothing
==========  ===============================================================  ========================================

A request that was dropped stays as it is: a later slate that shows the same pair makes a new request for it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair


class RequestState(Enum):
    """How far a request has come; the values are the reasons that metrics name."""

    WAITING = "waiting"
    ASKED = "asked"
    FAILED = "failed"
    TIMEOUT = "timeout"
    KNOWN = "known"
    SHED = "shed"
    NOT_FINITE = "not_finite"
    SWAPPED = "swapped"
    LEFT = "left"


IN_QUEUE = frozenset({RequestState.WAITING, RequestState.FAILED, RequestState.TIMEOUT})
"""States of a request that may be in the queue."""

_AFTER_QUEUE = frozenset(
    {RequestState.ASKED, RequestState.KNOWN, RequestState.SHED, RequestState.SWAPPED, RequestState.LEFT}
)
NEXT_STATES: dict[RequestState, frozenset[RequestState]] = {
    **dict.fromkeys(IN_QUEUE, _AFTER_QUEUE),
    RequestState.ASKED: frozenset(
        {
            RequestState.KNOWN,
            RequestState.NOT_FINITE,
            RequestState.SWAPPED,
            RequestState.FAILED,
            RequestState.TIMEOUT,
        }
    ),
}
"""The table above, without the states that nothing follows."""


class Score(NamedTuple):
    """A score of a version of the teacher, and since when it is known."""

    logits: Logits
    version: str
    wall_ms: int
    """By the wall clock."""
    event_ms: int
    """By the newest event that the stream had brought when the score became known."""


class Request:
    """A pair that slates wait for.

    ``state`` changes in `ScoreRequests` alone, under its lock. ``score`` may be read without the lock: it is set once,
    and is None until then. ``slates`` is how many slates wait for the pair.

    Parameters
    ----------
    pair
        The two texts.
    asked_at
        When the first slate asked for it, in seconds of any origin.
    """

    __slots__ = ("asked_at", "pair", "score", "slates", "state")

    def __init__(self, pair: Pair, asked_at: float = 0.0) -> None:
        self.pair = pair
        self.asked_at = asked_at
        self.slates = 1
        self.score: Score | None = None
        self.state = RequestState.WAITING

    def change(self, state: RequestState, score: Score | None = None) -> None:
        """Go on to another state, which has a score if it is ``KNOWN`` and none otherwise.

        Raises
        ------
        AssertionError
            If the table of this module does not have the change: that is a fault of `ScoreRequests`.
        """
        assert state in NEXT_STATES.get(self.state, ()), f"a request goes from {self.state.name} to {state.name}"
        assert (score is not None) == (state is RequestState.KNOWN), f"{state.name} with the score {score}"
        self.score = score
        self.state = state
