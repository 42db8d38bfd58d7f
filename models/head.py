"""One head, click or conversion: the bank of policies, their calibrators, the mixture, and how good each is.

`predict` freezes what could have been served when a slate was shown. `observe` takes the labels later: first metrics,
mixture and calibrators on the prediction as shown, always unweighted; then each policy learns with its own weights.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.calibration import Platt
from models.evaluate import Prequential
from models.features import Vectors
from models.mixture import Hedge
from models.ranker import Arm, Bank


class Prediction(msgspec.Struct, frozen=True, eq=False):
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
        p = self.platt.probability(q)
        mixed = self.hedge.mix(p)
        order = self.hedge.mix(self.platt.probability(rank))
        k = q.shape[1]
        shown = np.empty((3, len(q), k + 1), np.float32)
        shown[0, :, :k], shown[0, :, k] = q, _logit(mixed)
        shown[1, :, :k], shown[1, :, k] = rank, _logit(order)
        shown[2, :, :k], shown[2, :, k] = p, mixed
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


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)
