"""Where the reference may be trusted: in slices of traffic where its recent loss was lower than the student's.

A reference helps on items that the student hardly knows, and harms where clicks have taught the student more. A slice
is a range of item counts on a surface. Each slice keeps the fading mean loss of the reference and of the student, and
is open while the reference's is lower.
"""

from __future__ import annotations

from math import log, log1p
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.bounded_names import BoundedNames

COUNTS = 8
"""Ranges of item counts: floor(log2(1 + count)), the last one open."""

SURFACES = 8
"""Surfaces with slices of their own, in the order they come, and one more that all others share."""

_LEAST_P = 1e-7


class Gate:
    """K gates. Each compares the reference with one student, slice by slice.

    `open` changes only in `turn`, which the caller calls at the end of an epoch. So within an epoch a weight is a
    function of its sample alone.

    Parameters
    ----------
    weightings
        K, how many.
    half_life
        Samples of a slice after which a loss counts half. A slice with fewer samples is closed.
    margin
        Nats by which the reference must be better.
    hysteresis
        Share of the student's loss by which the reference must be better for a slice to open, but not to stay open.

    Attributes
    ----------
    open : bool [slices, K]
        Where the reference is trusted.
    """

    def __init__(
        self, weightings: int, half_life: float = 1_400.0, margin: float = 0.0, hysteresis: float = 0.005
    ) -> None:
        self.open = np.zeros((COUNTS * SURFACES, weightings), np.bool_)
        self._student = np.zeros((COUNTS * SURFACES, weightings))
        self._reference = np.zeros(COUNTS * SURFACES)
        self._samples = np.zeros(COUNTS * SURFACES, np.int64)
        self._surfaces = BoundedNames(SURFACES - 1)
        self._half_life = half_life
        self._kept = 0.5 ** (1.0 / half_life)
        self._margin, self._hysteresis = margin, hysteresis

    def slices(self, counts: NDArray[np.float64], surface: str) -> NDArray[np.int64]:
        """Return the slice [n] of items shown ``counts`` [n] times before."""
        return np.asarray(_slices(counts, self._surfaces.place(surface) * COUNTS))

    def learn(
        self,
        slices: NDArray[np.int64],
        shown: NDArray[np.float32],
        reference: NDArray[np.float64],
        labels: NDArray[np.uint8],
        judged: NDArray[np.bool_],
    ) -> None:
        """Add the losses of the rows that are ``judged`` [n], except those where a student's probability is NaN.

        Parameters
        ----------
        slices
            The slice of each row [n].
        shown, reference, labels
            The students' probabilities as shown [n, K], r [n], and 0 or 1 [n].
        """
        _learn(slices, shown, reference, labels, judged, self._kept, self._student, self._reference, self._samples)

    def forget(self) -> None:
        """Close all slices and begin anew, because the losses were those of another reference."""
        self.open[:] = False
        self._student[:] = self._reference[:] = 0.0
        self._samples[:] = 0

    def turn(self) -> None:
        """Open and close slices by the losses so far."""
        known = (self._samples >= self._half_life)[:, None]
        # Both fading means began at 0 and saw the same samples, so both are too low by the same factor.
        needed = self._student * np.where(self.open, 1.0, 1.0 - self._hysteresis)
        self.open = known & (self._reference[:, None] + self._margin < needed)

    def state(self) -> dict[str, Any]:
        """Return a copy of what was learned."""
        return {
            "open": self.open.copy(),
            "student": self._student.copy(),
            "reference": self._reference.copy(),
            "samples": self._samples.copy(),
            "surfaces": self._surfaces.names,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.open, self._student = state["open"].copy(), state["student"].copy()
        self._reference, self._samples = state["reference"].copy(), state["samples"].copy()
        self._surfaces = BoundedNames(SURFACES - 1, state["surfaces"])


@njit(cache=True)
def _slices(counts: NDArray[np.float64], first: int) -> NDArray[np.int64]:
    out = np.empty(counts.size, np.int64)
    for row in range(counts.size):
        out[row] = first + min(int(np.log2(1.0 + counts[row])), COUNTS - 1)
    return out


@njit(cache=True)
def _learn(
    slices: NDArray[Any], shown: NDArray[Any], reference: NDArray[Any], labels: NDArray[Any], judged: NDArray[Any],
    kept: float, student: NDArray[Any], losses: NDArray[Any], samples: NDArray[Any],
) -> None:  # fmt: skip
    for row in range(slices.size):
        if judged[row] and not np.isnan(shown[row]).any():
            place = slices[row]
            samples[place] += 1
            losses[place] = kept * losses[place] + (1.0 - kept) * _loss(reference[row], labels[row])
            for k in range(student.shape[1]):
                student[place, k] = kept * student[place, k] + (1.0 - kept) * _loss(shown[row, k], labels[row])


@njit(cache=True, inline="always")
def _loss(p: float, label: int) -> float:
    clipped = min(max(float(p), _LEAST_P), 1.0 - _LEAST_P)
    return -log(clipped) if label == 1 else -log1p(-clipped)
