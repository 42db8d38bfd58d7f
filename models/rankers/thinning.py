"""Thinning: an arm may learn only a share of the negatives, and still predict the rates of all of them."""

from __future__ import annotations

from math import log

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.features.featurizer import Vectors
from heft.models.hashing import mix, unit
from heft.models.rankers.arms import Arm


class Thinning:
    """Which rows of a slate each of K arms learns.

    A negative is kept with probability ``keep`` of the arm, and every positive is. With the offset log(1 / keep) added
    to the logit in training, the logit without it is that of all samples.

    Parameters
    ----------
    arms
        The arms, in the order of every [n, K] array.
    seed
        Which negatives are kept, together with the hashes of request and item, and nothing else.

    References
    ----------
    He et al. 2014, Practical lessons from predicting clicks on ads at Facebook, section 6.3. There the prediction is
    corrected after training; here the logit is shifted in training, which comes to the same.
    """

    def __init__(self, arms: tuple[Arm, ...], seed: int) -> None:
        self._seed = np.uint64(seed)
        self._keep = np.array([arm.keep for arm in arms])
        self._offset = np.array([log(1.0 / arm.keep) for arm in arms])
        self._thins = bool((self._keep < 1.0).any())

    def of(self, vectors: Vectors, labels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return which rows each arm learns [n, K], and its training offsets [n, K].

        No arm learns an item that was never on screen. A click proves that its item was.
        """
        shape = (len(vectors), len(self._keep))
        offsets = np.empty(shape)
        offsets[:] = self._offset
        active = np.empty(shape, np.bool_)
        active[:] = (vectors.seen | (labels == 1))[:, None]
        if self._thins:
            _thin(self._seed, np.uint64(vectors.request), vectors.items, labels, self._keep, active)
        return active, offsets


@njit(cache=True)
def _thin(
    seed: np.uint64,
    request: np.uint64,
    items: NDArray[np.uint64],
    labels: NDArray[np.uint8],
    keep: NDArray[np.float64],
    active: NDArray[np.bool_],
) -> None:
    stream = mix(seed, request)
    for row in range(items.size):
        if labels[row] == 0:
            drawn = unit(mix(stream, items[row]))
            for k in range(keep.size):
                if drawn >= keep[k]:
                    active[row, k] = False
