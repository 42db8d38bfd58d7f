"""One head, click or conversion: the models of its arms, their calibrators, the mixture, and how good each is.

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

from heft.models.evaluate.prequential import Observation, Prequential
from heft.models.features.vectors import Vectors
from heft.models.importance.teacher_scores import Missing, Takeover, TeacherCalibration, TeacherScores
from heft.models.importance.weigh import Evidence, Importance
from heft.models.importance.weightings import Input, Measure, Weighting
from heft.models.rankers.arms import Arm
from heft.models.rankers.calibration import Platt
from heft.models.rankers.mixture import Hedge
from heft.models.rankers.protocol import ArmModels, Samples
from heft.models.rankers.thinning import Thinning

PROBATION = {"click": 20_000, "order": 2_000}
"""Samples before an arm may be believed; those of an order are clicks: there are fewer, and each tells more."""

CALIBRATION_PRIOR = {"click": (100.0, 10.0), "order": (10_000.0, 1_000.0)}
"""Information that holds each calibrator at identity, in the units of `Platt`: for orders, what 6,000 clicks bring.

A calibrator learns from logits as shown, and orders tell how good those were a day ago. The model learns from the same
labels. A calibrator that moves within that day mends again what the model has mended since: a late label counts twice.
The share counted twice is, roughly, the clicks whose label is still to come over those that the calibrator has learned
plus these 6,000. The half-life needs no change: its memory is worth 144,000 clicks, and the prior is never forgotten.
"""

_NOTHING = np.zeros(0, np.float32)
_ALL_MISSING = np.ones(1_000, np.bool_)  # as many as a slate may have


class Prediction(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What K arms predicted of n items when they were shown, and their mixture as the last column.

    An arm that reads the teacher has the prediction of `uniform` for items without a score in time.
    """

    raw: NDArray[np.float32]
    """[n, K + 1] raw logits."""
    rank: NDArray[np.float32]
    """[n, K + 1] logits with every item at the same position."""
    p: NDArray[np.float32]
    """[n, K + 1] calibrated probabilities; NaN where the head abstained."""
    teacher_inputs: NDArray[np.float32] = _NOTHING
    """The teacher's logits as the arms took them in [n], NaN where missing; empty where the teacher had no score."""
    changes: int = 0
    """How many probations of the mixture had begun by then."""

    def one(self, row: int) -> Prediction:
        """Return one row alone."""
        rows = slice(row, row + 1)
        inputs = self.teacher_inputs[rows].copy()
        return Prediction(self.raw[rows].copy(), self.rank[rows].copy(), self.p[rows].copy(), inputs, self.changes)

    def state(self) -> tuple[Any, ...]:
        """Return arrays and a number; ``Prediction(*state)`` is the same again."""
        return self.raw, self.rank, self.p, self.teacher_inputs, self.changes


