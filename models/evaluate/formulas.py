"""Exact metrics of arrays: what a window is measured by, and what tests of approximations compare with.

Ties count half in AUC. NDCG and MRR take the expected value over a random order of tied rows. So the order of the input
never matters. A metric that is not defined (no positive, no negative, or no sample at all) is NaN.
"""

from __future__ import annotations

from math import log, nan
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

CUT = 10
"""NDCG looks at the first ten places."""

DISCOUNTS = np.concatenate(([0.0], np.cumsum(1.0 / np.log2(np.arange(2, CUT + 2)))))
"""Sums of the first 0, 1, ... CUT discounts 1 / log2(place + 1) of NDCG [CUT + 1]."""

ECE_BINS = 20
"""Bins of equal mass."""

LEAST_P = 1e-7
"""Probabilities are clipped to [1e-7, 1 - 1e-7] before their logarithm is taken; float32 keeps no more."""


def entropy(rate: float) -> float:
    """Return the log loss, in nats, of always predicting the base rate."""
    return -rate * log(rate) - (1.0 - rate) * log(1.0 - rate) if 0.0 < rate < 1.0 else nan


def groups(
    labels: NDArray[np.uint8], scores: Array, order: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the positives and the negatives of each distinct score, highest first; ``order`` sorts the scores."""
    if not len(labels):
        return np.zeros(0), np.zeros(0)
    order = order[::-1]
    ordered = scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(scores) - 1)
    positives = np.diff(np.cumsum(labels[order], dtype=np.float64)[ends], prepend=0.0)
    return positives, np.diff(ends.astype(np.float64), prepend=-1.0) - positives


def auc_of_groups(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve from counts by score, highest score first; ties count half."""
    total = positives.sum() * negatives.sum()
    if not total:
        return nan
    below = negatives.sum() - np.cumsum(negatives)
    return float((positives * (below + 0.5 * negatives)).sum() / total)


def pr_auc_of_groups(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Return the average precision from counts by score, highest first: sum of (recall step) x (precision there)."""
    total = positives.sum()
    if not total:
        return nan
    hits = np.cumsum(positives)
    shown = hits + np.cumsum(negatives)
    some = shown > 0
    return float((positives[some] * hits[some] / shown[some]).sum() / total)


def auc(labels: NDArray[np.uint8], scores: Array) -> float:
    """Return the area under the ROC curve, as scikit-learn's ``roc_auc_score`` does.

    Examples
    --------
    >>> auc(np.array([0, 1, 0, 1], np.uint8), np.array([0.1, 0.4, 0.35, 0.8]))
    1.0
    """
    return auc_of_groups(*groups(labels, scores, np.argsort(scores)))


def pr_auc(labels: NDArray[np.uint8], scores: Array) -> float:
    """Return the average precision, as scikit-learn's ``average_precision_score`` does."""
    return pr_auc_of_groups(*groups(labels, scores, np.argsort(scores)))


def ece_of_groups(n: NDArray[np.float64], positives: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    """Return the expected calibration error over bins of equal mass, from groups in the order of their mean p.

    A bin's gap is its mean probability less its share of positives. Chance alone gives a squared gap of
    sum p (1 - p) / n^2 on average. That is subtracted before the root is taken (as Kumar et al. 2019, section 5, do for
    the squared error); without it, small bins would look miscalibrated for ever.

    Parameters
    ----------
    n, positives, p : float64 [groups]
        Samples, positives, mean probability of each group.
    """
    if not n.size or not n.sum():
        return nan
    ends = np.cumsum(n)
    total = ends[-1]
    bins = np.minimum(((ends - 0.5 * n) * ECE_BINS / total).astype(np.int64), ECE_BINS - 1)
    counts = np.bincount(bins, n, ECE_BINS)
    some = counts > 0
    counts = counts[some]
    gaps = (np.bincount(bins, n * p, ECE_BINS) - np.bincount(bins, positives, ECE_BINS))[some] / counts
    chance = np.bincount(bins, n * p * (1.0 - p), ECE_BINS)[some] / counts**2
    return float((counts * np.sqrt(np.maximum(gaps**2 - chance, 0.0))).sum() / total)


def ece(labels: NDArray[np.uint8], p: Array) -> float:
    """Return the expected calibration error of probabilities; see `ece_of_groups`."""
    order = np.argsort(p, kind="stable")
    return ece_of_groups(np.ones(len(p)), labels[order].astype(np.float64), p[order].astype(np.float64))


def logloss(labels: NDArray[np.uint8], p: Array) -> float:
    """Return the mean log loss of probabilities, in nats; NaN of no samples."""
    if not len(labels):
        return nan
    clipped = np.clip(p.astype(np.float64), LEAST_P, 1.0 - LEAST_P)
    return float(-np.where(labels == 1, np.log(clipped), np.log1p(-clipped)).mean())


def raw_logloss(labels: NDArray[np.uint8], q: Array) -> float:
    """Return the mean log loss of logits, in nats, at most 64 a sample; NaN of no samples."""
    if not len(labels):
        return nan
    z = q.astype(np.float64) * (1.0 - 2.0 * labels)
    return float(np.minimum(np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z))), 64.0).mean())


