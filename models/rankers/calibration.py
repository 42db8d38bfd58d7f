"""The calibration layer: two numbers for each arm, learned from the raw logit as shown, always unweighted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


class Platt:
    """Online Platt scaling, p = 1 / (1 + exp(-(a q + b))), for K arms, starting at identity.

    Each update is one Newton step on the new samples with the information of all earlier ones as its prior (the
    extended Kalman filter of logistic regression); information fades, so the layer follows drift.

    Parameters
    ----------
    arms
        K, how many.
    half_life
        Samples after which information counts half.
    prior
        Information with which a = 1 and b = 0 are believed at the start, and never less; one sample at probability p
        and logit q brings p (1 - p) q^2 and p (1 - p).

    References
    ----------
    Platt 1999, Probabilistic outputs for support vector machines, eq. 4.
    """

    def __init__(self, arms: int, half_life: float = 100_000.0, prior: tuple[float, float] = (100.0, 10.0)) -> None:
        self._ab = np.stack([np.ones(arms), np.zeros(arms)])
        self.a, self.b = self._ab
        self._prior = np.diag(prior)
        self._information = np.repeat(self._prior[None], arms, axis=0)
        self._fade = 0.5 ** (1.0 / half_life)

    def learn(
        self,
        q: NDArray[np.float32],
        labels: NDArray[np.uint8],
        learned: NDArray[np.bool_],
        input_missing: NDArray[np.bool_] | None = None,
        reads_teacher: NDArray[np.bool_] | None = None,
    ) -> None:
        """Learn from the logits [n, K] as shown and the labels [n] of the rows that are ``learned`` [n].

        Arms that read the teacher, ``reads_teacher`` [K], learn nothing from rows where its logit was missing,
        ``input_missing`` [n]: the logits they showed there were those of the first arm.
        """
        if input_missing is None or reads_teacher is None:
            input_missing, reads_teacher = ~learned, np.zeros(len(self.a), np.bool_)
        _learn(
            self._ab, self._information, self._prior, self._fade, q, labels, learned, input_missing, reads_teacher
        )  # fmt: skip

    def reset_arms(self, to_identity: NDArray[np.bool_], like_first: NDArray[np.bool_]) -> None:
        """Let some arms [K] begin at identity again, and others go on as the first is calibrated now."""
        self.a[to_identity], self.b[to_identity], self._information[to_identity] = 1.0, 0.0, self._prior
        self.a[like_first], self.b[like_first], self._information[like_first] = (
            self.a[0], self.b[0], self._information[0],
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return a copy of what was learned."""
        return {"a": self.a.copy(), "b": self.b.copy(), "information": self._information.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.a[:], self.b[:], self._information[:] = state["a"], state["b"], state["information"]


@njit(cache=True)
def _learn(
    ab: NDArray[np.float64],
    information: NDArray[np.float64],
    prior: NDArray[np.float64],
    fade: float,
    q: NDArray[np.float32],
    labels: NDArray[np.uint8],
    learned: NDArray[np.bool_],
    input_missing: NDArray[np.bool_],
    reads_teacher: NDArray[np.bool_],
) -> None:
    """Take a step of each arm's filter.

    Scale and shift lie in ``ab`` [2, K], the information about both in ``information`` [K, 2, 2]. What never fades of
    it is ``prior`` [2, 2]; ``fade`` is the factor on the rest with each sample.
    """
    a, b = ab[0], ab[1]
    n, arms = q.shape
    rows, rows_with_input = 0, 0
    for row in range(n):
        rows += learned[row]
        rows_with_input += learned[row] and not input_missing[row]
    for k in range(arms):
        samples = rows_with_input if reads_teacher[k] else rows
        if samples == 0:
            continue
        kept = fade**samples
        ga, gb, haa, hab, hbb = 0.0, 0.0, 0.0, 0.0, 0.0
        for row in range(n):
            if learned[row] and not (reads_teacher[k] and input_missing[row]):
                x = float(q[row, k])
                p = 1.0 / (1.0 + np.exp(-(a[k] * x + b[k])))
                ga += (p - labels[row]) * x
                gb += p - labels[row]
                v = p * (1.0 - p)
                haa += v * x * x
                hab += v * x
                hbb += v
        i = information[k]
        i[0, 0] = prior[0, 0] + (i[0, 0] - prior[0, 0]) * kept + haa
        i[0, 1] = i[0, 1] * kept + hab
        i[1, 0] = i[0, 1]
        i[1, 1] = prior[1, 1] + (i[1, 1] - prior[1, 1]) * kept + hbb
        determinant = i[0, 0] * i[1, 1] - i[0, 1] * i[1, 0]
        a[k] -= (i[1, 1] * ga - i[0, 1] * gb) / determinant
        b[k] -= (i[0, 0] * gb - i[0, 1] * ga) / determinant
