"""Integer counts from which the metrics of any number of samples follow: a block of a log, a log, several logs.

Everything in a tally is an integer; sums of real numbers are in fixed point. So adding tallies is exact, and their
order does not matter, bit for bit. Scores are kept as histograms of logits, clipped to +-16, in steps of 1/1024
(calibrated probabilities) and 1/256 (position-free scores). A tally *at rest*, to which nothing is counted any more,
keeps only the filled bins of its histograms.
"""

from __future__ import annotations

from math import nan
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.evaluate import formulas
from heft.models.evaluate.formulas import LEAST_P, slate_ranking

STEPS = 1024
RANK_STEPS = 256
EDGE = 16
BINS = 2 * EDGE * STEPS
RANK_BINS = 2 * EDGE * RANK_STEPS
UNIT = float(2**32)
"""Reals are counted in units of 1 / UNIT: there is room for 10^9 samples, each rounded by 1e-10."""

WEIGHT_UNIT = float(2**20)
"""Weights and their squares are counted in units of 1 / WEIGHT_UNIT: a weight of 1,000 may come 8 million times."""

POSITION_ENDS = (1, 2, 3, 6, 11)
FIRST_POSITION = 0
KNOWN = 6
OTHER_SURFACE = 8
SLICES = ("position 0", "position 1", "position 2", "position 3-5", "position 6-10", "position 11+",
          "known items", "new items", "other surfaces")  # fmt: skip
"""The slices that every log has; those of surfaces follow."""

# rows of `sums`
LOSS, RAW_LOSS, PREDICTED, NDCG, RECIPROCAL, USER_AUC = range(6)
# entries of `counts`
SAMPLES, POSITIVES, SLATES, USER_SAMPLES = range(4)

Sparse: TypeAlias = tuple[NDArray[np.uint32], NDArray[np.uint32]]
"""A histogram at rest: the places of its filled bins in the flat array, and their counts."""

Histogram: TypeAlias = NDArray[np.uint32]


# A named tuple would say more, but numba takes microseconds to look at one, and at a plain one a tenth of that.
Counters: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], Histogram, Histogram]
"""The arrays of one tally that `count` adds to: counts, sums, and the two histograms, as described at `Tally`."""

SliceCounters: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], Histogram]
"""The same by slice: samples and positives [slices, 2]; log loss and predicted positives, in units of 1 / UNIT
[slices, 2, K]; coarser histograms by arm, label and calibrated logit [slices, K, 2, bins]."""


