"""Requests that share one teacher: each that waits has some of its pairs scored in its turn, whatever its size."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair
from heft.stream.score.teacher import Answer, Teacher


class QueueFullError(RuntimeError):
    """As many requests wait as may. A further one is asked again later."""


class _Asked:
    """A request: what is scored of it, and who waits for all."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._of: Answer | None = None
        self._logits: list[Logits | None] = []

    def next(self, n: int) -> Sequence[Pair]:
        """Return the next pairs to score."""
        return self.pairs[len(self._logits) : len(self._logits) + n]

    def take(self, part: Answer) -> None:
        """Take the scores of the last `next`; a request whose parts are of two versions begins again."""
        if self._of is not None and part.teacher != self._of.teacher:
            self._of, self._logits = None, []
            return
        self._of = part
        self._logits += part.logits
        if len(self._logits) >= len(self.pairs):
            self.answer.set_result(Answer(part.teacher, self._logits))


class FairQueue:
    """Scores requests in chunks, one chunk of each in turn. Its methods are called in one event loop.

    Parameters
    ----------
    teacher
        What scores; in a thread of its own.
    chunk
        Pairs that are scored together at most.
    most_waiting
        Requests that may be open, including the one that is being scored.
    """

    def __init__(self, teacher: Teacher, chunk: int, most_waiting: int) -> None:
        self._teacher, self._chunk, self._most = teacher, chunk, most_waiting
        self._turns: deque[_Asked] = deque()
        self._computing = ThreadPoolExecutor(1, "teacher")
        self._running: asyncio.Task[None] | None = None
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether a further request is refused."""
        return self.waiting >= self._most

    async def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the scores of pairs, all of one version. A caller who is cancelled has no more of them scored.

        Raises
        ------
        QueueFullError
            If too many wait already.
        """
        if self.full:
            msg = f"{self.waiting} requests wait already"
            raise QueueFullError(msg)
        asked = _Asked(pairs)
        self._turns.append(asked)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        self.waiting += 1
        try:
            return await asked.answer
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Score no more."""
        if self._running is not None:
            self._running.cancel()
        self._computing.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._turns:
            asked = self._turns.popleft()
            if asked.answer.done():  # nobody waits for it any more
                continue
            try:
                part = await loop.run_in_executor(self._computing, self._teacher.score, asked.next(self._chunk))
            except Exception as error:  # it is the error of whoever asked
                if not asked.answer.done():
                    asked.answer.set_exception(error)
                continue
            if not asked.answer.done():
                asked.take(part)
                self._turns.append(asked)
