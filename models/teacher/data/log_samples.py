"""From the records of a log, or a file of judgements, to what a teacher is trained on: pairs of texts with counts.

Samples with the same two texts are one example with counts: the teacher could not tell them apart. A label belongs to
the part of the log in which it became known (`closed` for a click, `matured` for a conversion), so nothing that the
training part contains was unknown at its end. Slates whose window has not ended by the end of the log have no labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.hashing import hash_text
from heft.models.records import Closed, Converted, Matured, Record, Shown
from heft.models.teacher.template import Template

CLICK, CONVERSION, RELEVANCE = HEADS = ("click", "conversion", "relevance")

_MOST_POSITIONS = 100  # positions from here on share a base rate
_PRIOR_SHOWS = 100.0  # a base rate of a position is believed like the whole surface's for so many shows

_MOST_TEXTS = 50_000  # that a teacher comes with

FEWEST_QUERIES = 50
"""Queries that a decision is taken on at least: to stop, or to calibrate. On fewer it was worse than none."""

Pairs = list[tuple[str, str]]


_NOTHING_CLOSED = "the log has no slate whose click window has ended"


class DataError(ValueError):
    """Data that no teacher can be trained on or measured with; the message says what is missing and where."""


@dataclass(frozen=True)
class Examples:
    """Unique pairs of texts, and what is known of them for each head.

    Attributes
    ----------
    pairs
        [N] texts of query and item.
    trials, positives : float64 [N, 3]
        For click, conversion and relevance: how many labels, and how many of them (or how much of one) positive.
    offset : float64 [N]
        Logit that the click head is given: what the positions shown add, 0 at the average position; or what the
        ranker has said by itself, 0 at the average rate.
    groups : int64 [N]
        Which query a pair belongs to.
    """

    pairs: Pairs
    trials: NDArray[np.float64]
    positives: NDArray[np.float64]
    offset: NDArray[np.float64]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pairs)

    def digest(self) -> str:
        """Return what identifies these examples: 16 bytes of BLAKE2b, in hexadecimal."""
        digest = blake2b(digest_size=16)
        for pair in self.pairs:
            digest.update(msgspec.json.encode(pair))
        for array in (self.trials, self.positives, self.offset):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class BaseRates(msgspec.Struct, frozen=True):
    """Click rate of each position of each surface, and of everything: what a click says of the position alone."""

    overall: float
    surfaces: dict[str, list[float]]

    def offset(self, expected: float, shows: float) -> float:
        """Return the logit by which these shows were better placed than the average."""
        return _logit(expected / shows) - _logit(self.overall)

    def rate(self, surface: str, position: int) -> float:
        """Return the click rate of a position; of what was never seen, the overall one."""
        rates = self.surfaces.get(surface)
        return self.overall if rates is None else rates[min(position, len(rates) - 1)]


class Split(NamedTuple):
    """A log in the order of its time, or judgements by query: train, then stop and calibrate, then measure."""

    train: Examples
    validation: Examples
    test: Examples
    rates: BaseRates | None
    begins_ms: int | None
    ends_ms: int | None  # nothing that training or validation used became known later
    texts: Sequence[str] = ()  # of queries and items until then, those shown most often first


class _Row(NamedTuple):
    slate: int  # the number of its impression, in the order of the log
    shown_ms: int
    pair: int
    surface: str
    position: int
    key: int  # stable hash of request and item
    known_ms: int = 0
    label: int = 0
    head: int = 0


class Later(NamedTuple):
    """Samples [N] one by one, not counted together: those that decide between two teachers."""

    pairs: Pairs
    slates: NDArray[np.int64]
    heads: NDArray[np.int64]
    labels: NDArray[np.float64]
    places: list[tuple[str, int]]  # surface and position
    ranker: NDArray[np.float64]  # click probability by the ranker itself; NaN where it is not known


class Log:
    """The labelled samples of a log.

    Parameters
    ----------
    records
        What the join made of the log, in its order; several logs one after the other.
    template
        How a sample is rendered.
    ranker
        Click probabilities by `sample_key` that a ranker showed the samples with; looked at when all records are read.
        When given, they stand in the place of the positions' base rates: a teacher then learns what the ranker lacks.
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
                    query = template.query(slate)
                    open_slates[slate.request_id] = {
                        item.item_id: _Row(
                            slates,
                            slate.at_ms,
                            self._id(query, template.item(slate, item)),
                            slate.surface,
                            place if item.position is None else item.position,
                            sample_key(slate.request_id, item.item_id),
                        )
                        for place, item in enumerate(slate.items)
                        if item.seen
                    }
                case Closed(due_ms=due, request_id=request):
                    for item_id, row in open_slates.pop(request, {}).items():
                        label = int((request, item_id) in clicked)
                        self._rows.append(row._replace(known_ms=due, label=label))
                case Matured(due_ms=due, request_id=request, item_id=item_id, converted=converted):
                    found = clicked.pop((request, item_id), None)
                    if found is not None:
                        self._rows.append(found._replace(known_ms=due, label=int(converted), head=1))
                case Converted():
                    pass  # the early signal; the label is `matured`
                case _:
                    shown = open_slates.get(record.request_id, {}).get(record.item_id)
                    if shown is not None:
                        clicked[record.request_id, record.item_id] = shown

    def _id(self, query: str, item: str) -> int:
        pair = (query, item)
        found = self._ids.get(pair)
        if found is None:
            found = self._ids[pair] = len(self.pairs)
            self.pairs.append(pair)
        return found

    def base_rates(self) -> BaseRates:
        """Return the click rates of the positions of the whole log."""
        return base_rates(self._rows)

    def examples(self, rates: BaseRates, after_ms: int = 0) -> Examples:
        """Return all samples as examples, or those of slates shown after a time."""
        return self._examples([row for row in self._rows if row.shown_ms > after_ms], rates)

    def _known(self) -> NDArray[np.int64]:
        known = np.sort(np.array([row.known_ms for row in self._rows if row.head == 0], np.int64))
        if not len(known):
            raise DataError(_NOTHING_CLOSED)
        return known

    def time_at(self, share: float) -> int:
        """Return when the clicks of a share in [0, 1) of the samples, the first ones, were known."""
        known = self._known()
        return int(known[int(share * len(known))])

    def later(self, after_ms: int) -> Later:
        """Return the labelled samples of slates shown after a time, in the order of the slates."""
        rows = sorted((row for row in self._rows if row.shown_ms > after_ms), key=lambda row: (row.slate, row.head))
        return Later(
            [self.pairs[row.pair] for row in rows],
            np.array([row.slate for row in rows], np.int64),
            np.array([row.head for row in rows], np.int64),
            np.array([row.label for row in rows], np.float64),
            [(row.surface, row.position) for row in rows],
            np.array([(self._ranker or {}).get(row.key, math.nan) for row in rows], np.float64),
        )

    def texts(self, until_ms: int | None = None, keep_negatives: float = 1.0, seed: int = 0) -> Pairs:
        """Return what there is to read before any label: each query beside what was shown for it.

        All pairs that were clicked are in it, of the others a share: what is asked for and what is chosen then are the
        words that tell each other.

        Parameters
        ----------
        until_ms
            Only what became known before; by default everything.
        keep_negatives
            Share in (0, 1] of the unclicked samples whose pairs are read.
        seed
            Of the thinning.
        """
        chosen = {
            row.pair
            for row in self._rows
            if row.head == 0 and (until_ms is None or row.known_ms < until_ms) and _keeps(row, keep_negatives, seed)
        }
        return [self.pairs[pair] for pair in sorted(chosen)]

    def split(self, until_ms: int | None = None, keep_negatives: float = 1.0, seed: int = 0) -> Split:
        """Cut the log in the order of its time: of what comes before the end, eight in nine train, one validates.

        Parameters
        ----------
        until_ms
            When training and validation end: what became known from then on is for measuring. By default the last
            tenth of the samples.
        keep_negatives
            Share in (0, 1] of the training part's unclicked samples that is kept, chosen by request and item; their
            offsets are those of clicks among what is left, so what the click head learns is the rate before thinning.
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
        parts = (
            [row for row in self._rows if row.known_ms < first],
            [row for row in self._rows if first <= row.known_ms < second],
            [row for row in self._rows if second <= row.known_ms],
        )
        for name, rows in zip(("training", "validation", "test"), parts, strict=True):
            clicks = sum(row.label for row in rows if row.head == 0)
            shows = sum(row.head == 0 for row in rows)
            if not 0 < clicks < shows:
                msg = f"the {name} part of the log has {clicks} clicks on {shows} samples; a longer log is needed"
                raise DataError(msg)
        rates = base_rates(parts[0])
        trained = parts[0] if self._ranker is None else _without_beginning(parts[0])
        kept = trained if keep_negatives == 1.0 else [row for row in trained if _keeps(row, keep_negatives, seed)]
        return Split(
            self._examples(kept, rates, keep_negatives),
            self._examples(parts[1], rates),
            self._examples(parts[2], rates),
            rates,
            self.begins_ms,
            max(row.known_ms for part in parts[:2] for row in part),
            self._most_shown([*parts[0], *parts[1]]),
        )

    def _most_shown(self, rows: Iterable[_Row]) -> list[str]:
        counts = Counter(text for row in rows if row.head == 0 for text in self.pairs[row.pair])
        return [text for text, _ in counts.most_common(_MOST_TEXTS)]

    def _examples(self, rows: Sequence[_Row], rates: BaseRates, kept: float = 1.0) -> Examples:
        at: dict[int, int] = {}
        for row in rows:
            at.setdefault(row.pair, len(at))
        trials, positives = np.zeros((len(at), len(HEADS))), np.zeros((len(at), len(HEADS)))
        expected = np.zeros(len(at))
        for row in rows:
            n = at[row.pair]
            trials[n, row.head] += 1.0
            positives[n, row.head] += row.label
            if row.head == 0:
                rate = rates.rate(row.surface, row.position)
                rate = rate if self._ranker is None else self._ranker.get(row.key, rate)
                expected[n] += rate / (rate + kept * (1.0 - rate))
        shows = trials[:, 0]
        offset = [rates.offset(e, s) if s else 0.0 for e, s in zip(expected, shows, strict=True)]
        return examples_of([self.pairs[pair] for pair in at], trials, positives, np.array(offset))


def sample_key(request_id: str, item_id: str) -> int:
    """Return a stable hash of a sample: signed, 64 bits."""
    return hash_text(f"{request_id}\0{item_id}")


def examples_of(
    pairs: Pairs, trials: NDArray[np.float64], positives: NDArray[np.float64], offset: NDArray[np.float64]
) -> Examples:
    """Return examples, grouped by query."""
    ids: dict[str, int] = {}
    groups = np.array([ids.setdefault(query, len(ids)) for query, _ in pairs], np.int64)
    return Examples(pairs, trials, positives, offset, groups)


def base_rates(rows: Iterable[_Row]) -> BaseRates:
    """Return the click rate of each position, drawn to its surface's where shows are few."""
    counts: dict[str, NDArray[np.float64]] = {}
    for row in rows:
        if row.head == 0:
            of_surface = counts.setdefault(row.surface, np.zeros((2, _MOST_POSITIONS)))
            of_surface[:, min(row.position, _MOST_POSITIONS - 1)] += (1.0, row.label)
    if not counts:
        raise DataError(_NOTHING_CLOSED)
    shows, clicks = np.sum([each.sum(1) for each in counts.values()], axis=0)
    overall = clicks / shows
    surfaces = {}
    for surface, (shown, clicked) in sorted(counts.items()):
        prior = (clicked.sum() + _PRIOR_SHOWS * overall) / (shown.sum() + _PRIOR_SHOWS)
        rates = (clicked + _PRIOR_SHOWS * prior) / (shown + _PRIOR_SHOWS)
        surfaces[surface] = rates[: int(np.flatnonzero(shown)[-1]) + 1].tolist()
    return BaseRates(float(overall), surfaces)


