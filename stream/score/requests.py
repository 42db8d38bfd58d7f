"""Reference scores in a live worker: the stream asks and goes on, a thread of its own has the teacher answer.

Nothing here waits: what the stream asks for is noted under a lock that is held for dictionary look-ups, the product of
some vectors, and reading texts where a static teacher has them read, alone. A teacher that hangs, fails, is slow or
answers what is no number costs scores, each counted with its reason, and nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from heft.models.records import ReferenceScore, Slate, data_ends_ms
from heft.models.teacher.logits import Logits, is_wire_version
from heft.models.teacher.template import Pair, Template
from heft.stream.score.queue import PairQueue, Request, Score
from heft.stream.score.text_times import AtOnce, Moment, TextReadTimes

log = logging.getLogger("heft.scoring")

PAIRS = ("asked", "hits", "scored", "at_once", "shed", "not_finite", "swapped")
MISSING = ("waiting", "asked", "shed", "failed", "timeout", "not_finite", "in_sample", "swapped")
FAILURES = ("failed", "timeout")
"""What a `ScoreRequests` counts, and under which names."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0  # after a failure; doubled each time


class ScorerError(RuntimeError):
    """The teacher gave no answer. ``reason`` is what it is counted under."""

    reason = "failed"


class ScorerTimeoutError(ScorerError):
    """The teacher gave no answer in time."""

    reason = "timeout"


class Answer(NamedTuple):
    """What a teacher said of some pairs, and which teacher it was."""

    version: str
    template: str
    logits: Sequence[Logits | None]
    at_once: AtOnce | None = None
    """Of a teacher that reads texts apart: scores other pairs of the texts that it has read, here and before, or of any
    where it is static."""
    read_ahead: Sequence[str] = ()
    """Texts that it had read when it began."""
    static: bool = False
    """It scores pairs of any texts at once, read or not."""


