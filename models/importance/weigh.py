"""How much a sample counts: from score, prediction, label and counts to weights, training offsets and soft labels.

Called when the labels of a slate are known, before the student learns. For each weighting and sample, in this order:

1. `_soft_label`: the label to train with, where the weighting softens labels.
2. `_measure`: the measure F of the sample, under the label that came.
3. `_select`: whether a selection keeps the sample.
4. `_enter`: F enters the statistics of the epoch; they shape the weights of later epochs only.
5. `_weight`: F is centred and scaled by the past; w = exp(strength F) / mean of the past, clipped, and mixed with 1.
6. `_offset`: log(w1 / w0), from the final weights under both labels.
7. `_add_mass`: w enters the effective sample sizes.
8. `_apply`: w becomes sub-steps, a factor on the gradient, or the probability of a sampler.

Structural weights, 1 / pi, come out apart and are never normalised or clipped with the others. A sample without a score
counts exactly 1 and enters no statistic, not even the effective sample sizes. Otherwise, where most samples have no
score, they would hide how uneven the weights of the others are.
"""

from __future__ import annotations

from math import exp, isnan, log, log1p
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.hashing import mix, unit
from heft.models.importance.gate import COUNTS, Gate
from heft.models.importance.measures import DRAW_RANDOM, PERMUTED, UNIFORM, clipped, measured, odds
from heft.models.importance.normaliser import (
    CENTRE,
    COUNT,
    EPOCH,
    GRADIENT,
    MEAN,
    NEGATIVES,
    POSITIVES,
    SCALE,
    SQUARES,
    STRENGTH,
    SUM,
    Normaliser,
    Statistics,
)  # fmt: skip
from heft.models.importance.rules import compiled_rules
from heft.models.importance.teacher_scores import Missing
from heft.models.importance.weightings import Measure, Weighting

LEAST_PI = 0.05
"""A sampler keeps every sample with at least this probability, so that no structural weight is above 20."""

_REMEMBERED = 8  # weights that a cell of a permuted weighting holds
_Q_RANGES = 10  # of q, each one unit of logit wide

# Mixed into the hash that a draw is made from: draws for one purpose tell nothing of those for another, nor of which
# negatives are thinned.
_DRAW_SAMPLE, _DRAW_SLOT = np.uint64(0x53), np.uint64(0x54)


