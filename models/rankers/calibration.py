"""The calibration layer: two numbers for each arm, learned from the raw logit as shown, always unweighted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


class _Filters(NamedTuple):
    """What K calibrators have learned, and how fast they forget; the arrays are changed in place."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    """Scale and shift [K]."""
    information: NDArray[np.float64]
    """About both [K, 2, 2]."""
    prior: NDArray[np.float64]
    """The information that never fades [2, 2]."""
    fade: float
    """Factor on the rest with each sample."""


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
        self.a = np.ones(arms)
        self.b = np.zeros(arms)
        self._prior = np.diag(prior)
        self._information = np.repeat(self._prior[None], arms, axis=0)
        self._filters = _Filters(self.a, self.b, self._information, self._prior, 0.5 ** (1.0 / half_life))

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
        _learn(self._filters, q, labels, learned, input_missing, reads_teacher)

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
    filters: _Filters,
    q: NDArray[np.float32],
    labels: NDArray[np.uint8],
    learned: NDArray[np.bool_],
    input_missing: NDArray[np.bool_],
    reads_teacher: NDArray[np.bool_],
) -> None:
    a, b, prior = filters.a, filters.b, filters.prior
    n, arms = q.shape
    rows, rows_with_input = 0, 0
    for row in range(n):
        rows += learned[row]
        rows_with_input += learned[row] and not input_missing[row]
    for k in range(arms):
        samples = rows_with_input if reads_teacher[k] else rows
        if samples == 0:
            continue
        kept = filters.fade**samples
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
        i = filters.information[k]
        i[0, 0] = prior[0, 0] + (i[0, 0] - prior[0, 0]) * kept + haa
        i[0, 1] = i[0, 1] * kept + hab
        i[1, 0] = i[0, 1]
        i[1, 1] = prior[1, 1] + (i[1, 1] - prior[1, 1]) * kept + hbb
        determinant = i[0, 0] * i[1, 1] - i[0, 1] * i[1, 0]
        a[k] -= (i[1, 1] * ga - i[0, 1] * gb) / determinant
        b[k] -= (i[0, 0] * gb - i[0, 1] * ga) / determinant
