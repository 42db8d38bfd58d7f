"""One head, click or conversion: the bank of arms, their calibrators, the mixture, and how good each is.

`predict` freezes what could have been served when a slate was shown. `observe` takes the labels later: first metrics,
mixture and calibrators on the prediction as shown, always unweighted; then each arm learns with its own weights.
"""

from __future__ import annotations

from math import inf
from typing import Any, Literal

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.evaluate.prequential import Prequential
from heft.models.features.featurizer import Vectors
from heft.models.importance.teacher_scores import Missing, Takeover, TeacherCalibration, TeacherScores
from heft.models.importance.weigh import Evidence, Importance, Weights
from heft.models.importance.weightings import Input, Measure, Weighting
from heft.models.rankers.arms import Arm
from heft.models.rankers.bank import Bank
from heft.models.rankers.calibration import Platt
from heft.models.rankers.mixture import Hedge

PROBATION = {"click": 20_000, "order": 2_000}
"""Samples before a arm may be believed; of an order, clicks, of which there are fewer and each tells more."""

_NOTHING = np.zeros(0, np.float32)
_ALL_MISSING = np.ones(1_000, np.bool_)  # as many as a slate may have


class Prediction(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What K arms said of n items when they were shown, and their mixture as the last column.

    A arm that reads the reference says what `uniform` does of items whose score was not there.
    """

    raw: NDArray[np.float32]
    """[n, K + 1] raw logits."""
    rank: NDArray[np.float32]
    """[n, K + 1] logits with every item at the same position."""
    p: NDArray[np.float32]
    """[n, K + 1] calibrated probabilities; NaN where the head abstained."""
    inputs: NDArray[np.float32] = _NOTHING
    """What those that read the reference took in [n], NaN where they slept; empty where nothing was said."""
    changes: int = 0
    """How many probations of the mixture had begun by then."""

    def one(self, row: int) -> Prediction:
        """Return one row alone."""
        rows = slice(row, row + 1)
        return Prediction(
            self.raw[rows].copy(), self.rank[rows].copy(), self.p[rows].copy(), self.inputs[rows].copy(), self.changes
        )

    def state(self) -> tuple[Any, ...]:
        """Return arrays and a number; ``Prediction(*state)`` is the same again."""
        return self.raw, self.rank, self.p, self.inputs, self.changes


class Head:
    """K arms that learn the same label side by side.

    Parameters
    ----------
    arms
        The arms' models; `uniform` is the first.
    bits
        2^bits slots.
    seed
        Which negatives a thinned arm learns, and all draws of the arms.
    abstain_below
        Positives that must have been learned before the head says anything; until then probabilities are NaN.
    weightings
        How much each sample counts under each arm; default: once.
    label
        Which of the teacher's logits are for this head.
    """

    def __init__(
        self,
        arms: tuple[Arm, ...],
        bits: int,
        seed: int,
        abstain_below: int = 0,
        weightings: tuple[Weighting, ...] = (),
        label: Literal["click", "order"] = "click",
    ) -> None:
        names = tuple(arm.name for arm in arms)
        self.weightings = weightings or tuple(Weighting(name) for name in names)
        self.bank = Bank(arms, bits, seed, [weighting.input for weighting in self.weightings])
        self.platt = Platt(len(arms))
        served = np.array([not weighting.diagnostic for weighting in self.weightings])
        self.hedge = Hedge(names, probation=PROBATION[label], served=served)
        self.metrics = Prequential((*names, "mixture"))
        self.positives = 0
        self._reset_at = 0  # changes of the mixture with which arms were last reset
        self._abstain_below = abstain_below
        plain = all(weighting == Weighting(weighting.name) for weighting in self.weightings)
        self.importance = None if plain else Importance(self.weightings, seed)
        self.reference = (
            TeacherCalibration(label) if any(weighting.reads_reference for weighting in self.weightings) else None
        )
        self._label = label
        self._reading = np.array([weighting.input is not Input.NONE for weighting in self.weightings])
        self._leaning = np.array([weighting.input in (Input.FEATURE, Input.STACKED) for weighting in self.weightings])
        self._weighing = any(weighting.measure is not Measure.UNIFORM for weighting in self.weightings)

    def predict(self, vectors: Vectors, told: TeacherScores = ()) -> Prediction:
        """Return what could be served now, ``told`` being what the teacher had said in time; changes nothing."""
        inputs = _NOTHING
        if self.reference is not None and told:
            scores = self.reference.of(told)
            why = self.reference.why(scores, vectors.at_ms)
            inputs = self.reference.inputs(scores.logits(self._label), why)
        q, rank = self.bank.predict(vectors, inputs if inputs.size else None)
        shown = np.empty((3, len(q), q.shape[1] + 1), np.float32)
        input_missing = self._input_missing(inputs, len(q))
        _serve(q, rank, self.platt.a, self.platt.b, self.hedge.weights, input_missing, self._reading, shown)
        if self.positives < self._abstain_below:
            shown[2] = np.nan
        return Prediction(shown[0], shown[1], shown[2], inputs, self.hedge.changes)

    @staticmethod
    def _input_missing(inputs: NDArray[np.float32], n: int) -> NDArray[np.bool_]:
        return np.isnan(inputs) if inputs.size else _ALL_MISSING[:n]

    def observe(
        self,
        vectors: Vectors,
        shown: Prediction,
        labels: NDArray[np.uint8],
        surface: str,
        measured: bool,
        told: TeacherScores = (),
        counts: NDArray[np.float64] | None = None,
    ) -> None:
        """Take the labels [n] of a slate.

        Parameters
        ----------
        vectors, shown
            The slate, and what was said of it, as it was shown.
        labels
            0 or 1 [n].
        surface
            Where it was shown.
        measured
            Whether it counts in the metrics.
        told
            What the teacher has said of it by now.
        counts
            How often each item had been shown [n]; needed by weightings that ask.
        """
        seen, k = vectors.seen, shown.raw.shape[1] - 1
        abstained = bool(np.isnan(shown.p[0, 0]))
        if measured and not abstained:
            self.metrics.add(
                vectors.user, labels, shown.raw, shown.p, shown.rank, seen, vectors.positions, vectors.new, surface
            )
        # An arm reset since then has said nothing of this slate; what it took in was scaled for the one before it.
        inputs = shown.inputs if shown.changes >= self._reset_at else _NOTHING
        input_missing = self._input_missing(inputs, len(labels))
        if not abstained:
            self.hedge.learn(
                shown.p[seen, :k], labels[seen], mixture=shown.p[seen, k], at_ms=vectors.at_ms, changes=shown.changes
            )
            # While it abstained the raw logits were those of a model that knew nothing: bringing them to the base rate
            # would count it twice as soon as the model knows it too, for as long as labels are behind.
            self.platt.learn(shown.raw[:, :k], labels, seen, input_missing, self._reading)
        active, offsets = self.bank.thin(vectors, labels)
        if self.importance is None:
            weights = active.astype(np.float64)
            self.bank.learn(vectors, labels, offsets=offsets, active=active)
        else:
            w = self._weigh(self.importance, vectors, shown, labels, surface, inputs, told, counts)
            active &= w.kept & ~(input_missing[:, None] & self._reading)
            weights = active * w.importance * w.structural
            self.bank.learn(
                vectors,
                labels,
                w.importance,
                w.structural,
                offsets + w.offsets,
                active,
                w.targets,
                inputs if inputs.size else None,
            )
        self.metrics.weigh(labels[seen], weights[seen])
        self.positives += int(labels[seen].sum())
        if self.reference is not None and told:
            learned = seen | (labels == 1)
            takeover = self.reference.learn(told, labels, learned, vectors.positions, surface, vectors.at_ms)
            if takeover is not Takeover.NONE:
                self._reset_arms(self.reference.unit, anew=takeover is Takeover.ANEW)

    def _weigh(
        self,
        importance: Importance,
        vectors: Vectors,
        shown: Prediction,
        labels: NDArray[np.uint8],
        surface: str,
        inputs: NDArray[np.float32],
        told: TeacherScores,
        counts: NDArray[np.float64] | None,
    ) -> Weights:
        n = len(labels)
        if self._weighing:
            q = 1.0 / (1.0 + np.exp(-self.bank.predict(vectors, inputs if inputs.size else None)[0]))
        else:
            q = np.zeros((n, len(self.weightings)))
        r, why = np.full(n, np.nan), np.full(n, Missing.ABSENT, np.uint8)
        if self.reference is not None and told:
            scores = self.reference.of(told)
            why = self.reference.why(scores, vectors.at_ms)
            r = self.reference.probability(scores.logits(self._label), vectors.positions, surface)
            r[(why != Missing.PRESENT) & (why != Missing.LATE)] = np.nan
        return importance.weigh(
            Evidence(
                labels=labels, q=q, shown=shown.p[:, :-1], reference=r, missing=why,
                counts=np.zeros(n) if counts is None else counts, learned=vectors.seen | (labels == 1),
                items=vectors.items, request=vectors.request, surface=surface,
            )
        )  # fmt: skip

    def _reset_arms(self, unit: float, anew: bool) -> None:
        """Let arms that read the reference begin with its new version: all, or those with a fixed offset alone."""
        fixed = self._reading & ~self._leaning
        reset = self._reading if anew else fixed
        self.bank.reset_arms(unit, reset)
        self.platt.reset_arms(fixed, self._leaning & reset)
        self.hedge.reset_arms(reset)
        self._reset_at = self.hedge.changes
        if self.importance is not None:
            self.importance.reset_arms()

    def missing(self) -> dict[str, dict[str, int]]:
        """Return for each arm that reads the reference how many samples had a score and, by reason, had none."""
        if self.importance is None:
            return {}
        return {
            weighting.name: {why.name.lower(): int(n) for why, n in zip(Missing, counted, strict=True) if n}
            for weighting, counted in zip(self.weightings, self.importance.missing, strict=True)
            if weighting.reads_reference
        }

    def report(self) -> dict[str, Any]:
        """Return the metrics of every arm, what the mixture believes and why, and what became of the teacher.

        ``mixture.against_uniform``: mean difference of log losses a slate from `uniform`'s, and half the width of its
        95 % confidence sequence (None before there is one), since the evidence was last begun. ``mixture.decisions``:
        the last time each was put out or let in again, and the evidence that did it.
        """
        names = [weighting.name for weighting in self.weightings]
        sequence = self.hedge.sequence
        evidence = {
            name: {"mean": mean, "half_width": half if half < inf else None, "slates": slates}
            for name, mean, half, slates in zip(
                [*names, "mixture"], sequence.mean.tolist(), sequence.half_width.tolist(), sequence.slates.tolist(),
                strict=True,
            )
        }  # fmt: skip
        decisions = {
            name: decision._asdict() | {"half_width": decision.half_width if decision.half_width < inf else None}
            for name, decision in zip([*names, "mixture"], self.hedge.decisions, strict=True)
            if decision is not None
        }
        told: dict[str, Any] = {
            "mixture": {
                "weights": dict(zip(names, self.hedge.weights.tolist(), strict=True)),
                "benched": [name for name, out in zip(names, self.hedge.benched, strict=True) if out],
                "against_uniform": evidence,
                "decisions": decisions,
            }
        }
        if self.reference is not None:
            told["teacher"] = {
                "version": self.reference.version,
                "takeovers": self.reference.takeovers,
                "slope": self.reference.slope,
                "missing": self.missing(),
            }
        return self.metrics.report() | told

    def state(self) -> dict[str, Any]:
        """Return copies of everything that future predictions and reports depend on."""
        return {
            "bank": self.bank.state(),
            "platt": self.platt.state(),
            "hedge": self.hedge.state(),
            "metrics": self.metrics.state(),
            "positives": self.positives,
            "reset_at": self._reset_at,
            "importance": None if self.importance is None else self.importance.state(),
            "reference": None if self.reference is None else self.reference.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same arms."""
        self.bank.restore(state["bank"])
        self.platt.restore(state["platt"])
        self.hedge.restore(state["hedge"])
        self.metrics.restore(state["metrics"])
        self.positives, self._reset_at = state["positives"], state["reset_at"]
        if self.importance is not None:
            self.importance.restore(state["importance"])
        if self.reference is not None:
            self.reference.restore(state["reference"])


@njit(cache=True)
def _serve(
    q: NDArray[Any],
    rank: NDArray[Any],
    a: NDArray[Any],
    b: NDArray[Any],
    weights: NDArray[Any],
    input_missing: NDArray[Any],
    reading: NDArray[Any],
    shown: NDArray[Any],
) -> None:
    """Fill raw logits, position-free logits and calibrated probabilities, with the mixture as the last column.

    On rows ``input_missing`` [n], arms that are ``reading`` [K] are calibrated as the first is, whose logits they have.
    """
    n, k = q.shape
    for row in range(n):
        mixed, in_order = 0.0, 0.0
        for arm in range(k):
            by = 0 if input_missing[row] and reading[arm] else arm
            p = 1.0 / (1.0 + np.exp(-(a[by] * q[row, arm] + b[by])))
            shown[0, row, arm], shown[1, row, arm], shown[2, row, arm] = q[row, arm], rank[row, arm], p
            if weights[arm] > 0.0:
                mixed += weights[arm] * p
                in_order += weights[arm] / (1.0 + np.exp(-(a[by] * rank[row, arm] + b[by])))
        shown[0, row, k], shown[1, row, k], shown[2, row, k] = _logit(mixed), _logit(in_order), mixed


@njit(cache=True)
def _logit(p: float) -> float:
    p = min(max(p, 1e-12), 1.0 - 1e-12)
    return float(np.log(p) - np.log1p(-p))
