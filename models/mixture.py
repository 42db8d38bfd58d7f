"""Which policy to believe: what is served is the mixture of the calibrated policies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_MIN_P = 1e-12


class Hedge:
    """Fixed-share Hedge over policies by log loss as shown; half the prior is on the first, `uniform`.

    One update a slate: each policy pays the sum of its log losses on the slate's samples. A policy that is asleep on a
    slate stands in with the prediction of `uniform`, so it is charged nothing of its own. Labels come a window late,
    so no regret bound is claimed here: what the mixture costs is measured (LOG.md).

    Parameters
    ----------
    policies
        K names; the first is `uniform`.
    share
        Weight that flows back to the prior a sample, at most 1e-5.
    probation
        Samples that must have closed before any other policy than `uniform` has weight.

    References
    ----------
    Herbster & Warmuth 1998, Tracking the best expert, section 5; Freund, Schapire, Singer & Warmuth 1997 for experts
    that sleep.
    """

    def __init__(self, policies: tuple[str, ...], share: float = 1e-6, probation: int = 20_000) -> None:
        others = len(policies) - 1
        self._prior = np.array([0.5] + [0.5 / others] * others) if others else np.ones(1)
        self._share = share
        self._probation = probation
        self._weights = self._prior.copy()
        self.samples = 0

    @property
    def weights(self) -> NDArray[np.float64]:
        """How much each policy is believed [K]; sums to 1."""
        if self.samples >= self._probation:
            return self._weights
        alone = np.zeros_like(self._prior)
        alone[0] = 1.0
        return alone

    def mix(self, p: NDArray[np.float64], awake: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Return the mixture [n] of probabilities [n, K]; policies not ``awake`` [K] say what `uniform` does."""
        return np.asarray(self._stand_in(p, awake) @ self.weights)

    def learn(
        self,
        p: NDArray[np.float32],
        labels: NDArray[np.uint8],
        awake: NDArray[np.bool_] | None = None,
    ) -> None:
        """Learn from the probabilities [n, K] as shown and the labels [n] of one slate."""
        if not len(labels):
            return
        said = p if awake is None else self._stand_in(p, awake)
        _learn(said, labels, (1.0 - self._share) ** len(labels), self._prior, self._weights)
        self.samples += len(labels)

    @staticmethod
    def _stand_in(p: NDArray[Any], awake: NDArray[np.bool_] | None) -> NDArray[Any]:
        return p if awake is None else np.where(awake, p, p[:, :1])

    def state(self) -> dict[str, Any]:
        """Return a copy of what was learned."""
        return {"weights": self._weights.copy(), "samples": self.samples}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._weights, self.samples = state["weights"].copy(), int(state["samples"])


@njit(cache=True)
def _learn(p: Any, labels: Any, kept: float, prior: Any, weights: Any) -> None:
    """Bayes' rule on a slate, in logarithms, then sharing: w <- kept w + (1 - kept) prior."""
    policies = p.shape[1]
    gain = np.log(weights)
    for k in range(policies):
        for row in range(p.shape[0]):
            said = min(max(np.float64(p[row, k]), _MIN_P), 1.0 - _MIN_P)
            gain[k] += np.log(said) if labels[row] == 1 else np.log1p(-said)
    gain = np.exp(gain - gain.max())
    gain /= gain.sum()
    for k in range(policies):
        weights[k] = kept * gain[k] + (1.0 - kept) * prior[k]