class Tally:
    """Counts over some samples, for K arms.

    ``histogram`` [K, 2, BINS] and ``rank_histogram`` [K, 2, RANK_BINS] by arm, label and score; ``sums`` [6, K];
    ``counts`` [4]; ``weights`` [K, 2, 3]: number, sum and sum of squares of the weights by arm and label.
    """

    def __init__(self, arms: int) -> None:
        self.arms = arms
        self.counts = np.zeros(4, np.int64)
        self.sums = np.zeros((6, arms), np.int64)
        self.weights = np.zeros((arms, 2, 3), np.int64)
        self._histogram: Histogram | Sparse = np.zeros((arms, 2, BINS), np.uint32)
        self._ranks: Histogram | Sparse = np.zeros((arms, 2, RANK_BINS), np.uint32)

    @property
    def samples(self) -> int:
        """How many samples were counted."""
        return int(self.counts[SAMPLES])

    @property
    def histogram(self) -> Histogram:
        """Counts by arm, label and calibrated logit [K, 2, BINS]."""
        return _dense(self._histogram, (self.arms, 2, BINS))

    @property
    def rank_histogram(self) -> Histogram:
        """Counts by arm, label and position-free score [K, 2, RANK_BINS]."""
        return _dense(self._ranks, (self.arms, 2, RANK_BINS))

    def counters(self) -> Counters:
        """Return the arrays that `count` adds to; they stay those of this tally until it is at rest."""
        return self.counts, self.sums, self.histogram, self.rank_histogram

    def rest(self) -> None:
        """Keep only the filled bins; nothing will be counted here again."""
        self._histogram = _sparse(self._histogram)
        self._ranks = _sparse(self._ranks)

    def take(self) -> Tally:
        """Return what was counted, as a tally at rest, and set all counts here to 0, in the same arrays."""
        taken = object.__new__(Tally)
        taken.arms = self.arms
        taken.counts, taken.sums, taken.weights = self.counts.copy(), self.sums.copy(), self.weights.copy()
        taken._histogram, taken._ranks = _sparse(self._histogram), _sparse(self._ranks)
        for each in (self.counts, self.sums, self.weights):
            each.fill(0)
        # Clearing the filled bins is much less work than allocating new histograms.
        self.histogram.reshape(-1)[taken._histogram[0]] = 0
        self.rank_histogram.reshape(-1)[taken._ranks[0]] = 0
        return taken

    def add(self, other: Tally) -> None:
        """Count what another tally of the same arms counted; the order of additions does not matter.

        Raises
        ------
        ValueError
            If the other is of another number of arms.
        """
        if other.arms != self.arms:
            msg = f"metrics: expected a tally of {self.arms} arms, got one of {other.arms}"
            raise ValueError(msg)
        self.counts += other.counts
        self.sums += other.sums
        self.weights += other.weights
        self._histogram = _add(self.histogram, other._histogram)
        self._ranks = _add(self.rank_histogram, other._ranks)

    def metrics(self, k: int) -> dict[str, float]:
        """Return the metrics of arm k; NaN where one is not defined."""
        n, positives = int(self.counts[SAMPLES]), int(self.counts[POSITIVES])
        loss, raw, predicted, ndcg, reciprocal, user_auc = (float(each) / UNIT for each in self.sums[:, k])
        entropy = formulas.entropy(positives / n) if n else nan
        histogram = self.histogram[k, :, ::-1].astype(np.float64)
        ranks = self.rank_histogram[k, :, ::-1].astype(np.float64)
        slates, user_samples = int(self.counts[SLATES]), int(self.counts[USER_SAMPLES])
        shares = [ess(*(float(each) for each in self.weights[k, label])) for label in (0, 1)]
        return {
            "auc": formulas.auc_of_groups(histogram[1], histogram[0]),
            "logloss": loss / n if n else nan,
            "ne": loss / n / entropy if n else nan,
            "ne_raw": raw / n / entropy if n else nan,
            "calibration": predicted / positives if positives else nan,
            "ece": formulas.ece_of_groups(histogram.sum(axis=0)[::-1], histogram[1][::-1], _CENTRES),
            "gauc": user_auc / user_samples if user_samples else nan,
            "ndcg_at_10": ndcg / slates if slates else nan,
            "mrr": reciprocal / slates if slates else nan,
            "auc_rank": formulas.auc_of_groups(ranks[1], ranks[0]),
            "pr_auc": formulas.pr_auc_of_groups(histogram[1], histogram[0]),
            "ess": min(shares) if shares[0] == shares[0] and shares[1] == shares[1] else nan,
            "ess_positive": shares[1],
            "ess_negative": shares[0],
        }

    def state(self) -> dict[str, Any]:
        """Return the counts as arrays; those of a tally at rest are shared, since they never change."""
        return {
            "counts": self.counts.copy(),
            "sums": self.sums.copy(),
            "weights": self.weights.copy(),
            "histogram": list(_sparse(self._histogram)),
            "ranks": list(_sparse(self._ranks)),
        }

    @classmethod
    def of(cls, state: dict[str, Any], resting: bool) -> Tally:
        """Return the tally that ``state`` was taken of, at rest or not."""
        tally = cls(state["sums"].shape[1])
        tally.counts, tally.sums, tally.weights = (state[name].copy() for name in ("counts", "sums", "weights"))
        places, filled = state["histogram"]
        tally._histogram = (places, filled) if resting else _dense((places, filled), tally.histogram.shape)
        places, filled = state["ranks"]
        tally._ranks = (places, filled) if resting else _dense((places, filled), tally.rank_histogram.shape)
        return tally


def ess(n: float, total: float, squares: float) -> float:
    """Return the effective sample size (sum w)^2 / sum w^2 (Kish 1965) as a share of n; NaN if nothing was weighed."""
    return total**2 / WEIGHT_UNIT / squares / n if squares else nan


def _sparse(histogram: Histogram | Sparse) -> Sparse:
    return histogram if isinstance(histogram, tuple) else _filled(histogram.reshape(-1))


@njit(cache=True)
def _filled(flat: NDArray[np.uint32]) -> Sparse:
    size = 0
    for place in range(flat.size):
        size += flat[place] != 0
    places, counts = np.empty(size, np.uint32), np.empty(size, np.uint32)
    size = 0
    for place in range(flat.size):
        if flat[place] != 0:
            places[size], counts[size] = place, flat[place]
            size += 1
    return places, counts


