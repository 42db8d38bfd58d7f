"""What is measured of a sample, compiled: the formulas of `models.importance.weightings.Measure`."""

from __future__ import annotations

from math import cos, log, log1p, pi, sqrt
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.hashing import mix, unit
from heft.models.importance.teacher_scores import Missing
from heft.models.importance.weightings import Measure

LEAST_P = 1e-12
"""Probabilities are clipped to [1e-12, 1 - 1e-12] before they enter a formula."""

DRAW_RANDOM = np.uint64(0x52)
"""Mixed into every hash that the measure `random` draws from, so that other draws tell nothing of it."""

# Compiled code knows a measure by its place in the enumeration.
(
    UNIFORM, _PROBABILITY, _LOGIT, _INVERSE_LOGIT, _ATTENTION, _REFERENCE_LOSS, _INVERSE_REFERENCE_LOSS,
    _REFERENCE_GRADIENT, _GRADIENT, _EL2N, _LOSS, _UNCERTAINTY, _NOVELTY, _DISAGREEMENT, _RHO, _RHO_RELU, _RANDOM,
    PERMUTED,
) = range(len(Measure))  # fmt: skip


@njit(cache=True, inline="always")
def clipped(p: float) -> float:
    """Return a probability that is neither 0 nor 1."""
    return float(min(max(p, LEAST_P), 1.0 - LEAST_P))


@njit(cache=True)
def odds(r: NDArray[Any], why: NDArray[Any]) -> float:
    """Return the mean odds r / (1 - r) over the items [n] of a slate that have a score; 1 where none has."""
    total, scored = 0.0, 0
    for row in range(r.size):
        if why[row] == Missing.PRESENT or why[row] == Missing.LATE:
            total += clipped(r[row]) / (1.0 - clipped(r[row]))
            scored += 1
    return total / scored if scored else 1.0


@njit(cache=True)
def measured(
    code: int, r: float, q: float, label: int, count: float, drawn: np.uint64, around: float = 1.0
) -> float:  # fmt: skip
    """Return F of a sample, by the formula in `models.importance.weightings.Measure`.

    Parameters
    ----------
    code
        The place of the measure in that enumeration.
    r, q
        The reference's and the student's probability of a click, in [0, 1]; clipped before use.
    label, count
        0 or 1; how often the item had been shown.
    drawn
        A random hash, for the measure `random`.
    around
        The mean `odds` of the sample's slate, for the measure `attention`.
    """
    r, q = clipped(r), clipped(q)
    r_y, q_y = (r, q) if label == 1 else (1.0 - r, 1.0 - q)
    if code == _PROBABILITY:
        return r
    if code == _LOGIT:
        return log(r) - log1p(-r)
    if code == _INVERSE_LOGIT:
        return log1p(-r) - log(r)
    if code == _ATTENTION:
        return log(r) - log1p(-r) - log(around)
    if code == _REFERENCE_LOSS:
        return -log(r_y)
    if code == _INVERSE_REFERENCE_LOSS:
        return log(r_y)
    if code == _REFERENCE_GRADIENT:
        return log(1.0 - r_y)
    if code in (_GRADIENT, _EL2N):
        return log(sqrt(2.0) * (1.0 - q_y))
    if code == _LOSS:
        return log(-log(q_y))
    if code == _UNCERTAINTY:
        return log(q) + log1p(-q)
    if code == _NOVELTY:
        return -0.5 * log1p(count)
    if code == _DISAGREEMENT:
        return log(r * log(r / q) + (1.0 - r) * log((1.0 - r) / (1.0 - q)) + 1e-3)
    if code == _RHO:
        return log(r_y) - log(q_y)
    if code == _RHO_RELU:
        return log(max(log(r_y) - log(q_y), 1e-6))
    if code == _RANDOM:
        second = unit(mix(DRAW_RANDOM, drawn))
        return sqrt(-2.0 * log1p(-unit(drawn))) * cos(2.0 * pi * second)
    return 0.0
