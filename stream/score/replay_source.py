"""Reference scores in a replay: when a score is known follows from event time alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from heft.models.records import ReferenceScore, Slate, data_ends_ms
from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair, Template

ScorePairs: TypeAlias = Callable[[Sequence[Pair]], Sequence[Logits | None]]
"""Scores pairs, each by its own texts alone; None for a pair whose score is no finite number."""

MOST_WANTED = 16_384
"""The largest number of pairs that are collected before they are scored."""


class PairScores:
    """Scores of pairs, asked for in advance and computed together when the first of them is needed.

    A pair that is forgotten is computed again, so the bound costs time only. A model that computes a pair in a batch
    gives it a last bit that depends on the rest of the batch, so a logit may come out one step of 1/256 away. Learning
    a scored log again does not meet this, because the log carries its scores; only scoring a log anew does.

    Parameters
    ----------
    score
        A pure function.
    capacity
        The largest number of pairs that are remembered.
    """

    def __init__(self, score: ScorePairs, capacity: int = 200_000) -> None:
        self._score = score
        self._capacity = capacity
        self._known: OrderedDict[Pair, Logits | None] = OrderedDict()
        self._wanted: dict[Pair, None] = {}
        self.scored = 0

    def want(self, pair: Pair) -> None:
        """Ask for a pair in advance."""
        if pair not in self._known:
            self._wanted[pair] = None
            if len(self._wanted) >= min(MOST_WANTED, self._capacity):
                self._compute()

    def get(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        """Return the scores of pairs."""
        missing = [pair for pair in pairs if pair not in self._known]
        if missing:
            found = {pair: self._known[pair] for pair in pairs if pair in self._known}
            self._wanted.update(dict.fromkeys(missing))
            found |= self._compute()
        else:
            found = {pair: self._known[pair] for pair in pairs}
        for pair in pairs:
            if pair in self._known:
                self._known.move_to_end(pair)
        return [found[pair] for pair in pairs]

    def _compute(self) -> dict[Pair, Logits | None]:
        pairs, self._wanted = list(self._wanted), {}
        computed = dict(zip(pairs, self._score(pairs), strict=True))
        self.scored += len(pairs)
        self._known.update(computed)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return computed


class _OpenSlate(NamedTuple):
    closes_ms: int
    waiting: list[tuple[str, Pair]]
    """Item ids and their texts."""


class ReplaySource:
    """The scores of one source in a replay: those that a scorer that keeps up would have given; a `ScoreSource`.

    A pair is scored when it is first shown. Slates shown at least ``score_delay_ms`` after that have its score on time;
    for the others it comes with `Closed`.

    * With a teacher that reads texts apart, texts count in place of pairs: a ranker that has the vectors of two texts
      has the score of their pair, whether or not the pair was shown before.
    * With a static teacher all scores are on time from ``score_delay_ms`` after the end of its data, because a ranker
      reads any text with it.
    * No teacher has scores for slates from before the end of its data: it did not exist yet.

    ``not_finite`` counts the items whose score was no finite number.

    Parameters
    ----------
    scores
        The scores of pairs; shared by the sources of a replay.
    teacher
        What the teacher says of itself.
    score_delay_ms
        From when a pair, or a text, is first shown until a ranker has its score, or its vector.
    open_for_ms
        How long a slate can stay open: the click window.
    in_line
        All scores are on time, as with a scorer that the ranker waits for.
    capacity
        The largest number of pairs, or of texts, whose first moment is remembered. The one seen longest ago goes first;
        when it comes again it counts as new.
    """

    def __init__(
        self,
        scores: PairScores,
        teacher: TeacherDescription,
        *,
        score_delay_ms: int = 2_000,
        open_for_ms: int = 600_000,
        in_line: bool = False,
        capacity: int = 200_000,
    ) -> None:
        self._scores, self._teacher, self._template = scores, teacher, Template(teacher.template)
        self._data_ends_ms = data_ends_ms(teacher.version)
        self._delay_ms, self._open_for_ms, self._in_line = score_delay_ms, open_for_ms, in_line
        self._capacity = capacity
        known = reversed(teacher.read_ahead[:capacity])  # the most used is forgotten last
        self._first_ms: OrderedDict[Pair | str, int] = OrderedDict.fromkeys(known, self._data_ends_ms)
        self._open: OrderedDict[str, _OpenSlate] = OrderedDict()
        self._expected: dict[str, list[tuple[str, Pair]]] = {}
        self.not_finite = 0

    def expect(self, slate: Slate) -> None:
        """Ask for the scores of a slate, so that they are computed with those of others."""
        pairs = self._expected[slate.request_id] = self._pairs(slate)
        for _, pair in pairs:
            self._scores.want(pair)

    def on_time(self, slate: Slate) -> list[ReferenceScore]:
        """Return the scores that are on time; keep the other items until the slate closes."""
        self._forget(slate.at_ms)
        known: list[tuple[str, Pair]] = []
        waiting: list[tuple[str, Pair]] = []
        pairs = self._expected.pop(slate.request_id, None)
        for item_id, pair in self._pairs(slate) if pairs is None else pairs:
            on_time = self._shown_since(pair, slate.at_ms) + self._delay_ms <= slate.at_ms or self._in_line
            (known if on_time else waiting).append((item_id, pair))
        while len(self._first_ms) > self._capacity:
            self._first_ms.popitem(last=False)
        if waiting:
            for _, pair in waiting:
                self._scores.want(pair)
            self._open[slate.request_id] = _OpenSlate(slate.at_ms + self._open_for_ms, waiting)
        return self._scored(known, True)

    def by_now(self, request_id: str) -> list[ReferenceScore]:
        """Return the scores of a slate that were not on time, and forget the slate."""
        found = self._open.pop(request_id, None)
        return [] if found is None else self._scored(found.waiting, False)

    def _shown_since(self, pair: Pair, at_ms: int) -> int:
        """Return when all that is needed for a score had been shown, and note that it is shown now."""
        if self._teacher.static:
            return self._data_ends_ms
        since_ms = 0
        for needed in pair if self._teacher.apart else (pair,):
            since_ms = max(since_ms, self._first_ms.setdefault(needed, at_ms))
            self._first_ms.move_to_end(needed)
        return since_ms

    def _pairs(self, slate: Slate) -> list[tuple[str, Pair]]:
        if slate.at_ms <= self._data_ends_ms:
            return []
        query = self._template.query(slate)
        return [(item.item_id, Pair(query, self._template.item(slate, item))) for item in slate.items if item.seen]

    def _scored(self, pairs: Sequence[tuple[str, Pair]], on_time: bool) -> list[ReferenceScore]:
        scores = []
        for (item_id, _), logits in zip(pairs, self._scores.get([pair for _, pair in pairs]), strict=True):
            if logits is None:
                self.not_finite += 1
                continue
            scores.append(ReferenceScore(item_id, logits.logit_256, self._teacher.version, on_time, logits.order_256))
        return scores

    def _forget(self, now_ms: int) -> None:
        """Forget slates that the join dropped: their `Closed` never comes."""
        while self._open and next(iter(self._open.values())).closes_ms < now_ms:
            self._open.popitem(last=False)
