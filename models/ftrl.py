"""FTRL-Proximal for K policies at once, compiled.

The parameters of one slot lie beside each other: ``table[slot, 0, k]`` is z, ``table[slot, 1, k]`` is n of policy k,
and the last slot is the bias. ``w[slot, k]`` is the weight that follows from them, derived as soon as they move, so a
prediction is never a step behind and reads one number a slot:

    w = -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)   if |z| > l1 else 0
    z += h g x - (sqrt(n + h (g x)^2) - sqrt(n)) / alpha * w,   n += h (g x)^2

after McMahan et al., "Ad Click Prediction: a View from the Trenches" (2013), algorithm 1; the bias is not regularised.
Rows are of unit length: each of a row's E slots has the value x = 1 / sqrt(E), the bias 1, so that a good learning rate
is good for rows of 20 slots and of 100, and unknown slots draw a prediction towards the base rate.
Importance h enters as sub-steps: ceil(h) inner updates of equal weight, each from the prediction it finds, so that
weight k is k repeats (Karampatziakis & Langford 2011, section 2, take the limit of infinitely many). Within a sub-step,
of weight at most 1, the accumulator grows by h (g x)^2, not (h g x)^2: weight means repetition there too.
"""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
from numba import njit
from numpy.typing import NDArray

MAX_STEPS = 1_000


@njit(cache=True, inline="always")
def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + exp(-x))
    e = exp(x)
    return e / (1.0 + e)


@njit(cache=True, inline="always")
def _weight(z: float, root_n: float, inverse_alpha: float, beta: float, l1: float, l2: float) -> float:
    size = abs(z) - l1
    w = size / ((beta + root_n) * inverse_alpha + l2)
    if size <= 0.0:
        w = 0.0
    return -w if z > 0.0 else w


@njit(cache=True)
def _gather(
    slots: NDArray[np.uint32], start: int, end: int, shift: np.uint32, known: int, out: NDArray[np.int64]
) -> int:
    """Append to the sorted ``out[:known]`` the places of the sorted ``slots[start:end]`` it lacks; return the size."""
    k = 0
    size = known
    for i in range(start, end):
        place = np.int64(slots[i] >> shift)
        if size > known and out[size - 1] == place:
            continue
        while k < known and out[k] < place:
            k += 1
        if k < known and out[k] == place:
            continue
        out[size] = place
        size += 1
    return size


@njit(cache=True)
def predict(
    indptr: NDArray[np.int32],
    slots: NDArray[np.uint32],
    shift: np.uint32,
    w: NDArray[np.float64],
    q: NDArray[np.float64],
    rank: NDArray[np.float64],
) -> None:
    """Fill the logits as shown ``q`` [n, K] and without position ``rank`` [n, K]."""
    many = w.shape[1]
    base = w[w.shape[0] - 1]
    places = np.empty(slots.size + 1, np.int64)
    for row in range(q.shape[0]):
        first, second = indptr[3 * row], indptr[3 * row + 1]
        third, fourth = indptr[3 * row + 2], indptr[3 * row + 3]
        common = _gather(slots, first, second, shift, 0, places)
        for k in range(many):
            q[row, k] = 0.0
        for e in range(common):
            for k in range(many):
                q[row, k] += w[places[e], k]
        for k in range(many):
            rank[row, k] = q[row, k]
        size = _gather(slots, second, third, shift, common, places)
        for e in range(common, size):
            for k in range(many):
                q[row, k] += w[places[e], k]
        # Both scores take the length of the row as shown, so that they differ by position alone.
        x = 1.0 / sqrt(max(size, 1.0))
        size = _gather(slots, third, fourth, shift, common, places)
        for e in range(common, size):
            for k in range(many):
                rank[row, k] += w[places[e], k]
        for k in range(many):
            q[row, k] = q[row, k] * x + base[k]
            rank[row, k] = rank[row, k] * x + base[k]


