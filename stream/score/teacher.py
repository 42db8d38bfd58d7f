"""What the score stage needs of a live teacher: the protocol, its answers, and how it fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.score.request_state import RequestState
from heft.stream.score.text_times import AtOnce


class ScorerError(RuntimeError):
    """The teacher gave no answer. ``state`` is what becomes of the requests."""

    state = RequestState.FAILED


class ScorerTimeoutError(ScorerError):
    """The teacher gave no answer in time."""

    state = RequestState.TIMEOUT


class Answer(NamedTuple):
    """The scores of some pairs, and which teacher gave them."""

    teacher: TeacherDescription
    logits: Sequence[Logits | None]
    """In the order of the pairs; None for a pair whose score is no finite number."""
    at_once: AtOnce | None = None
    """Scores further pairs without the teacher's thread; None of a teacher that reads pairs."""


class Teacher(Protocol):
    """Scores pairs. It may take its time, and may fail."""

    def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the scores of pairs; an exception of any kind means that there are none."""
        ...

    def look(self) -> Answer | None:
        """Return an answer about no pairs if the teacher is another one than in its last answer, None if it is not."""
        ...
