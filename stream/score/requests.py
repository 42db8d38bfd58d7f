"""What the stream asks of one version of a live teacher, and what is known of it.

Two threads meet here: the stream, which asks for scores and takes along those that are known, and the thread that
scores. The stream never waits for the teacher. It holds the lock only for dictionary look-ups, for products of vectors
that are there already, and, with a static teacher, for reading short texts. The states of a request and their order
are in `request_state`; `ScoreRequests._change` is the only place that changes one.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from heft.models.records import Slate, data_ends_ms
from heft.models.teacher.template import Pair, Template
from heft.stream.score.queue import PairQueue
from heft.stream.score.request_state import IN_QUEUE, Request, RequestState, Score
from heft.stream.score.teacher import Answer, ScorerError
from heft.stream.score.text_times import Moment, TextReadTimes

log = logging.getLogger("heft.scoring")

_PAIRS = ("asked", "hits", "scored", "at_once", "shed", "not_finite", "swapped")
_MISSING = (
    *(state.value for state in RequestState if state not in (RequestState.KNOWN, RequestState.LEFT)),
    "in_sample",
)
_FAILURES = (RequestState.FAILED.value, RequestState.TIMEOUT.value)


class ScoreCounts(NamedTuple):
    """What happened to the requests of one or more versions of the teacher, by name.

    The counters have all their names from the start. So no name is added later, and another thread may read them while
    they count.
    """

    pairs: Counter[str]
    """``asked``: items of slates; ``hits``: those whose pair was known or asked for already. Then pairs: ``scored`` by
    the teacher; scored ``at_once`` from texts that it had read (their items are hits); ``shed``; ``not_finite``;
    ``swapped``."""
    missing: Counter[str]
    """Items that went on without a score, by the state of their request, or ``in_sample``: the slate was shown before
    the teacher's data ends."""
    failures: Counter[str]
    """Batches that the teacher did not answer: ``failed`` or ``timeout``."""

    @classmethod
    def total(cls, several: Iterable[ScoreCounts] = ()) -> ScoreCounts:
        """Return the sum of several counts; zero of none."""
        total = cls(*(Counter(dict.fromkeys(names, 0)) for names in (_PAIRS, _MISSING, _FAILURES)))
        for counts in several:
            for sum_, addend in zip(total, counts, strict=True):
                sum_.update(addend)
        return total


class Clocks(NamedTuple):
    """Time from outside: the wall clock in milliseconds, and seconds of any origin."""

    wall_ms: Callable[[], int]
    seconds: Callable[[], float]


