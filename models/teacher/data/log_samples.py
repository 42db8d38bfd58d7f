"""The labelled samples of a log, and the examples that they make.

A label belongs to the part of the log in which it became known (`closed` for a click, `matured` for a conversion), so
nothing in the training part was unknown at its end. Slates whose window has not ended by the end of the log have no
labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heft.models.hashing import hash_text
from heft.models.records import Closed, Converted, Matured, Record, Shown, Slate
from heft.models.teacher.base_rates import BaseRates, base_rates
from heft.models.teacher.data.examples import CLICK, CONVERSION, HEADS, DataError, Examples, Pairs, Split, examples_of
from heft.models.teacher.template import Template

_CLICK, _CONVERSION = HEADS.index(CLICK), HEADS.index(CONVERSION)

_MOST_TEXTS = 50_000  # texts that a teacher comes with

_NOTHING_CLOSED = "the log has no slate whose click window has ended"


class _Row(NamedTuple):
    slate: int  # the number of its slate, in the order of the log
    shown_ms: int
    pair: int
    surface: str
    position: int
    key: int  # see `sample_key`
    known_ms: int = 0
    label: int = 0
    head: int = _CLICK


class LaterSamples(NamedTuple):
    """Samples [N] one by one, not counted together: those that decide between two teachers."""

    pairs: Pairs
    slates: NDArray[np.int64]
    heads: NDArray[np.int64]
    labels: NDArray[np.float64]
    places: list[tuple[str, int]]
    """Surface and position."""
    ranker: NDArray[np.float64]
    """Click probability that the ranker itself gave; NaN where it is not known."""


class Log:
    """The labelled samples of a log.

    Parameters
    ----------
    records
        What the join made of the log, in its order; several logs one after the other.
    template
        How a sample is rendered.
    ranker
        Click probabilities that a ranker gave when it showed the samples, by `sample_key`. When given, they replace
        the base rates of positions, so that a teacher learns what the ranker lacks. The mapping may still be filled
        while the records are read: it is looked at afterwards.
    """

    def __init__(
        self, records: Iterable[Record], template: Template, ranker: Mapping[int, float] | None = None
    ) -> None:
        self._ranker = ranker
        self.pairs: Pairs = []
        self.begins_ms: int | None = None
        self._ids: dict[tuple[str, str], int] = {}
        self._rows: list[_Row] = []
        open_slates: dict[str, dict[str, _Row]] = {}
        clicked: dict[tuple[str, str], _Row] = {}
        slates = 0
        for record in records:
            match record:
                case Shown(slate=slate):
                    slates += 1
                    if self.begins_ms is None or slate.at_ms < self.begins_ms:
                        self.begins_ms = slate.at_ms
                    open_slates[slate.request_id] = self._rows_of(slate, slates, template)
                case Closed(due_ms=due, request_id=request):
                    for item_id, row in open_slates.pop(request, {}).items():
                        label = int((request, item_id) in clicked)
                        self._rows.append(row._replace(known_ms=due, label=label))
                case Matured(due_ms=due, request_id=request, item_id=item_id, converted=converted):
                    found = clicked.pop((request, item_id), None)
                    if found is not None:
                        self._rows.append(found._replace(known_ms=due, label=int(converted), head=_CONVERSION))
                case Converted():
                    pass  # an early signal; the label comes with `matured`
                case _:
                    shown = open_slates.get(record.request_id, {}).get(record.item_id)
                    if shown is not None:
                        clicked[record.request_id, record.item_id] = shown

    def _rows_of(self, slate: Slate, number: int, template: Template) -> dict[str, _Row]:
        query = template.query(slate)
        return {
            item.item_id: _Row(
                number,
                slate.at_ms,
                self._id(query, template.item(slate, item)),
                slate.surface,
                place if item.position is None else item.position,
                sample_key(slate.request_id, item.item_id),
            )
            for place, item in enumerate(slate.items)
            if item.seen
        }

    def _id(self, query: str, item: str) -> int:
        pair = (query, item)
        found = self._ids.get(pair)
        if found is None:
            found = self._ids[pair] = len(self.pairs)
            self.pairs.append(pair)
        return found

    def base_rates(self) -> BaseRates:
        """Return the click rates of the positions of the whole log.

        Raises
        ------
        DataError
            If the window of no slate has ended.
        """
        return _base_rates(self._rows)

    def examples(self, rates: BaseRates, after_ms: int = 0) -> Examples:
        """Return all samples of slates shown after a time as examples; by default those of all slates."""
        return self._examples([row for row in self._rows if row.shown_ms > after_ms], rates)

    def _known(self) -> NDArray[np.int64]:
        known = np.sort(np.array([row.known_ms for row in self._rows if row.head == _CLICK], np.int64))
        if not len(known):
            raise DataError(_NOTHING_CLOSED)
        return known

    def time_at(self, share: float) -> int:
        """Return the time at which the click labels of the first ``share`` in [0, 1) of the samples were known."""
        known = self._known()
        return int(known[int(share * len(known))])

    def later(self, after_ms: int) -> LaterSamples:
        """Return the labelled samples of slates shown after a time, in the order of the slates."""
        rows = sorted((row for row in self._rows if row.shown_ms > after_ms), key=lambda row: (row.slate, row.head))
        return LaterSamples(
            [self.pairs[row.pair] for row in rows],
            np.array([row.slate for row in rows], np.int64),
            np.array([row.head for row in rows], np.int64),
            np.array([row.label for row in rows], np.float64),
            [(row.surface, row.position) for row in rows],
            np.array([(self._ranker or {}).get(row.key, math.nan) for row in rows], np.float64),
        )

    def texts(self, until_ms: int | None = None, keep_negatives: float = 1.0, seed: int = 0) -> Pairs:
        """Return the pairs of texts to pre-train on: each query beside what was shown for it.

        All pairs that were clicked are among them, and a share of the others. So the words of a query stand mostly
        beside the words of what was chosen for it.

        Parameters
        ----------
        until_ms
            Only what became known before; by default everything.
        keep_negatives
            Share in (0, 1] of the unclicked samples whose pairs are read.
        seed
            Of the choice of these.
        """
        chosen = {
            row.pair
            for row in self._rows
            if row.head == _CLICK
            and (until_ms is None or row.known_ms < until_ms)
            and _keeps(row, keep_negatives, seed)
        }
        return [self.pairs[pair] for pair in sorted(chosen)]

    def split(self, until_ms: int | None = None, keep_negatives: float = 1.0, seed: int = 0) -> Split:
        """Cut the log in the order of its time; of what comes before the end, eight ninths train, the rest validates.

        Parameters
        ----------
        until_ms
            When training and validation end: what became known from then on is for measuring. By default the last
            tenth of the samples is for measuring.
        keep_negatives
            Share in (0, 1] of the training part's unclicked samples that is kept, chosen by request and item. The
            offsets allow for it, so that the click head still learns the rate before thinning.
        seed
            Of the thinning.

        Raises
        ------
        DataError
            If a part has no click or nothing unclicked.
        """
        second = self.time_at(0.9) if until_ms is None else until_ms
        known = self._known()
        first = int(known[int(np.searchsorted(known, second)) * 8 // 9])
        train, validation, test = (
            [row for row in self._rows if row.known_ms < first],
            [row for row in self._rows if first <= row.known_ms < second],
            [row for row in self._rows if second <= row.known_ms],
        )
        for name, rows in (("training", train), ("validation", validation), ("test", test)):
            _require_both_labels(name, rows)
        rates = _base_rates(train)
        trained = train if self._ranker is None else _without_beginning(train)
        kept = trained if keep_negatives == 1.0 else [row for row in trained if _keeps(row, keep_negatives, seed)]
        return Split(
            self._examples(kept, rates, keep_negatives),
            self._examples(validation, rates),
            self._examples(test, rates),
            rates,
            self.begins_ms,
            max(row.known_ms for row in (*train, *validation)),
            self._most_shown([*train, *validation]),
        )

    def _most_shown(self, rows: Iterable[_Row]) -> list[str]:
        counts = Counter(text for row in rows if row.head == _CLICK for text in self.pairs[row.pair])
        return [text for text, _ in counts.most_common(_MOST_TEXTS)]

    def _examples(self, rows: Sequence[_Row], rates: BaseRates, kept: float = 1.0) -> Examples:
        numbers: dict[int, int] = {}
        for row in rows:
            numbers.setdefault(row.pair, len(numbers))
        trials, positives = np.zeros((len(numbers), len(HEADS))), np.zeros((len(numbers), len(HEADS)))
        expected = np.zeros(len(numbers))
        for row in rows:
            n = numbers[row.pair]
            trials[n, row.head] += 1.0
            positives[n, row.head] += row.label
            if row.head == _CLICK:
                rate = rates.rate(row.surface, row.position)
                rate = rate if self._ranker is None else self._ranker.get(row.key, rate)
                expected[n] += rate / (rate + kept * (1.0 - rate))  # the rate among the samples that thinning left
        shows = trials[:, _CLICK]
        offset = [rates.offset(e, s) if s else 0.0 for e, s in zip(expected, shows, strict=True)]
        return examples_of([self.pairs[pair] for pair in numbers], trials, positives, np.array(offset))


def sample_key(request_id: str, item_id: str) -> int:
    """Return a stable hash of a sample: signed, 64 bits."""
    return hash_text(f"{request_id}\0{item_id}")


def _base_rates(rows: Iterable[_Row]) -> BaseRates:
    shows = [(row.surface, row.position, row.label) for row in rows if row.head == _CLICK]
    if not shows:
        raise DataError(_NOTHING_CLOSED)
    return base_rates(shows)


def _require_both_labels(part: str, rows: Sequence[_Row]) -> None:
    clicks = sum(row.label for row in rows if row.head == _CLICK)
    shows = sum(row.head == _CLICK for row in rows)
    if not 0 < clicks < shows:
        msg = f"the {part} part of the log has {clicks} clicks on {shows} samples; a longer log is needed"
        raise DataError(msg)


def _without_beginning(rows: list[_Row]) -> list[_Row]:
    """Leave out the first tenth of the click samples: the ranker knew nothing yet when it showed them."""
    known_ms = sorted(row.known_ms for row in rows if row.head == _CLICK)
    begins_ms = known_ms[len(known_ms) // 10]
    return [row for row in rows if row.head != _CLICK or row.known_ms >= begins_ms]


def _keeps(row: _Row, share: float, seed: int) -> bool:
    if row.head != _CLICK or row.label:
        return True
    digest = blake2b(row.key.to_bytes(8, "little", signed=True), key=seed.to_bytes(8, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") < share * 2**64