class LabelledSlate(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The labels of a slate of n items, beside what was known when it was shown."""

    vectors: Vectors
    """The slate as it was shown."""
    shown: Prediction
    """What the head predicted then."""
    labels: NDArray[np.uint8]
    """0 or 1 [n]."""
    surface: str
    """Where it was shown."""
    measured: bool
    """Whether it counts in the metrics."""
    teacher_scores: TeacherScores = ()
    """All scores of the teacher that have come by now, late ones too."""
    counts: NDArray[np.float64] | None = None
    """How often each item had been shown [n]; needed where a weighting asks for it."""

    @property
    def abstained(self) -> bool:
        """Whether the head predicted nothing."""
        return bool(np.isnan(self.shown.p[0, 0]))

    @property
    def learned(self) -> NDArray[np.bool_]:
        """Which rows are samples [n]: those seen on the screen; a click proves that its item was."""
        learned: NDArray[np.bool_] = self.vectors.seen | (self.labels == 1)
        return learned


class Head:
    """K arms that learn the same label side by side.

    Parameters
    ----------
    arms
        As they are configured; `uniform` is the first.
    models
        The models of the arms, in the same order.
    seed
        Which negatives a thinned arm learns, and all draws of the weightings.
    abstain_below
        Positives that must have been learned before the head predicts anything; until then probabilities are NaN.
    weightings
        How much each sample counts for each arm; default: once.
    label
        Which of the teacher's logits are for this head.
    """

    def __init__(
        self,
        arms: tuple[Arm, ...],
        models: ArmModels,
        seed: int,
        abstain_below: int = 0,
        weightings: tuple[Weighting, ...] = (),
        label: Literal["click", "order"] = "click",
    ) -> None:
        names = tuple(arm.name for arm in arms)
        self.weightings = weightings or tuple(Weighting(name) for name in names)
        self.arms = arms
        self.models = models
        self.platt = Platt(len(arms), prior=CALIBRATION_PRIOR[label])
        served = np.array([not weighting.diagnostic for weighting in self.weightings])
        self.hedge = Hedge(names, probation=PROBATION[label], served=served)
        self.metrics = Prequential((*names, "mixture"))
        self.positives = 0
        self._reset_at = 0  # changes of the mixture with which arms were last reset
        self._abstain_below = abstain_below
        self._thinning = Thinning(arms, seed)
        plain = all(weighting == Weighting(weighting.name) for weighting in self.weightings)
        self.importance = None if plain else Importance(self.weightings, seed)
        taught = any(weighting.reads_reference for weighting in self.weightings)
        self.teacher = TeacherCalibration(label) if taught else None
        self._label = label
        inputs = [weighting.input for weighting in self.weightings]
        self._reads_teacher = np.array([each is not Input.NONE for each in inputs])
        self._has_fixed_offset = np.array([each is Input.OFFSET for each in inputs])
        self._weighs = any(weighting.measure is not Measure.UNIFORM for weighting in self.weightings)

    def predict(self, vectors: Vectors, teacher_scores: TeacherScores = ()) -> Prediction:
        """Return what could be served now; changes nothing. ``teacher_scores`` are those that have come in time."""
        inputs = _NOTHING
        if self.teacher is not None and teacher_scores:
            scores = self.teacher.of(teacher_scores)
            why = self.teacher.why(scores, vectors.at_ms)
            inputs = self.teacher.inputs(scores.logits(self._label), why)
        q, rank = self.models.predict(vectors, inputs if inputs.size else None)
        shown = np.empty((3, len(q), q.shape[1] + 1), np.float32)
        missing = _input_missing(inputs, len(q))
        _serve(q, rank, self.platt.a, self.platt.b, self.hedge.weights, missing, self._reads_teacher, shown)
        if self.positives < self._abstain_below:
            shown[2] = np.nan
        return Prediction(shown[0], shown[1], shown[2], inputs, self.hedge.changes)

    def observe(self, slate: LabelledSlate) -> None:
        """Take the labels of a slate: judge what was shown, then learn."""
        # An arm reset since then has predicted nothing of this slate: its input was scaled for the version before.
        inputs = slate.shown.teacher_inputs if slate.shown.changes >= self._reset_at else _NOTHING
        input_missing = _input_missing(inputs, len(slate.labels))
        if not slate.abstained:
            self._measure(slate)
            self._judge_mixture(slate)
            self._calibrate(slate, input_missing)
        samples = self._weigh(slate, inputs, input_missing)
        self.models.learn(samples)
        self._count(slate, samples)
        self._learn_of_teacher(slate)

    def _measure(self, slate: LabelledSlate) -> None:
        vectors, shown = slate.vectors, slate.shown
        if slate.measured:
            self.metrics.add(
                Observation(
                    vectors.user, slate.labels, shown.raw, shown.p, shown.rank, vectors.seen, vectors.positions,
                    vectors.new, slate.surface,
                )
            )  # fmt: skip

    def _judge_mixture(self, slate: LabelledSlate) -> None:
        seen = slate.vectors.seen
        p = slate.shown.p[seen]
        self.hedge.learn(p[:, :-1], slate.labels[seen], p[:, -1], slate.vectors.at_ms, slate.shown.changes)

    def _calibrate(self, slate: LabelledSlate, input_missing: NDArray[np.bool_]) -> None:
        # Not while it abstained: the raw logits were those of a model that knew nothing. Bringing them to the base rate
        # would count it twice as soon as the model knows it too, for as long as labels are behind.
        raw = slate.shown.raw[:, :-1]
        self.platt.learn(raw, slate.labels, slate.vectors.seen, input_missing, self._reads_teacher)

    def _weigh(self, slate: LabelledSlate, inputs: NDArray[np.float32], input_missing: NDArray[np.bool_]) -> Samples:
        """Return the slate with all that says how each arm learns it."""
        active, offsets = self._thinning.of(slate.vectors, slate.labels)
        if self.importance is None:
            return Samples(slate.vectors, slate.labels, offsets=offsets, active=active)
        w = self.importance.weigh(self._evidence(slate, inputs))
        active &= w.kept & ~(input_missing[:, None] & self._reads_teacher)
        return Samples(
            slate.vectors, slate.labels, w.importance, w.structural, offsets + w.offsets, active, w.targets,
            inputs if inputs.size else None,
        )  # fmt: skip

    def _evidence(self, slate: LabelledSlate, inputs: NDArray[np.float32]) -> Evidence:
        vectors, n = slate.vectors, len(slate.labels)
        if self._weighs:
            q = 1.0 / (1.0 + np.exp(-self.models.predict(vectors, inputs if inputs.size else None)[0]))
        else:
            q = np.zeros((n, len(self.weightings)))
        r, why = np.full(n, np.nan), np.full(n, Missing.ABSENT, np.uint8)
        if self.teacher is not None and slate.teacher_scores:
            scores = self.teacher.of(slate.teacher_scores)
            why = self.teacher.why(scores, vectors.at_ms)
            r = self.teacher.probability(scores.logits(self._label), vectors.positions, slate.surface)
            r[(why != Missing.PRESENT) & (why != Missing.LATE)] = np.nan
        return Evidence(
            labels=slate.labels, q=q, shown=slate.shown.p[:, :-1], reference=r, missing=why,
            counts=np.zeros(n) if slate.counts is None else slate.counts, learned=slate.learned,
            items=vectors.items, request=vectors.request, surface=slate.surface,
        )  # fmt: skip

    def _count(self, slate: LabelledSlate, samples: Samples) -> None:
        """Count the positives, and the weights of which the metrics tell the effective sample size."""
        seen, active = slate.vectors.seen, samples.active
        assert active is not None  # `_weigh` says it for each row
        if samples.importance is None or samples.structural is None:
            weights = active.astype(np.float64)
        else:
            weights = active * samples.importance * samples.structural
        self.metrics.weigh(slate.labels[seen], weights[seen])
        self.positives += int(slate.labels[seen].sum())

    def _learn_of_teacher(self, slate: LabelledSlate) -> None:
        """Calibrate the teacher, and reset arms that read it where a new version takes over."""
        if self.teacher is None or not slate.teacher_scores:
            return
        takeover = self.teacher.learn(
            slate.teacher_scores, slate.labels, slate.learned, slate.vectors.positions, slate.surface,
            slate.vectors.at_ms,
        )  # fmt: skip
        if takeover is Takeover.RESET:
            self._reset_arms(self._reads_teacher, self.teacher.unit)
        elif takeover is Takeover.CONTINUE:
            self._reset_arms(self._has_fixed_offset, self.teacher.unit)

    def _reset_arms(self, reset: NDArray[np.bool_], unit: float) -> None:
        """Let arms ``reset`` [K] begin with the new version of the teacher."""
        self.models.reset_arms(unit, reset)
        self.platt.reset_arms(self._has_fixed_offset, reset & ~self._has_fixed_offset)
        self.hedge.reset_arms(reset)
        self._reset_at = self.hedge.changes
        if self.importance is not None:
            self.importance.reset_arms()

    def missing(self) -> dict[str, dict[str, int]]:
        """Return for each arm that uses the teacher how many samples had a score and, by reason, how many had none."""
        if self.importance is None:
            return {}
        return {
            weighting.name: {why.name.lower(): int(n) for why, n in zip(Missing, counted, strict=True) if n}
            for weighting, counted in zip(self.weightings, self.importance.missing, strict=True)
            if weighting.reads_reference
        }

    def report(self) -> dict[str, Any]:
        """Return the metrics of every arm, what the mixture believes and why, and what became of the teacher.

        ``mixture.against_uniform``: the mean difference of each arm's log loss a slate from that of `uniform`, and half
        the width of its 95 % confidence sequence (None before there is one), since its evidence was last restarted.
        ``mixture.decisions``: the last time each arm was benched or let in again, and the evidence that decided it.
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
        beside: dict[str, Any] = {
            "mixture": {
                "weights": dict(zip(names, self.hedge.weights.tolist(), strict=True)),
                "benched": [name for name, out in zip(names, self.hedge.benched, strict=True) if out],
                "against_uniform": evidence,
                "decisions": decisions,
            }
        }
        if self.teacher is not None:
            beside["teacher"] = {
                "version": self.teacher.version,
                "takeovers": self.teacher.takeovers,
                "slope": self.teacher.slope,
                "missing": self.missing(),
            }
        return self.metrics.report() | beside

    def state(self) -> dict[str, Any]:
        """Return copies of everything that future predictions and reports depend on."""
        return {
            "models": self.models.state(),
            "platt": self.platt.state(),
            "hedge": self.hedge.state(),
            "metrics": self.metrics.state(),
            "positives": self.positives,
            "reset_at": self._reset_at,
            "importance": None if self.importance is None else self.importance.state(),
            "teacher": None if self.teacher is None else self.teacher.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same arms."""
        self.models.restore(state["models"])
        self.platt.restore(state["platt"])
        self.hedge.restore(state["hedge"])
        self.metrics.restore(state["metrics"])
        self.positives, self._reset_at = state["positives"], state["reset_at"]
        if self.importance is not None:
            self.importance.restore(state["importance"])
        if self.teacher is not None:
            self.teacher.restore(state["teacher"])


def _input_missing(teacher_inputs: NDArray[np.float32], n: int) -> NDArray[np.bool_]:
    """Return for each of n rows whether the teacher's logit is missing; empty inputs: all are."""
    return np.isnan(teacher_inputs) if teacher_inputs.size else _ALL_MISSING[:n]


@njit(cache=True)
def _serve(
    q: NDArray[Any],
    rank: NDArray[Any],
    a: NDArray[Any],
    b: NDArray[Any],
    weights: NDArray[Any],
    input_missing: NDArray[Any],
    reads_teacher: NDArray[Any],
    shown: NDArray[Any],
) -> None:
    """Fill raw logits, position-free logits and calibrated probabilities, with the mixture as the last column.

    Where the teacher's logit is missing, ``input_missing`` [n], arms that read it, ``reads_teacher`` [K], are
    calibrated as the first arm is, because they have its logits there.
    """
    n, k = q.shape
    for row in range(n):
        mixed, in_order = 0.0, 0.0
        for arm in range(k):
            by = 0 if input_missing[row] and reads_teacher[arm] else arm
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