class ScoreRequests:
    """Pairs that wait for a score and scores that are known, for all partitions of a worker.

    ``counts`` is what has happened so far. ``ready`` says whether the teacher has been made; until then all pairs wait.
    ``version`` is the teacher's, empty before its first answer.

    Parameters
    ----------
    template
        What the teacher reads, until it says so itself.
    clocks
        Time.
    lateness_ms
        How far the stream is behind the shop: `Shown` comes that long after its slate.
    queue, cache
        The largest number of pairs that wait, and of scores (and texts that were read) that are remembered.
    observe
        Called for each pair that the teacher scored with the seconds from asking for it to knowing its score.
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
        self._open: dict[Pair, Request] = {}  # those in the queue, and those that the teacher is working on
        self._known: OrderedDict[Pair, Request] = OrderedDict()
        self._texts = TextReadTimes(cache)
        self._event_ms = 0
        self._lock = threading.Condition()  # wakes the thread that scores when there is something to score
        self.ready = False
        self.version = ""
        self.counts = ScoreCounts.total()

    # ---------------------------------------------------------------- for the stream

    def ask(self, slate: Slate) -> list[tuple[str, Request]]:
        """Ask for the scores of a slate; return its item ids with their requests."""
        with self._lock:
            self._event_ms = max(self._event_ms, slate.at_ms)
            seen = [item for item in slate.items if item.seen]
            self.counts.pairs["asked"] += len(seen)
            if self.version and slate.at_ms <= data_ends_ms(self.version):
                self.counts.missing["in_sample"] += len(seen)
                return []
            query = self._template.query(slate)
            pairs = [Pair(query, self._template.item(slate, item)) for item in seen]
            self._score_at_once(pairs)
            requests = [(item.item_id, self._request(pair)) for item, pair in zip(seen, pairs, strict=True)]
            self._lock.notify()
            return requests

    def leave(self, at_ms: int, waiting: Sequence[tuple[str, Request]]) -> list[tuple[str, Score]]:
        """Return the scores that are known by now of a slate shown at ``at_ms`` that waits no longer, by item id."""
        found = []
        with self._lock:
            for item_id, request in waiting:
                score = request.score
                if score is None and request.pair in self._known:
                    # Its request was dropped, but a later slate has asked for the same pair again.
                    score = self._known[request.pair].score
                if score is None:
                    self.counts.missing[request.state.value] += 1
                elif at_ms <= data_ends_ms(score.version):
                    self.counts.missing["in_sample"] += 1
                else:
                    found.append((item_id, score))
                self._queue.revalue(request, request.slates - 1)
                if request.slates <= 0 and request.state in IN_QUEUE:
                    self._change(request, RequestState.LEFT)
        return found

    def was_known(self, score: Score, at_ms: int, delay_ms: int) -> bool:
        """Whether a ranker could have known a score when a slate was shown at ``at_ms``.

        It must have been known by the wall clock, and by the stream's own time too: a shop may be played faster than
        time passes. By that time, the newest slate out of the join was shown ``lateness_ms`` before the shop's present.
        """
        return max(score.wall_ms, score.event_ms + self._lateness_ms) + delay_ms <= at_ms

    def _request(self, pair: Pair) -> Request:
        """Return the request of a pair: the one that is known or open already, or a new one in the queue."""
        if (known := self._known.get(pair)) is not None:
            self._known.move_to_end(pair)
            self.counts.pairs["hits"] += 1
            return known
        if (request := self._open.get(pair)) is not None:
            self._queue.revalue(request, request.slates + 1)
            self.counts.pairs["hits"] += 1
            return request
        request = self._open[pair] = Request(pair, self._clocks.seconds())
        self._let_wait(request)
        return request

    def _score_at_once(self, pairs: Sequence[Pair]) -> None:
        """Score those pairs whose texts the teacher has read, unless it is working on them."""
        unknown = []
        for pair in dict.fromkeys(pairs):
            request = self._open.get(pair)
            if pair not in self._known and (request is None or request.state is not RequestState.ASKED):
                unknown.append(pair)
        try:
            scores = self._texts.scores(unknown)
        except Exception:  # whatever it is, the stream goes on; the thread that scores will meet it and log it
            self.counts.failures[ScorerError.state.value] += 1
            return
        for pair, logits, since in scores:
            request = self._open.get(pair) or Request(pair)
            self._queue.remove(request)
            self._change(request, RequestState.KNOWN, Score(logits, self.version, *since))
            self.counts.pairs["at_once"] += 1

    def _let_wait(self, request: Request) -> None:
        if (shed := self._queue.add(request)) is not None:
            self._change(shed, RequestState.SHED)
            self.counts.pairs["shed"] += 1

    def _change(self, request: Request, state: RequestState, score: Score | None = None) -> None:
        """Give a request its next state; the caller holds the lock."""
        request.change(state, score)
        if state in IN_QUEUE or state is RequestState.ASKED:
            return
        if self._open.get(request.pair) is request:
            del self._open[request.pair]
        if state is RequestState.KNOWN:
            self._known[request.pair] = request
            if len(self._known) > self._cache_size:
                self._known.popitem(last=False)

    # ---------------------------------------------------------------- for the thread that scores

    @property
    def waiting(self) -> int:
        """How many pairs are in the queue."""
        return len(self._queue)

    def take(self, n: int, timeout: float) -> list[Request]:
        """Return the most valuable requests, as soon as there are any; none after ``timeout`` seconds."""
        with self._lock:
            if not self._queue:
                self._lock.wait(timeout)
            taken = self._queue.take(n)
            for request in taken:
                self._change(request, RequestState.ASKED)
            return taken

    def answer(self, taken: Sequence[Request], answer: Answer) -> None:
        """Give requests that were taken the teacher's answer."""
        with self._lock:
            other_texts = answer.teacher.template != self._template.text
            moment, now = Moment(self._clocks.wall_ms(), self._event_ms), self._clocks.seconds()
            if answer.teacher.version != self.version:
                self._change_teacher(answer, moment, other_texts)
            self._texts.at_once = answer.at_once
            for request, logits in zip(taken, answer.logits, strict=True):
                if other_texts or logits is None:
                    state = RequestState.SWAPPED if other_texts else RequestState.NOT_FINITE
                    self._change(request, state)
                    self.counts.pairs[state.value] += 1
                    continue
                since = self._texts.note(request.pair, moment)
                self._change(request, RequestState.KNOWN, Score(logits, answer.teacher.version, *since))
                self.counts.pairs["scored"] += 1
                self._observe(now - request.asked_at)

    def fail(self, taken: Sequence[Request], state: RequestState) -> None:
        """Note that the teacher gave no answer, in time or at all; what slates still wait for is asked for again."""
        with self._lock:
            self.counts.failures[state.value] += 1
            for request in taken:
                self._change(request, state)
                if request.slates > 0:
                    self._let_wait(request)
                else:
                    self._change(request, RequestState.LEFT)

    def _change_teacher(self, answer: Answer, now: Moment, other_texts: bool) -> None:
        if self.version:
            log.warning("the teacher is now %s, before it was %s", answer.teacher.version, self.version)
        self.version = answer.teacher.version
        self._known.clear()
        self._texts.begin(now, answer.teacher.read_ahead, answer.teacher.static)
        if other_texts:
            self._template = Template(answer.teacher.template)
            for request in self._queue.take(len(self._queue)):
                self._change(request, RequestState.SWAPPED)