@njit(cache=True)
def learn(
    indptr: NDArray[np.int32],
    slots: NDArray[np.uint32],
    shift: np.uint32,
    table: NDArray[np.float64],
    w: NDArray[np.float64],
    arms: NDArray[np.float64],
    touched: NDArray[np.bool_],
    labels: NDArray[np.uint8],
    weights: NDArray[np.float64],
    structural: NDArray[np.float64],
    offsets: NDArray[np.float64],
    active: NDArray[np.bool_],
) -> int:
    """Update every active policy on every row in turn; return -1, or ``row * K + policy`` of a weight that is none.

    Nothing is changed when a weight is refused.
    """
    rows, many = weights.shape
    for row in range(rows):
        for k in range(many):
            if not (0.0 <= weights[row, k] <= MAX_STEPS and 0.0 <= structural[row, k] < np.inf):
                return int(row * many + k)
    inverse_alpha, beta, l1, l2, keep = arms[0], arms[1], arms[2], arms[3], arms[4]
    bias = table.shape[0] - 1
    places = np.empty(slots.size + 1, np.int64)
    margin, share, whole, of_slot = np.empty(many), np.empty(many), np.empty(many), np.empty(many)
    steps = np.empty(many, np.int64)
    for row in range(rows):
        most = 0
        for k in range(many):
            steps[k] = 0
            if active[row, k] and structural[row, k] > 0.0:
                steps[k] = np.int64(np.ceil(weights[row, k]))
            share[k] = weights[row, k] / steps[k] if steps[k] > 0 else 0.0
            most = max(most, steps[k])
        if most == 0:
            continue
        size = _gather(slots, indptr[3 * row], indptr[3 * row + 1], shift, 0, places)
        size = _gather(slots, indptr[3 * row + 1], indptr[3 * row + 2], shift, size, places)
        x = 1.0 / sqrt(max(size, 1.0))
        places[size] = bias
        for e in range(size + 1):
            touched[places[e]] = True
        label = float(labels[row])
        for step in range(most):
            fades = False
            for k in range(many):
                margin[k] = 0.0
                if step >= steps[k]:
                    share[k] = 0.0
                fades |= share[k] > 0.0 and keep[k] < 1.0
            for e in range(size):
                for k in range(many):
                    margin[k] += w[places[e], k]
            for k in range(many):
                q = margin[k] * x + w[bias, k] + offsets[row, k]
                whole[k] = (sigmoid(q) - label) * structural[row, k] if share[k] > 0.0 else 0.0
                of_slot[k] = whole[k] * x
            if fades:
                _fade(table, places, size, w, share, arms)
            for e in range(size + 1):
                z, n = table[places[e], 0], table[places[e], 1]
                of_place = w[places[e]]
                gradient = of_slot if e < size else whole
                for k in range(many):
                    grown = n[k] + share[k] * gradient[k] * gradient[k]
                    root = sqrt(grown)
                    sigma = (root - sqrt(n[k])) * inverse_alpha[k]
                    z[k] += share[k] * gradient[k] - sigma * of_place[k]
                    n[k] = grown
                    if e < size:
                        of_place[k] = _weight(z[k], root, inverse_alpha[k], beta[k], l1[k], l2[k])
                    else:
                        of_place[k] = _weight(z[k], root, inverse_alpha[k], beta[k], 0.0, 0.0)
    return -1


@njit(cache=True)
def derive(table: NDArray[np.float64], w: NDArray[np.float64], arms: NDArray[np.float64]) -> None:
    """Fill the weights ``w`` [slots, K] that follow from a whole table."""
    bias = w.shape[0] - 1
    for place in range(w.shape[0]):
        for k in range(w.shape[1]):
            l1, l2 = (arms[2, k], arms[3, k]) if place < bias else (0.0, 0.0)
            w[place, k] = _weight(table[place, 0, k], sqrt(table[place, 1, k]), arms[0, k], arms[1, k], l1, l2)


@njit(cache=True)
def _fade(
    table: NDArray[np.float64],
    places: NDArray[np.int64],
    size: int,
    w: NDArray[np.float64],
    share: NDArray[np.float64],
    arms: NDArray[np.float64],
) -> None:
    """Let the past of the accumulators fade; the weights stay: z becomes what gives the same w under a smaller n."""
    for k in range(share.size):
        if share[k] == 0.0 or arms[4, k] == 1.0:
            continue
        left = arms[4, k] ** share[k]
        for e in range(size + 1):
            l1, l2 = (arms[2, k], arms[3, k]) if e < size else (0.0, 0.0)
            n = table[places[e], 1, k] * left
            table[places[e], 1, k] = n
            weight = w[places[e], k]
            if weight != 0.0:
                table[places[e], 0, k] = -weight * ((arms[1, k] + sqrt(n)) * arms[0, k] + l2) - np.copysign(l1, weight)