class Teacher(Protocol):
    """Scores pairs; may take its time, and may fail."""

    def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the logits of pairs; raises what it likes when it cannot."""
        ...

    def look(self) -> Answer | None:
        """Return an answer about no pairs if it is another teacher than it last said, though nothing was asked."""
        ...


class Clocks(NamedTuple):
    """Time from outside: the wall clock in milliseconds, and seconds of any origin."""

    wall_ms: Callable[[], int]
    seconds: Callable[[], float]


class _Open(NamedTuple):
    at_ms: int
    waiting: list[
        tuple[ScoreRequests, list[tuple[str, Request]]]
    ]  # items, and what was asked for them, by where it was asked


class ScoreRequests:
    """Pairs that wait for a score and scores that are known, for all partitions of a worker.

    ``counts``: ``asked`` for items of slates, ``hits`` of them known or asked for already; pairs ``scored`` by the
    teacher, known ``at_once`` since it had read both texts before or is static (then they are hits), ``shed``,
    ``not_finite`` and ``swapped``. ``missing``: items that went on without a score, by reason: ``waiting`` in the
    queue, ``asked`` and not answered, ``shed``, ``failed``, ``timeout``, ``not_finite``, ``in_sample`` (shown before
    the teacher's data ends), ``swapped`` (asked with the texts of the teacher before). ``failures``: batches that the
    teacher did not answer, by reason. ``ready``: whether the teacher has been made; until then all pairs wait.

    Parameters
    ----------
    template
        What the teacher reads, until it says so itself.
    clocks
        Time.
    lateness_ms
        How far the stream is behind the shop: `Shown` comes so long after its slate.
    queue, cache
        Pairs that wait, and scores (and texts that were read) that are remembered, at most.
    observe
        Told the seconds from asking to knowing, of each pair that the teacher scored.
    """

    def __init__(
        self,
        template: str,
        clocks: Clocks,
        *,
        lateness_ms: int = 10_000,
        queue: int = 20_000,
        cache: int = 200_000,
        observe: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._clocks, self._lateness_ms, self._cache_size, self._observe = clocks, lateness_ms, cache, observe
        self._template = Template(template)
        self._queue = PairQueue(queue)
        self._asked: dict[Pair, Request] = {}
        self._known: OrderedDict[Pair, Request] = OrderedDict()
        self._texts = TextReadTimes(cache)
        self._event_ms = 0
        self._there = threading.Condition()
        self.ready = False
        self.version = ""
        self.counts: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    # ---------------------------------------------------------------- for the stream

    def ask(self, slate: Slate) -> list[tuple[str, Request]]:
        """Note what a slate asks for, by item."""
        with self._there:
            self._event_ms = max(self._event_ms, slate.at_ms)
            seen = [item for item in slate.items if item.seen]
            self.counts["asked"] += len(seen)
            if self.version and slate.at_ms <= data_ends_ms(self.version):
                self.missing["in_sample"] += len(seen)
                return []
            query = self._template.query(slate)
            pairs = [Pair(query, self._template.item(slate, item)) for item in seen]
            self._score_at_once(pairs)
            asked = [(item.item_id, self._ask(pair)) for item, pair in zip(seen, pairs, strict=True)]
            self._there.notify()
            return asked

    def leave(self, at_ms: int, waiting: Sequence[tuple[str, Request]]) -> list[tuple[str, Score]]:
        """Return what is known by now for a slate that no longer waits."""
        found = []
        with self._there:
            for item_id, asked in waiting:
                # One that was shed, say, may have been asked for again by a later slate.
                known = (asked if asked.known else self._known.get(asked.pair, asked)).known
                if known is None:
                    self.missing[asked.reason] += 1
                elif at_ms <= data_ends_ms(known.version):
                    self.missing["in_sample"] += 1
                else:
                    found.append((item_id, known))
                self._queue.revalue(asked, asked.slates - 1)
                if not asked.slates and asked.known is None and asked.reason != "asked":
                    self._forget(asked)
        return found

    def was_known(self, known: Score, at_ms: int, delay_ms: int) -> bool:
        """Whether a ranker could have known a score when a slate was shown.

        By the wall clock, and by the stream's own time as well: a shop may be played faster than its time passes, and
        the newest that has come through the join was shown ``lateness`` ago.
        """
        return max(known.wall_ms, known.event_ms + self._lateness_ms) + delay_ms <= at_ms

    def go_on_counting(self, before: ScoreRequests) -> None:
        """Take the place of another desk: its counts go on."""
        self.counts, self.missing, self.failures = before.counts, before.missing, before.failures

    def _ask(self, pair: Pair) -> Request:
        if (found := self._known.get(pair)) is not None:
            self._known.move_to_end(pair)
            self.counts["hits"] += 1
            return found
        if (waiting := self._asked.get(pair)) is not None:
            self._queue.revalue(waiting, waiting.slates + 1)
            self.counts["hits"] += 1
            return waiting
        asked = self._asked[pair] = Request(pair, self._clocks.seconds())
        self._let_wait(asked)
        return asked

    def _score_at_once(self, pairs: Sequence[Pair]) -> None:
        """Score what follows from texts that were read before, asked for already or not."""
        taken = {pair for pair in pairs if pair in self._asked and self._asked[pair].reason == "asked"}
        unknown = [pair for pair in dict.fromkeys(pairs) if pair not in self._known and pair not in taken]
        try:
            scores = self._texts.scores(unknown)
        except Exception:  # whatever the teacher does, the stream goes on; the thread that scores will hear of it
            self.failures[ScorerError.reason] += 1
            return
        for pair, logits, since in scores:
            asked = self._asked.get(pair) or Request(pair)
            self._queue.remove(asked)
            self._know(asked, Score(logits, self.version, *since))
            self.counts["at_once"] += 1

    def _know(self, asked: Request, known: Score) -> None:
        asked.known = known
        self._forget(asked)
        self._known[asked.pair] = asked
        if len(self._known) > self._cache_size:
            self._known.popitem(last=False)

    def _let_wait(self, asked: Request) -> None:
        if (shed := self._queue.add(asked)) is not None:
            self._drop(shed, "shed")
            self.counts["shed"] += 1

    def _drop(self, asked: Request, reason: str) -> None:
        asked.reason = reason
        self._forget(asked)

    def _forget(self, asked: Request) -> None:
        if self._asked.get(asked.pair) is asked:
            del self._asked[asked.pair]

    # ---------------------------------------------------------------- for the thread that scores

    @property
    def waiting(self) -> int:
        """Pairs in the queue."""
        return len(self._queue)

    def take(self, n: int, timeout: float) -> list[Request]:
        """Return the most valuable pairs, as soon as there are any; nothing after `timeout` seconds."""
        with self._there:
            if not self._queue:
                self._there.wait(timeout)
            taken = self._queue.take(n)
            for asked in taken:
                asked.reason = "asked"
            return taken

    def answer(self, taken: Sequence[Request], answer: Answer) -> None:
        """Note what the teacher said."""
        with self._there:
            misread = answer.template != self._template.text
            moment, now = Moment(self._clocks.wall_ms(), self._event_ms), self._clocks.seconds()
            if answer.version != self.version:
                self._change_teacher(answer, misread)
                self._texts.begin(moment, answer.read_ahead, answer.static)
            self._texts.at_once = answer.at_once
            for asked, logits in zip(taken, answer.logits, strict=True):
                if misread or logits is None:
                    reason = "swapped" if misread else "not_finite"
                    self.counts[reason] += 1
                    self._drop(asked, reason)
                    continue
                self._know(asked, Score(logits, answer.version, *self._texts.note(asked.pair, moment)))
                self.counts["scored"] += 1
                self._observe(now - asked.asked_at)

    def fail(self, taken: Sequence[Request], reason: str) -> None:
        """Note that the teacher said nothing; what slates still wait for is asked again."""
        with self._there:
            self.failures[reason] += 1
            for asked in taken:
                asked.reason = reason
                if asked.slates > 0:
                    self._let_wait(asked)
                else:
                    self._drop(asked, reason)

    def _change_teacher(self, answer: Answer, misread: bool) -> None:
        if self.version:
            log.warning("the teacher is now %s, before it was %s", answer.version, self.version)
        self.version = answer.version
        self._known.clear()
        if misread:
            self._template = Template(answer.template)
            for asked in self._queue.take(len(self._queue)):
                self._drop(asked, "swapped")


class LiveSource:
    """The reference of one partition: see `stream.score.scorer.Reference`.

    Parameters
    ----------
    desks
        Whom to ask about a slate shown at a time; shared by the worker's partitions.
    score_delay_ms
        What it takes a score to reach the rankers.
    open_for_ms
        How long a slate can stay open: the click window.
    """

    def __init__(self, desks: Callable[[int], Sequence[ScoreRequests]], score_delay_ms: int, open_for_ms: int) -> None:
        self._desks, self._delay_ms, self._open_for_ms = desks, score_delay_ms, open_for_ms
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def expect(self, slate: Slate) -> None:
        """Do nothing: slates come when they come."""

    def on_time(self, slate: Slate) -> list[ReferenceScore]:
        """Return the scores that were known long enough before the slate was shown, and ask for the others."""
        self._forget(slate.at_ms)
        scores: list[ReferenceScore] = []
        left: list[tuple[ScoreRequests, list[tuple[str, Request]]]] = []
        for desk in self._desks(slate.at_ms):
            waiting = []
            for item_id, asked in desk.ask(slate):
                known = asked.known
                if known is not None and desk.was_known(known, slate.at_ms, self._delay_ms):
                    scores.append(_score(item_id, known, True))
                else:
                    waiting.append((item_id, asked))
            if waiting:
                left.append((desk, waiting))
        if left:
            self._open[slate.request_id] = _Open(slate.at_ms, left)
        return scores

    def by_now(self, request_id: str) -> list[ReferenceScore]:
        """Return the scores of a slate that have come since, and forget the slate."""
        found = self._open.pop(request_id, None)
        if found is None:
            return []
        left = [each for desk, waiting in found.waiting for each in desk.leave(found.at_ms, waiting)]
        return [_score(item_id, known, False) for item_id, known in left]

    def _forget(self, now_ms: int) -> None:
        """Forget slates that the join dropped: their `Closed` never comes."""
        while self._open:
            request, first = next(iter(self._open.items()))
            if first.at_ms + self._open_for_ms >= now_ms:
                return
            self.by_now(request)


def _score(item_id: str, known: Score, on_time: bool) -> ReferenceScore:
    logits = known.logits
    return ReferenceScore(item_id, logits.logit_256, known.version, on_time, logits.order_256)


class ScoringThread:
    """Takes pairs from a desk, has the teacher score them, and goes on whatever the teacher does.

    Parameters
    ----------
    desk
        Where pairs wait.
    connect
        Makes the teacher, in the thread: it may take minutes. When it raises it is tried again.
    batch
        Pairs that are scored together at most.
    linger_seconds
        How long a batch that is not full waits for more.
    """

    def __init__(self, desk: ScoreRequests, connect: Callable[[], Teacher], batch: int, linger_seconds: float) -> None:
        self.desk, self._connect, self._batch, self._linger = desk, connect, batch, linger_seconds
        self._stopping = threading.Event()
        self._teacher: Teacher | None = None
        self._failed = 0
        # A teacher that hangs must not keep the worker from ending.
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End after the batch in hand; a teacher that hangs is left behind."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self.connect():
                taken = self.desk.take(self._batch, 0.2)
                if 0 < len(taken) < self._batch and self._linger:
                    self._stopping.wait(self._linger)
                    taken += self.desk.take(self._batch - len(taken), 0.0)
                if self.step(taken) if taken else self.look():
                    continue
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(self._failed - 1, 10), _LONGEST_PAUSE_SECONDS)
            self._stopping.wait(pause)

    def connect(self) -> bool:
        """Make the teacher, if there is none yet; return whether there is one."""
        if self._teacher is None:
            try:
                self._teacher = self._connect()
            except Exception as error:  # whatever it is, learning goes on
                self._note_failure([], error)
                return False
            self._failed, self.desk.ready = 0, True
        return True

    def look(self) -> bool:
        """Have the teacher say which one it is, should that be another; return whether that went well.

        One that scores at once what is asked for is not asked for anything, and would stay for ever.
        """
        assert self._teacher is not None, "connect first"
        try:
            answer = self._teacher.look()
        except Exception as error:  # as above
            self._note_failure([], error)
            return False
        if answer is not None:
            self.desk.answer([], answer)
        return True

    def step(self, taken: Sequence[Request]) -> bool:
        """Have some pairs scored; return whether that went well."""
        assert self._teacher is not None, "connect first"
        try:
            answer = self._teacher.score([asked.pair for asked in taken])
            if len(answer.logits) != len(taken):
                msg = f"{len(answer.logits)} scores for {len(taken)} pairs"
                raise ScorerError(msg)
            Template(answer.template)
            if not is_wire_version(answer.version):
                msg = f"version {answer.version!r}; expected a digest, @ and milliseconds"
                raise ScorerError(msg)
        except Exception as error:  # as above
            self._note_failure(taken, error)
            return False
        self.desk.answer(taken, answer)
        self._failed = 0
        return True

    def _note_failure(self, taken: Sequence[Request], error: Exception) -> None:
        self.desk.fail(taken, error.reason if isinstance(error, ScorerError) else ScorerError.reason)
        self._failed += 1
        if self._failed & (self._failed - 1) == 0:  # the 1st, 2nd, 4th, ... in a row
            log.warning("the teacher failed %d times in a row: %s: %s", self._failed, type(error).__name__, error)
