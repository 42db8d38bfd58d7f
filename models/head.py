"""One head, click or conversion: the bank of policies, their calibrators, the mixture, and how good each is.

`predict` freezes what could have been served when a slate was shown. `observe` takes the labels later: first metrics,
mixture and calibrators on the prediction as shown, always unweighted; then each policy learns with its own weights.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.calibration import Platt
from models.evaluate import Prequential
from models.features import Vectors
from models.mixture import Hedge
from models.ranker import Arm, Bank


class Prediction(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What K policies said of n items when they were shown, and their mixture as the last column."""

    raw: NDArray[np.float32]
    """[n, K + 1] raw logits."""
    rank: NDArray[np.float32]
    """[n, K + 1] logits with every item at the same position."""
    p: NDArray[np.float32]
    """[n, K + 1] calibrated probabilities; NaN where the head abstained."""

    def one(self, row: int) -> Prediction:
        """Return one row alone."""
        rows = slice(row, row + 1)
        return Prediction(self.raw[rows].copy(), self.rank[rows].copy(), self.p[rows].copy())

    def state(self) -> tuple[Any, ...]:
        """Return arrays; ``Prediction(*state)`` is the same again."""
        return self.raw, self.rank, self.p


class Head:
    """K policies that learn the same label side by side.

    Parameters
    ----------
    arms
        The policies; `uniform` is the first.
    bits
        2^bits slots.
    seed
        Which negatives a thinned policy learns.
    abstain_below
        Positives that must have been learned before the head says anything; until then probabilities are NaN.
    """

    def __init__(self, arms: tuple[Arm, ...], bits: int, seed: int, abstain_below: int = 0) -> None:
        names = tuple(arm.name for arm in arms)
        self.bank = Bank(arms, bits, seed)
        self.platt = Platt(len(arms))
        self.hedge = Hedge(names)
        self.metrics = Prequential((*names, "mixture"))
        self.positives = 0
        self._abstain_below = abstain_below

    def predict(self, vectors: Vectors) -> Prediction:
        """Return what could be served now; changes nothing."""
        q, rank = self.bank.predict(vectors)
        shown = np.empty((3, len(q), q.shape[1] + 1), np.float32)
        _serve(q, rank, self.platt.a, self.platt.b, self.hedge.weights, shown)
        if self.positives < self._abstain_below:
            shown[2] = np.nan
        return Prediction(shown[0], shown[1], shown[2])

    def observe(
        self, vectors: Vectors, shown: Prediction, labels: NDArray[np.uint8], surface: str, measured: bool
    ) -> None:
        """Take the labels [n] of a slate; ``measured``: whether it counts in the metrics."""
        seen, k = vectors.seen, shown.raw.shape[1] - 1
        abstained = bool(np.isnan(shown.p[0, 0]))
        if measured and not abstained:
            self.metrics.add(
                vectors.user, labels, shown.raw, shown.p, shown.rank, seen, vectors.positions, vectors.new, surface
            )
        if not abstained:
            self.hedge.learn(shown.p[seen, :k], labels[seen])
            # While it abstained the raw logits were those of a model that knew nothing: bringing them to the base rate
            # would count it twice as soon as the model knows it too, for as long as labels are behind.
            self.platt.learn(shown.raw[:, :k], labels, seen)
        active, offsets = self.bank.thin(vectors, labels)
        weights = active.astype(np.float64)
        self.metrics.weigh(labels[seen], weights[seen])
        self.bank.learn(vectors, labels, offsets=offsets, active=active)
        self.positives += int(labels[seen].sum())

    def state(self) -> dict[str, Any]:
        """Return copies of everything that future predictions and reports depend on."""
        return {
            "bank": self.bank.state(),
            "platt": self.platt.state(),
            "hedge": self.hedge.state(),
            "metrics": self.metrics.state(),
            "positives": self.positives,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same policies."""
        self.bank.restore(state["bank"])
        self.platt.restore(state["platt"])
        self.hedge.restore(state["hedge"])
        self.metrics.restore(state["metrics"])
        self.positives = state["positives"]


@njit(cache=True)
def _serve(
    q: NDArray[Any], rank: NDArray[Any], a: NDArray[Any], b: NDArray[Any], weights: NDArray[Any], shown: NDArray[Any]
) -> None:
    """Fill raw logits, position-free logits and calibrated probabilities, with the mixture as the last column."""
    n, k = q.shape
    for row in range(n):
        mixed, in_order = 0.0, 0.0
        for arm in range(k):
            p = 1.0 / (1.0 + np.exp(-(a[arm] * q[row, arm] + b[arm])))
            shown[0, row, arm], shown[1, row, arm], shown[2, row, arm] = q[row, arm], rank[row, arm], p
            if weights[arm] > 0.0:
                mixed += weights[arm] * p
                in_order += weights[arm] / (1.0 + np.exp(-(a[arm] * rank[row, arm] + b[arm])))
        shown[0, row, k], shown[1, row, k], shown[2, row, k] = _logit(mixed), _logit(in_order), mixed


@njit(cache=True)
def _logit(p: float) -> float:
    p = min(max(p, 1e-12), 1.0 - 1e-12)
    return float(np.log(p) - np.log1p(-p))
