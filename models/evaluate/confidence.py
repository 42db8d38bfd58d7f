"""Is an arm better than `uniform`? An answer that stays valid however often one looks.

Each slate gives one difference of losses for each arm, summed over its samples: the samples of one slate depend on each
other, slates hardly do. Who looks at an ordinary confidence interval after every slate will, sooner or later, find it
wrong. A confidence sequence covers the mean at all times at once.
"""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


class ConfidenceSequence:
    """Asymptotic confidence sequences of K running means.

    The half-width after t slates is sigma_t sqrt(2 (t rho^2 + 1) / (t rho)^2 ln(sqrt(t rho^2 + 1) / alpha)).

    Parameters
    ----------
    arms
        K, how many.
    alpha
        Probability, over all time, that the mean is ever outside; in (0, 1).
    tightest_at
        Slates after which the sequence is as narrow as it can be; at least 1.
    start
        Slates before which the interval is infinite: the variance is not known yet, nor is the sum nearly normal.

    References
    ----------
    Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, Time-uniform central limit theory and asymptotic confidence
    sequences, theorem 2.2 and appendix B.2 for rho.

    Examples
    --------
    >>> sequence = ConfidenceSequence(2, start=100)
    >>> for slate in range(2_000):
    ...     sequence.add(np.array([0.0, 0.1 if slate % 2 else 0.3]))
    >>> sequence.above.tolist(), sequence.below.tolist()
    ([False, True], [False, False])
    """

    def __init__(self, arms: int, alpha: float = 0.05, tightest_at: int = 10_000, start: int = 500) -> None:
        if not 0.0 < alpha < 1.0 or tightest_at < 1 or start < 2:
            msg = (
                f"confidence: alpha {alpha}, tightest_at {tightest_at}, start {start}; expected alpha in (0, 1), "
                "tightest_at at least 1, start at least 2"
            )
            raise ValueError(msg)
        self._alpha = alpha
        self._rho2 = (-2.0 * log(alpha) + log(-2.0 * log(alpha) + 1.0)) / tightest_at
        self._start = start
        self.slates = np.zeros(arms, np.int64)
        self.mean = np.zeros(arms)
        self._squares = np.zeros(arms)

    def restart(self, which: NDArray[np.bool_] | None = None) -> None:
        """Forget everything, or what is known of some arms [K]; after a drift, the past says little of what comes."""
        some = slice(None) if which is None else which
        self.slates[some] = 0
        self.mean[some] = self._squares[some] = 0.0

    def add(self, differences: NDArray[np.float64]) -> None:
        """Add one slate: its summed loss under each arm less that under `uniform` [K].

        Raises
        ------
        ValueError
            If a difference is not finite; nothing is added then.
        """
        if not _add(differences, self.slates, self.mean, self._squares):
            msg = (
                f"confidence: differences {differences.tolist()}; expected finite numbers; give 0 where an arm abstains"
            )
            raise ValueError(msg)

    @property
    def half_width(self) -> NDArray[np.float64]:
        """Half the width of each interval [K]; infinite before ``start`` slates."""
        t = np.maximum(self.slates, 1).astype(np.float64)
        grown = t * self._rho2 + 1.0
        factor = np.sqrt(2.0 * grown / (t * t * self._rho2) * np.log(np.sqrt(grown) / self._alpha))
        return np.where(self.slates < self._start, np.inf, np.sqrt(self._squares / t) * factor)

    @property
    def below(self) -> NDArray[np.bool_]:
        """Which arms are significantly better than `uniform`: the whole interval is below 0 [K]."""
        return np.asarray(self.mean + self.half_width < 0.0)

    @property
    def above(self) -> NDArray[np.bool_]:
        """Which arms are significantly worse than `uniform`: the whole interval is above 0 [K]."""
        return np.asarray(self.mean - self.half_width > 0.0)

    def state(self) -> dict[str, Any]:
        """Return a copy of what was added."""
        return {"slates": self.slates.copy(), "mean": self.mean.copy(), "squares": self._squares.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.slates = state["slates"].copy()
        self.mean, self._squares = state["mean"].copy(), state["squares"].copy()


@njit(cache=True)
def _add(
    differences: NDArray[np.float64], slates: NDArray[np.int64], mean: NDArray[np.float64], squares: NDArray[np.float64]
) -> bool:
    """Add to count, mean and sum of squared deviations (Welford 1962); False if a difference is not finite."""
    for k in range(differences.size):
        if not np.isfinite(differences[k]):
            return False
    for k in range(differences.size):
        slates[k] += 1
        before = differences[k] - mean[k]
        mean[k] += before / slates[k]
        squares[k] += before * (differences[k] - mean[k])
    return True
