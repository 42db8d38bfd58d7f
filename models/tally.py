"""The compiled half of the evaluation: one slate into sums, histograms and the window."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.ranking import ndcg_mrr

Array: TypeAlias = NDArray[Any]

UNIT = float(1 << 24)
"""Losses and probabilities are summed in whole units of 2^-24."""
BINS = 24 * 1024
LOW = -12.0
STEP = 1.0 / 1024
COARSE = 64
"""Bins of a slice's histogram, and of the position-free score's, are this much wider."""
MAX_SURFACES = 16
EDGES = (1, 3, 6, 11)  # position buckets: 0, 1-2, 3-5, 6-10, 11 and below
POSITION_BUCKETS = 5
MIN_P = 1e-12
LOSS, LOSS_RAW, PREDICTED, NDCG, MRR, GAUC = range(6)


@njit(cache=True)
def _bin(logit: float, bins: int, step: float) -> int:
    place = int(np.floor((logit - LOW) / step))
    return min(max(place, 0), bins - 1)


@njit(cache=True)
def _loss(logit: float, label: int) -> float:
    s = -logit if label == 1 else logit
    return float(max(s, 0.0) + np.log1p(np.exp(-abs(s))))


@njit(cache=True)
def add(
    labels: Array, raw: Array, p: Array, rank: Array, measured: Array, positions: Array, new: Array,
    surface: int, user: Any, slate: int, rows: int,
    counts: Array, sums: Array, shown_bins: Array, rank_bins: Array,
    slice_counts: Array, slice_sums: Array, slice_bins: Array,
    ring_logit: Array, ring_raw: Array, ring_rank: Array, ring_label: Array, ring_user: Array, ring_slate: Array,
) -> int:  # fmt: skip
    """Add a slate's measured rows to the sums and the window; return how many rows have been added ever."""
    n, columns = p.shape
    coarse = rank_bins.shape[2]
    own = np.empty((3,), np.int64)
    kept = 0
    for row in range(n):
        if not measured[row]:
            continue
        kept += 1
        label = labels[row]
        bucket = 0
        for edge in EDGES:
            if positions[row] >= edge:
                bucket += 1
        own[0] = surface
        own[1] = MAX_SURFACES + bucket
        own[2] = MAX_SURFACES + POSITION_BUCKETS if new[row] else -1
        counts[0] += 1
        counts[1] += label
        for each in own:
            if each >= 0:
                slice_counts[each, 0] += 1
                slice_counts[each, 1] += label
        at = rows % ring_label.size
        for column in range(columns):
            probability = min(max(float(p[row, column]), MIN_P), 1.0 - MIN_P)
            logit = np.log(probability) - np.log1p(-probability)
            loss = int(np.rint(_loss(logit, label) * UNIT))
            predicted = int(np.rint(probability * UNIT))
            sums[LOSS, column] += loss
            sums[LOSS_RAW, column] += int(np.rint(_loss(float(raw[row, column]), label) * UNIT))
            sums[PREDICTED, column] += predicted
            place = _bin(logit, BINS, STEP)
            shown_bins[column, label, place] += np.uint32(1)
            rank_bins[column, label, _bin(float(rank[row, column]), coarse, STEP * COARSE)] += np.uint32(1)
            for each in own:
                if each >= 0:
                    slice_sums[each, 0, column] += loss
                    slice_sums[each, 2, column] += predicted
                    slice_bins[each, column, label, place // COARSE] += np.uint32(1)
            ring_logit[at, column] = logit
            ring_raw[at, column] = raw[row, column]
            ring_rank[at, column] = rank[row, column]
        ring_label[at] = label
        ring_user[at] = user
        ring_slate[at] = slate
        rows += 1
    if kept:
        first = rows - kept
        clicked = False
        scores = np.empty(kept, np.float32)
        own_labels = np.empty(kept, np.uint8)
        for nth in range(kept):
            own_labels[nth] = ring_label[(first + nth) % ring_label.size]
            clicked |= own_labels[nth] == 1
        if clicked:
            counts[2] += 1
            for column in range(columns):
                for nth in range(kept):
                    scores[nth] = ring_rank[(first + nth) % ring_label.size, column]
                ndcg, mrr = ndcg_mrr(scores, own_labels)
                sums[NDCG, column] += int(np.rint(ndcg * UNIT))
                sums[MRR, column] += int(np.rint(mrr * UNIT))
    return rows