class Evidence(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What is known of the n samples of a slate when their labels come."""

    labels: NDArray[np.uint8]
    """0 or 1 [n]."""
    q: NDArray[np.float64]
    """Each weighting's current probability, as if nothing were thinned [n, K]."""
    shown: NDArray[np.float32]
    """Each weighting's probability when the slate was shown [n, K]."""
    reference: NDArray[np.float64]
    """The reference's calibrated probability r [n]; NaN where missing."""
    missing: NDArray[np.uint8]
    """`Missing` [n]; where r is NaN, PRESENT and LATE count as ABSENT."""
    counts: NDArray[np.float64]
    """How often each item had been shown [n]."""
    learned: NDArray[np.bool_]
    """Which rows are samples at all [n]; items that were never on screen are none."""
    items: NDArray[np.uint64]
    """Hashes of the items [n]."""
    request: int
    """Hash of the request, unsigned."""
    surface: str


class Weights(NamedTuple):
    """How the student learns a slate; rows that are no samples have weight 1."""

    importance: NDArray[np.float64]
    """How many times each sample counts [n, K]: sub-steps."""
    structural: NDArray[np.float64]
    """Factors on the gradient [n, K]."""
    offsets: NDArray[np.float64]
    """Added to the logit in training only, to the offsets of thinning [n, K]."""
    targets: NDArray[np.float64]
    """Labels, or soft labels [n, K]."""
    kept: NDArray[np.bool_]
    """What a sampler or a selection keeps [n, K]; True for all other weightings."""

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Weights:
        """Return room for weights [n, K], not filled yet."""
        importance, structural, offsets, targets = np.empty((4, *shape))
        return cls(importance, structural, offsets, targets, np.empty(shape, np.bool_))


class Samples(NamedTuple):
    """The evidence of n samples as compiled code reads it."""

    items: NDArray[np.uint64]
    labels: NDArray[np.uint8]
    q: NDArray[np.float64]
    r: NDArray[np.float64]
    why: NDArray[np.uint8]
    """`Missing` [n]."""
    counts: NDArray[np.float64]
    learned: NDArray[np.bool_]
    slices: NDArray[np.int64]
    """Which slice of the gate each row is in [n]."""


class Importance:
    """K weightings over one stream and one version of the reference.

    Parameters
    ----------
    weightings
        In the order of the arms they train; a plain arm's weighting is ``Weighting(name)``.
    seed
        All draws follow from it, the request and the item.

    Raises
    ------
    ValueError
        If a name comes twice, or `permuted` has no earlier source of weights.

    Attributes
    ----------
    missing : int64 [K, 6]
        Samples by `Missing`; counted for the weightings that read the reference.
    normaliser
        Strengths, normalisers and effective sample sizes.
    gate
        In which slices the gated weightings, in their order, trust the reference.
    """

    def __init__(self, weightings: tuple[Weighting, ...], seed: int) -> None:
        names = [weighting.name for weighting in weightings]
        if len(set(names)) < len(names):
            msg = f"importance: every weighting needs a name of its own, got {', '.join(names)}"
            raise ValueError(msg)
        self.weightings = weightings
        self.normaliser = Normaliser(weightings)
        self._gated = np.array([k for k, weighting in enumerate(weightings) if weighting.gated], np.int64)
        self.gate = Gate(len(self._gated))
        self.missing = np.zeros((len(weightings), len(Missing)), np.int64)
        self._seed = np.uint64(seed)
        self._in_epoch = 0
        self._rules = compiled_rules(weightings)
        permuted = sum(weighting.measure is Measure.PERMUTED for weighting in weightings)
        self._remembered = np.ones((permuted, 2, _Q_RANGES, COUNTS, _REMEMBERED))

    def weigh(self, evidence: Evidence) -> Weights:
        """Return the weights of a slate by the statistics of earlier slates; then add the slate to the statistics.

        Raises
        ------
        ValueError
            If a current prediction is not a probability; nothing has changed then.
        """
        why, r = evidence.missing.copy(), evidence.reference
        bad = _sift(evidence.q, evidence.learned, r, why)
        if bad >= 0:
            row, k = divmod(bad, len(self.weightings))
            msg = (
                f"importance: weighting {self.weightings[k].name!r} predicts {evidence.q[row, k]} in row {row}; "
                "expected a probability: its model has diverged, lower the arm's alpha"
            )
            raise ValueError(msg)
        slices = self.gate.slices(evidence.counts, evidence.surface)
        samples = evidence.items, evidence.labels, evidence.q, r, why, evidence.counts, evidence.learned, slices
        weights = Weights.empty(evidence.q.shape)
        _weigh(
            self._rules, tuple(self.normaliser.statistics), self.gate.open, self._remembered, self.missing,
            self._seed, np.uint64(evidence.request), samples, tuple(weights),
        )  # fmt: skip
        if len(self._gated):
            judged = evidence.learned & ((why == Missing.PRESENT) | (why == Missing.LATE))
            self.gate.learn(slices, evidence.shown[:, self._gated], r, evidence.labels, judged)
        self._in_epoch += int(np.count_nonzero(evidence.learned))
        if self._in_epoch >= EPOCH:
            self.normaliser.turn(self._in_epoch)
            self.gate.turn()
            self._in_epoch = 0
        return weights

    def reset_arms(self) -> None:
        """Forget what was known of the reference, because a new version of the teacher has taken over.

        Gates close until the new version has lost less than the student. Weights are 1 until its measures are known.
        """
        self.gate.forget()
        self.normaliser.forget(np.array([weighting.reads_reference for weighting in self.weightings]))

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that future weights depend on."""
        return {
            "normaliser": self.normaliser.state(),
            "gate": self.gate.state(),
            "missing": self.missing.copy(),
            "remembered": self._remembered.copy(),
            "in_epoch": self._in_epoch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same weightings."""
        self.normaliser.restore(state["normaliser"])
        self.gate.restore(state["gate"])
        self.missing, self._remembered = state["missing"].copy(), state["remembered"].copy()
        self._in_epoch = int(state["in_epoch"])


@njit(cache=True)
def _sift(q: NDArray[Any], learned: NDArray[Any], r: NDArray[Any], why: NDArray[Any]) -> int:
    """Note in ``why`` which r are missing or invalid; return the flat place of a q that is no probability, or -1."""
    n, weightings = q.shape
    for row in range(n):
        if isnan(r[row]):
            if why[row] == Missing.PRESENT or why[row] == Missing.LATE:
                why[row] = Missing.ABSENT
        elif not 0.0 <= r[row] <= 1.0:
            why[row] = Missing.INVALID
        for k in range(weightings):
            if learned[row] and not 0.0 <= q[row, k] <= 1.0:
                return int(row * weightings + k)
    return -1


@njit(cache=True)
def _weigh(
    rules: NDArray[Any], of_statistics: tuple[Any, ...], gates: NDArray[Any], remembered: NDArray[Any],
    missing: NDArray[Any], seed: np.uint64, request: np.uint64, of_samples: tuple[Any, ...], of_out: tuple[Any, ...],
) -> None:  # fmt: skip
    """Fill the `Weights`; add to `Statistics`, ``missing`` and ``remembered``. The module's docstring lists the steps.

    The three bundles get their names here: numba takes microseconds to look at a named tuple that comes from Python.
    """
    statistics, samples, out = Statistics(*of_statistics), Samples(*of_samples), Weights(*of_out)
    n, weightings = samples.q.shape
    stream, around = mix(seed, request), odds(samples.r, samples.why)
    for k in range(weightings):
        rule = rules[k]
        for row in range(n):
            label, why = samples.labels[row], samples.why[row]
            _count_once(row, k, label, out)
            if not samples.learned[row]:
                continue
            if rule.reads_reference:
                missing[k, why] += 1
            if rule.is_input:
                continue
            known = not rule.needs_score or why == Missing.PRESENT or why == Missing.LATE
            trusted = known and (rule.gate < 0 or gates[samples.slices[row], rule.gate])
            if trusted:
                out.targets[row, k] = _soft_label(rule, label, samples.r[row])
            if rule.measure == UNIFORM:
                continue
            w = 1.0
            if known and rule.measure == PERMUTED:
                drawn = mix(mix(_DRAW_SLOT, stream), samples.items[row])
                others, range_of_counts = out.importance[row, rule.source], samples.slices[row] % COUNTS
                w = _exchange(others, label, samples.q[row, k], range_of_counts, drawn, remembered[rule.cells])
            elif known:
                measure = _measure(row, k, label, rule, samples, stream, around)
                if rule.selects:
                    out.kept[row, k] = _select(k, measure, rule, statistics) or not trusted
                _enter(k, measure, label, trusted, rule, statistics)
                if trusted:
                    now = statistics.now[k]
                    w = _weight(measure, now, rule)
                    if rule.offset:
                        against = _weight(_measure(row, k, 1 - label, rule, samples, stream, around), now, rule)
                        out.offsets[row, k] = _offset(w, against, label)
            if rule.selects:
                continue
            if known:
                _add_mass(w, label, abs(samples.q[row, k] - label), statistics.masses[k])
            _apply(row, k, w, mix(mix(_DRAW_SAMPLE, stream), samples.items[row]), rule, out)


@njit(cache=True, inline="always")
def _count_once(row: int, k: int, label: int, out: Weights) -> None:
    """Let a sample count as it came."""
    out.importance[row, k], out.structural[row, k], out.offsets[row, k] = 1.0, 1.0, 0.0
    out.targets[row, k] = label
    out.kept[row, k] = True


@njit(cache=True, inline="always")
def _soft_label(rule: Any, label: int, r: float) -> float:
    """Return the label, mixed with r or (of a click) with what accidental clicks leave of it."""
    soft = float(label)
    if rule.distill > 0.0:
        soft = (1.0 - rule.distill) * label + rule.distill * r
    elif rule.denoise > 0.0 and label == 1:
        soft = r / (r + rule.denoise)
    return soft


@njit(cache=True, inline="always")
def _measure(row: int, k: int, label: int, rule: Any, samples: Samples, stream: np.uint64, around: float) -> float:
    """Return F of a sample, had its label been ``label``."""
    drawn = mix(mix(DRAW_RANDOM, stream), samples.items[row])
    return float(measured(rule.measure, samples.r[row], samples.q[row, k], label, samples.counts[row], drawn, around))


@njit(cache=True, inline="always")
def _select(k: int, measure: float, rule: Any, statistics: Statistics) -> bool:
    """Remember F for the bar of the next epoch; return whether it reaches the present one."""
    so_far = int(statistics.values[k, 0, COUNT] + statistics.values[k, 1, COUNT])
    statistics.ranked[rule.bar, so_far % EPOCH] = measure
    return bool(statistics.now[k, STRENGTH] == 0.0 or measure >= statistics.bars[rule.bar])


@njit(cache=True, inline="always")
def _enter(k: int, measure: float, label: int, trusted: bool, rule: Any, statistics: Statistics) -> None:
    """Add F to the moments of its label and, where it is used, its next epoch's raw weight to their mean."""
    held = measure if rule.centred else min(max(measure, -rule.limit), rule.limit)
    value = statistics.values[k, label]
    value[COUNT] += 1.0
    value[SUM] += held
    value[SQUARES] += held * held
    if trusted:
        planned = statistics.planned[k]
        statistics.counted[k, COUNT] += 1.0
        statistics.counted[k, SUM] += exp(planned[STRENGTH] * _scaled(measure, planned, rule))


@njit(cache=True, inline="always")
def _scaled(measure: float, how: NDArray[Any], rule: Any) -> float:
    """Return F centred and scaled, where the weighting asks for it, and clipped to its limit."""
    z = (measure - how[CENTRE]) * how[SCALE] if rule.centred else measure
    return float(min(max(z, -rule.limit), rule.limit))


@njit(cache=True, inline="always")
def _weight(measure: float, now: NDArray[Any], rule: Any) -> float:
    """Return the final weight of an F: scaled, tempered, normalised, clipped, and mixed with 1."""
    w = 1.0
    if now[STRENGTH] != 0.0:
        raw = exp(now[STRENGTH] * _scaled(measure, now, rule)) / now[MEAN]
        w = 1.0 + rule.mix * (min(max(raw, rule.low), rule.high) - 1.0)
    return w


@njit(cache=True, inline="always")
def _offset(w: float, against: float, label: int) -> float:
    """Return log(w1 / w0), from the weight under the label that came and the weight under the other one."""
    return log(w / against) if label == 1 else log(against / w)


@njit(cache=True, inline="always")
def _add_mass(w: float, label: int, gradient: float, masses: NDArray[Any]) -> None:
    """Add a weight to those of its label, and to those of squared gradients."""
    group = masses[POSITIVES if label == 1 else NEGATIVES]
    group[COUNT] += 1.0
    group[SUM] += w
    group[SQUARES] += w * w
    group = masses[GRADIENT]
    mass = gradient * gradient
    group[COUNT] += mass
    group[SUM] += w * mass
    group[SQUARES] += w * w * mass


@njit(cache=True, inline="always")
def _apply(row: int, k: int, w: float, drawn: np.uint64, rule: Any, out: Weights) -> None:
    """Let a sample count w times: as sub-steps, as a factor, or by drawing it with a probability proportional to w."""
    if rule.samples:
        chance = min(1.0, max(LEAST_PI, rule.keep * w))
        out.kept[row, k] = unit(drawn) < chance
        out.structural[row, k] = 1.0 / chance
    elif rule.linear:
        out.structural[row, k] = w
    else:
        out.importance[row, k] = w


@njit(cache=True)
def _exchange(
    w: float, label: int, q: float, range_of_counts: int, drawn: np.uint64, cells: NDArray[Any]
) -> float:  # fmt: skip
    """Put a weight into the cell of samples like this one and take an earlier one out: a shuffle without the future."""
    p = clipped(q)
    logit = log(p) - log1p(-p)
    range_of_q = int(min(max(logit + _Q_RANGES - 2, 0.0), _Q_RANGES - 1.0))
    slot = int(drawn % np.uint64(_REMEMBERED))
    taken = cells[label, range_of_q, range_of_counts, slot]
    cells[label, range_of_q, range_of_counts, slot] = w
    return float(taken)
