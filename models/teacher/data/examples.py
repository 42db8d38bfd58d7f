"""What a teacher is trained on and measured with: pairs of texts, with counts of their labels.

Samples with the same two texts are one example with counts, since a teacher could not tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.teacher.base_rates import BaseRates

CLICK, CONVERSION, RELEVANCE = HEADS = ("click", "conversion", "relevance")

FEWEST_QUERIES = 50
"""Fewest queries that may decide when to stop, or how to calibrate. With fewer, the result was worse than without."""

Pairs = list[tuple[str, str]]
"""Texts of query and item."""


class DataError(ValueError):
    """Data that no teacher can be trained on or measured with; the message says what is missing and where."""


@dataclass(frozen=True)
class Examples:
    """Unique pairs of texts, and the labels of each for each head.

    Attributes
    ----------
    pairs
        [N] texts of query and item.
    trials, positives : float64 [N, 3]
        For click, conversion and relevance, in the order of `HEADS`: how many labels there are, and how many of them
        are positive. A grade between the lowest and the highest counts as a part of one.
    offset : float64 [N]
        Logit that the click head is given beside the texts: what the shown positions add, which is 0 at the average
        position; or the ranker's own prediction, which is 0 at the average rate.
    groups : int64 [N]
        Number of the query that a pair belongs to.
    """

    pairs: Pairs
    trials: NDArray[np.float64]
    positives: NDArray[np.float64]
    offset: NDArray[np.float64]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pairs)

    def offset_of(self, head: int) -> NDArray[np.float64]:
        """Return the logit [N] that a head is given beside the texts: 0 for all heads but the click head."""
        return self.offset if HEADS[head] == CLICK else np.zeros(len(self))

    def digest(self) -> str:
        """Return what identifies these examples: 16 bytes of BLAKE2b, in hexadecimal."""
        digest = blake2b(digest_size=16)
        for pair in self.pairs:
            digest.update(msgspec.json.encode(pair))
        for array in (self.trials, self.positives, self.offset):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Split(NamedTuple):
    """Three parts: one to train on, one to stop and calibrate on, one to measure with.

    A log is cut in the order of its time, judgements are cut by query.
    """

    train: Examples
    validation: Examples
    test: Examples
    rates: BaseRates | None
    """Of the training part; None without a log."""
    begins_ms: int | None
    """When the first slate was shown; None without a log."""
    ends_ms: int | None
    """Nothing that training or validation used became known later. None without a log."""
    texts: Sequence[str] = ()
    """Queries and items shown before ``ends_ms``, those shown most often first."""


def examples_of(
    pairs: Pairs, trials: NDArray[np.float64], positives: NDArray[np.float64], offset: NDArray[np.float64]
) -> Examples:
    """Return examples, grouped by query; see `Examples` for the parameters."""
    ids: dict[str, int] = {}
    groups = np.array([ids.setdefault(query, len(ids)) for query, _ in pairs], np.int64)
    return Examples(pairs, trials, positives, offset, groups)


def take(examples: Examples, rows: NDArray[np.int64]) -> Examples:
    """Return the examples of some rows, in the order of the rows."""
    pairs = [examples.pairs[n] for n in rows]
    return Examples(
        pairs, examples.trials[rows], examples.positives[rows], examples.offset[rows], examples.groups[rows]
    )


def together(of_log: Split, judged: Split) -> Split:
    """Return a log and judgements as one split, with the times, the base rates and the texts of the log."""
    parts = []
    for one, two in zip(of_log[:3], judged[:3], strict=True):
        trials = np.concatenate([one.trials, two.trials])
        positives = np.concatenate([one.positives, two.positives])
        offset = np.concatenate([one.offset, two.offset])
        parts.append(examples_of(one.pairs + two.pairs, trials, positives, offset))
    return of_log._replace(train=parts[0], validation=parts[1], test=parts[2])