@njit(cache=True)
def slate_ranking(
    labels: NDArray[np.uint8],
    scores: NDArray[np.float32],
    start: int,
    end: int,
    k: int,
) -> tuple[float, float]:
    """Return NDCG@10 and the reciprocal rank of the first positive of one slate, by scores [rows, K] of arm ``k``.

    The slate is rows ``start`` to ``end`` and must have a positive. Both metrics are expectations over a random order
    of equal scores. Gains are the labels.
    """
    dcg = 0.0
    positives = 0
    # Of the best positive: rows above it, rows equal to it, positives among those.
    top_above = end - start + 1
    top_equal = 1
    top_positives = 1
    for i in range(start, end):
        if labels[i] == 0:
            continue
        positives += 1
        mine = scores[i, k]
        above, equal, equal_positives = 0, 0, 0
        for j in range(start, end):
            if scores[j, k] > mine:
                above += 1
            elif scores[j, k] == mine:
                equal += 1
                equal_positives += labels[j]
        dcg += (DISCOUNTS[min(above + equal, CUT)] - DISCOUNTS[min(above, CUT)]) / equal
        if above < top_above:
            top_above, top_equal, top_positives = above, equal, equal_positives
    # The first of m positives among g equal rows stands at place j with probability C(g - j, m - 1) / C(g, m).
    chance = top_positives / top_equal
    reciprocal = 0.0
    for j in range(1, top_equal - top_positives + 2):
        reciprocal += chance / (top_above + j)
        if j < top_equal - top_positives + 1:
            chance *= (top_equal - j - top_positives + 1) / (top_equal - j)
    return dcg / DISCOUNTS[min(positives, CUT)], reciprocal


@njit(cache=True)
def rankings(
    labels: NDArray[np.uint8], scores: NDArray[np.float32], starts: NDArray[np.int64]
) -> tuple[int, NDArray[np.float64]]:
    """Return how many slates have a positive, and the sums over them of NDCG@10 and reciprocal rank [2, K].

    ``starts`` [slates + 1]: slate s is rows ``starts[s]:starts[s+1]``.
    """
    K = scores.shape[1]
    sums = np.zeros((2, K))
    slates = 0
    for s in range(starts.size - 1):
        if starts[s + 1] - starts[s] < 2:
            continue  # nothing to rank
        some = False
        for i in range(starts[s], starts[s + 1]):
            some = some or labels[i] == 1
        if some:
            slates += 1
            for k in range(K):
                ndcg, reciprocal = slate_ranking(labels, scores, starts[s], starts[s + 1], k)
                sums[0, k] += ndcg
                sums[1, k] += reciprocal
    return slates, sums


@njit(cache=True)
def grouped_auc(
    labels: NDArray[np.uint8],
    scores: NDArray[np.float32],
    starts: NDArray[np.int64],
    users: NDArray[np.uint64],
    order: NDArray[np.int64],
) -> tuple[int, NDArray[np.float64]]:
    """Return the samples of users with both labels, and the sum over those users of samples x AUC [K].

    Parameters
    ----------
    starts : int64 [slates + 1]
        Slate s is rows ``starts[s]:starts[s+1]``.
    users : uint64 [slates]
        Hash of the user of each slate.
    order : int64 [slates]
        A permutation that sorts ``users``.
    """
    K = scores.shape[1]
    sums = np.zeros(K)
    weight = 0
    rows = np.empty(16, np.int64)
    first = 0
    while first < order.size:
        last = first
        n = 0
        positives = 0
        while last < order.size and users[order[last]] == users[order[first]]:
            start, end = starts[order[last]], starts[order[last] + 1]
            if n + end - start > rows.size:
                grown = np.empty(2 * (n + end - start), np.int64)
                grown[:n] = rows[:n]
                rows = grown
            for i in range(start, end):
                rows[n] = i
                n += 1
                positives += labels[i]
            last += 1
        first = last
        if positives == 0 or positives == n:
            continue
        weight += n
        for k in range(K):
            # Twice the Mann-Whitney U. Positives are few, so comparing all pairs is quicker than sorting.
            twice = 0
            for a in range(n):
                if labels[rows[a]] == 1:
                    mine = scores[rows[a], k]
                    for b in range(n):
                        if labels[rows[b]] == 0:
                            other = scores[rows[b], k]
                            if mine > other:
                                twice += 2
                            elif mine == other:
                                twice += 1
            sums[k] += n * twice / (2.0 * positives * (n - positives))
    return weight, sums
