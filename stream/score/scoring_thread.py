"""The thread in which the teacher scores what the stream asks for.

A teacher that hangs, fails, is slow or answers what is no number costs scores, each counted with its reason, and
nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from heft.models.teacher.logits import is_wire_version
from heft.models.teacher.template import Template
from heft.stream.score.request_state import Request
from heft.stream.score.requests import ScoreRequests
from heft.stream.score.teacher import Answer, ScorerError, Teacher

log = logging.getLogger("heft.scoring")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0  # after a failure; doubled with each further failure
_TAKE_SECONDS = 0.2  # an idle thread looks this often whether it shall stop, and lets the teacher look


class ScoringThread:
    """Takes requests, has the teacher score them, and goes on whatever the teacher does.

    Parameters
    ----------
    requests
        Where pairs wait, and where their scores go.
    connect
        Makes the teacher; called in the thread, because it may take minutes, and again after it has failed.
    batch
        The largest number of pairs that are scored together.
    linger_seconds
        How long a batch that is not full waits for more pairs.
    """

    def __init__(
        self, requests: ScoreRequests, connect: Callable[[], Teacher], batch: int, linger_seconds: float
    ) -> None:
        self.requests, self._connect, self._batch, self._linger = requests, connect, batch, linger_seconds
        self._stopping = threading.Event()
        self._teacher: Teacher | None = None
        self._failures_in_a_row = 0
        # A daemon, because a teacher that hangs must not keep the worker from ending.
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End after the present batch; wait for that at most ``timeout`` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self.connect():
                taken = self.requests.take(self._batch, _TAKE_SECONDS)
                if 0 < len(taken) < self._batch and self._linger:
                    self._stopping.wait(self._linger)
                    taken += self.requests.take(self._batch - len(taken), 0.0)
                if self.step(taken) if taken else self.look():
                    continue
            doublings = min(self._failures_in_a_row - 1, 10)
            self._stopping.wait(min(_FIRST_PAUSE_SECONDS * 2**doublings, _LONGEST_PAUSE_SECONDS))

    def connect(self) -> bool:
        """Make the teacher, if there is none yet; return whether there is one."""
        if self._teacher is None:
            try:
                self._teacher = self._connect()
            except Exception as error:  # whatever it is, learning goes on
                self._note_failure([], error)
                return False
            self._failures_in_a_row, self.requests.ready = 0, True
        return True

    def look(self) -> bool:
        """Let the teacher say whether it is another one now; return whether that went well.

        A teacher that scores every pair at once is never asked to score, so it would never be replaced otherwise.
        """
        assert self._teacher is not None, "connect first"
        try:
            answer = self._teacher.look()
        except Exception as error:  # whatever it is, learning goes on
            self._note_failure([], error)
            return False
        if answer is not None:
            self.requests.answer([], answer)
        return True

    def step(self, taken: Sequence[Request]) -> bool:
        """Have some requests scored; return whether that went well."""
        assert self._teacher is not None, "connect first"
        try:
            answer = self._teacher.score([request.pair for request in taken])
            _check(answer, len(taken))
        except Exception as error:  # whatever it is, learning goes on
            self._note_failure(taken, error)
            return False
        self.requests.answer(taken, answer)
        self._failures_in_a_row = 0
        return True

    def _note_failure(self, taken: Sequence[Request], error: Exception) -> None:
        self.requests.fail(taken, error.state if isinstance(error, ScorerError) else ScorerError.state)
        self._failures_in_a_row = n = self._failures_in_a_row + 1
        if n & (n - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...: an outage of a day must not fill the log
            log.warning("the teacher failed %d times in a row: %s: %s", n, type(error).__name__, error)


def _check(answer: Answer, pairs: int) -> None:
    if len(answer.logits) != pairs:
        msg = f"{len(answer.logits)} scores for {pairs} pairs"
        raise ScorerError(msg)
    Template(answer.teacher.template)
    if not is_wire_version(answer.teacher.version):
        msg = f"version {answer.teacher.version!r}; expected a digest, @ and milliseconds"
        raise ScorerError(msg)