def _dense(histogram: Histogram | Sparse, shape: tuple[int, ...]) -> Histogram:
    if not isinstance(histogram, tuple):
        return histogram
    places, filled = histogram
    flat = np.zeros(int(np.prod(shape)), np.uint32)
    flat[places] = filled
    return flat.reshape(shape)


def _add(mine: Histogram, other: Histogram | Sparse) -> Histogram:
    if isinstance(other, tuple):
        places, filled = other
        mine.reshape(-1)[places] += filled  # places are distinct
    else:
        mine += other
    return mine


_CENTRES = 1.0 / (1.0 + np.exp(-(np.arange(BINS) + 0.5 - BINS // 2) / STEPS))


@njit(cache=True, inline="always")
def _place(logit: float, steps: int) -> int:
    limit = EDGE * steps
    return int(min(max(np.floor(logit * steps), -limit), limit - 1)) + limit


@njit(cache=True)
def count(
    labels: NDArray[np.uint8],
    raw: NDArray[np.float32],
    p: NDArray[np.float32],
    rank: NDArray[np.float32],
    positions: NDArray[np.uint16],
    new: NDArray[np.bool_],
    surface: int,
    counters: Counters,
    slices: SliceCounters,
) -> None:
    """Count the n samples of one slate.

    Parameters
    ----------
    labels : uint8 [n]
    raw, p, rank : float32 [n, K]
        Raw logits, calibrated probabilities, position-free scores.
    positions, new
        [n] position shown, whether the item was new.
    surface
        The slice of the surface; those of positions and of known and new items lie at `FIRST_POSITION`, `KNOWN`.
    counters, slices
        What is added to.
    """
    counts, sums, histogram, ranks = counters
    slice_counts, slice_sums, slice_histogram = slices
    n, K = p.shape
    one = np.uint32(1)
    slice_steps = slice_histogram.shape[3] // (2 * EDGE)
    positives = np.int64(0)
    for i in range(n):
        y = np.int64(labels[i])
        positives += y
        bucket = FIRST_POSITION
        for end in POSITION_ENDS:
            bucket += positions[i] >= end
        own = (bucket, KNOWN + np.int64(new[i]), np.int64(surface))
        for s in own:
            slice_counts[s, 0] += 1
            slice_counts[s, 1] += y
        for k in range(K):
            probability = np.float64(p[i, k])
            each = min(max(probability, LEAST_P), 1.0 - LEAST_P)
            hit, miss = np.log(each), np.log1p(-each)
            loss = -hit if y else -miss
            z = np.float64(raw[i, k])
            if y:
                z = -z
            raw_loss = min(max(z, 0.0) + np.log1p(np.exp(-abs(z))), 64.0)
            fixed_loss = np.int64(np.rint(loss * UNIT))
            fixed_p = np.int64(np.rint(probability * UNIT))
            sums[LOSS, k] += fixed_loss
            sums[RAW_LOSS, k] += np.int64(np.rint(raw_loss * UNIT))
            sums[PREDICTED, k] += fixed_p
            histogram[k, y, _place(hit - miss, STEPS)] += one
            ranks[k, y, _place(np.float64(rank[i, k]), RANK_STEPS)] += one
            coarse = _place(hit - miss, slice_steps)
            for s in own:
                slice_sums[s, 0, k] += fixed_loss
                slice_sums[s, 1, k] += fixed_p
                slice_histogram[s, k, y, coarse] += one
    counts[SAMPLES] += n
    counts[POSITIVES] += positives
    if positives and n > 1:
        counts[SLATES] += 1
        for k in range(K):
            ndcg, reciprocal = slate_ranking(labels, rank, 0, n, k)
            sums[NDCG, k] += np.int64(np.rint(ndcg * UNIT))
            sums[RECIPROCAL, k] += np.int64(np.rint(reciprocal * UNIT))


@njit(cache=True)
def weigh(labels: NDArray[np.uint8], weights: NDArray[np.float64], out: NDArray[np.int64]) -> None:
    """Count the weights [n, K] that each arm gave to the samples; ``out`` is a tally's ``weights``."""
    for i in range(weights.shape[0]):
        y = np.int64(labels[i])
        for k in range(weights.shape[1]):
            w = weights[i, k]
            out[k, y, 0] += 1
            out[k, y, 1] += np.int64(np.rint(w * WEIGHT_UNIT))
            out[k, y, 2] += np.int64(np.rint(w * w * WEIGHT_UNIT))
