"""The middle stage: records pass through untouched and in order, and take reference scores along.

`Shown` takes the scores that a ranker could have known when the slate was shown; `Closed` takes those that have come
since. An impression may bring those that its ranker asked for itself. The stage never makes the stream wait: a score
that is missing is missing, and costs a weight of 1.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from heft.models.records import Closed, Record, ReferenceScore, Shown, Slate, data_ends_ms
from heft.models.teacher.logits import Logits, quantise
from heft.models.teacher.template import Pair, Template

ScorePairs: TypeAlias = Callable[[Sequence[Pair]], Sequence[Logits | None]]
"""Scores pairs, each by its texts alone; None for a pair that got no finite number."""

MOST_WANTED = 16_384  # pairs that are collected at most before they are scored


class ScoreSource(Protocol):
    """Where reference scores come from."""

    def expect(self, slate: Slate) -> None:
        """Hear of a slate that is about to come; may be called or not."""
        ...

    def on_time(self, slate: Slate) -> list[ReferenceScore]:
        """Return the scores a ranker could have known when the slate was shown, and ask for the others."""
        ...

    def by_now(self, request_id: str) -> list[ReferenceScore]:
        """Return the scores of a slate that have come since, and forget the slate."""
        ...


class NoReference:
    """No teacher: no scores, so every sample counts once."""

    def expect(self, slate: Slate) -> None:
        """Do nothing."""

    def on_time(self, slate: Slate) -> list[ReferenceScore]:  # noqa: ARG002
        """Return nothing."""
        return []

    def by_now(self, request_id: str) -> list[ReferenceScore]:  # noqa: ARG002
        """Return nothing."""
        return []


class Scorer:
    """The score stage of one source partition: adds reference scores, changes nothing else.

    ``counts`` says how many scores were ``on_time``, and how many came ``later``.
    """

    def __init__(self, reference: ScoreSource | None = None) -> None:
        self._reference = reference or NoReference()
        self.counts: Counter[str] = Counter(on_time=0, later=0)

    def score(self, record: Record) -> Record:
        """Return the record with the scores known by now."""
        if isinstance(record, Shown):
            brought = bool(record.slate.teacher)
            scores = _brought(record.slate) if brought else self._reference.on_time(record.slate)
            self.counts["on_time"] += len(scores)
        elif isinstance(record, Closed):
            scores = self._reference.by_now(record.request_id)
            self.counts["later"] += len(scores)
        else:
            return record
        return msgspec.structs.replace(record, scores=scores) if scores else record

    def expect(self, records: Iterable[Record]) -> None:
        """Tell the reference which slates are about to come: it may score them together."""
        for record in records:
            if isinstance(record, Shown) and not record.slate.teacher:
                self._reference.expect(record.slate)


def _brought(slate: Slate) -> list[ReferenceScore]:
    """Return the scores that the ranker had when it showed the slate."""
    scores = []
    for item in slate.items:
        logits = None if item.teacher is None else quantise(*item.teacher)
        if logits is not None and item.seen:
            scores.append(ReferenceScore(item.item_id, logits.logit_256, slate.teacher, True, logits.order_256))
    return scores


class PairScores:
    """Scores of pairs, asked for in advance and computed together when the first of them is needed.

    What is forgotten is computed again, so the bound costs time and nothing else. A model computes a pair in a batch
    with a last bit that depends on the others in it: a logit may come out one step of 1/256 away from that of another
    batch. A log that is to be learned again bit by bit carries its scores; only scoring it anew meets this.

    Parameters
    ----------
    score
        A pure function.
    capacity
        Pairs that are remembered.
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


class _Open(NamedTuple):
    closes_ms: int
    waiting: list[tuple[str, Pair]]  # item and its texts


class ReplaySource:
    """Reference scores in a replay: what a scorer that keeps up would have said, by event time alone.

    A pair is scored when it is first shown, at t. A slate shown at t + ``score_delay_ms`` or later has the score on
    time; until then it comes with `Closed`. Of a teacher that reads texts apart it is the texts that count: a ranker
    that has the vectors of both has the score of any pair of them, shown before or not. One that is static reads any
    text in the ranker: its scores are all on time. A teacher says nothing of slates from before the end of its own
    data: it was not there yet.

    Parameters
    ----------
    scores, template, version
        The teacher: what it says, what it reads, and its version as scores carry it.
    score_delay_ms
        From the moment a pair, or a text, is first shown until a ranker knows its score, or its vector.
    open_for_ms
        How long a slate can stay open: the click window.
    in_line
        Every score is there when its slate is shown: a scorer in line with the ranker.
    capacity
        Pairs, or texts, whose first moment is remembered; the one seen longest ago goes first, and is new when it comes
        again.
    apart
        The teacher reads query and item apart.
    read_ahead
        Texts that it has read by the end of its data, the most used first.
    static
        It reads a text without a model.
    """

    def __init__(
        self,
        scores: PairScores,
        template: Template,
        version: str,
        *,
        score_delay_ms: int = 2_000,
        open_for_ms: int = 600_000,
        in_line: bool = False,
        capacity: int = 200_000,
        apart: bool = False,
        read_ahead: Sequence[str] = (),
        static: bool = False,
    ) -> None:
        self._scores, self._template, self._version = scores, template, version
        self._data_ends_ms = data_ends_ms(version)
        self._delay_ms, self._open_for_ms, self._in_line = score_delay_ms, open_for_ms, in_line
        self._capacity, self._apart, self._static = capacity, apart, static
        known = reversed(read_ahead[:capacity])  # the first goes last
        self._first_ms: OrderedDict[Pair | str, int] = OrderedDict.fromkeys(known, self._data_ends_ms)
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._expected: dict[str, list[tuple[str, Pair]]] = {}
        self.not_finite = 0

    def expect(self, slate: Slate) -> None:
        """Ask for the scores of a slate, to be computed with those of others."""
        pairs = self._expected[slate.request_id] = self._pairs(slate)
        for _, pair in pairs:
            self._scores.want(pair)

    def on_time(self, slate: Slate) -> list[ReferenceScore]:
        """Return the scores of what was first shown long enough ago."""
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
            self._open[slate.request_id] = _Open(slate.at_ms + self._open_for_ms, waiting)
        return self._scored(known, True)

    def by_now(self, request_id: str) -> list[ReferenceScore]:
        """Return the other scores of a slate."""
        found = self._open.pop(request_id, None)
        return [] if found is None else self._scored(found.waiting, False)

    def _shown_since(self, pair: Pair, at_ms: int) -> int:
        """Return when all that is needed for a score had been shown, and note that it is shown now."""
        if self._static:
            return self._data_ends_ms
        since_ms = 0
        for needed in pair if self._apart else (pair,):
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
            scores.append(ReferenceScore(item_id, logits.logit_256, self._version, on_time, logits.order_256))
        return scores

    def _forget(self, now_ms: int) -> None:
        """Forget slates that the join dropped: their `Closed` never comes."""
        while self._open and next(iter(self._open.values())).closes_ms < now_ms:
            self._open.popitem(last=False)