def _without_beginning(rows: list[_Row]) -> list[_Row]:
    """Leave out the first tenth of the clicks' samples: the ranker knew nothing yet."""
    known_ms = sorted(row.known_ms for row in rows if row.head == 0)
    begins_ms = known_ms[len(known_ms) // 10]
    return [row for row in rows if row.head or row.known_ms >= begins_ms]


def _keeps(row: _Row, share: float, seed: int) -> bool:
    if row.head or row.label:
        return True
    digest = blake2b(row.key.to_bytes(8, "little", signed=True), key=seed.to_bytes(8, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") < share * 2**64


def _logit(p: float) -> float:
    return math.log(p / (1.0 - p))


def take(examples: Examples, rows: NDArray[np.int64]) -> Examples:
    """Return some of the examples."""
    pairs = [examples.pairs[n] for n in rows]
    return Examples(
        pairs, examples.trials[rows], examples.positives[rows], examples.offset[rows], examples.groups[rows]
    )


def together(first: Split, second: Split) -> Split:
    """Return a log and judgements as one split; the log keeps its times."""
    parts = []
    for one, two in zip(first[:3], second[:3], strict=True):
        trials = np.concatenate([one.trials, two.trials])
        positives = np.concatenate([one.positives, two.positives])
        offset = np.concatenate([one.offset, two.offset])
        parts.append(examples_of(one.pairs + two.pairs, trials, positives, offset))
    return Split(parts[0], parts[1], parts[2], first.rates, first.begins_ms, first.ends_ms, first.texts)
