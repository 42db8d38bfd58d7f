"""How much a sample counts: from reference, prediction, label and counts to weights, training offsets and soft labels.

Called when the labels of a slate are known, before the student learns. In this order (`weightings.Pipeline`): the
measure F under both labels; centred and scaled by the past; w = exp(strength F) / mean of the past; clipped; mixed with
1. The offset log(w1 / w0) is taken from the final pair. Structural weights, 1 / pi, come out apart and are never
normalised or clipped with the others. A sample without a score counts exactly 1 and moves no statistic, not even the
effective sample sizes: where most have no score, the weights of those that have one are not hidden behind them.
"""

from __future__ import annotations

from math import cos, exp, isnan, log, log1p, pi, sqrt
from typing import Any

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.hashing import mix, unit
from heft.models.importance.gate import COUNTS, Gate
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
    standardised,
)  # fmt: skip
from heft.models.importance.teacher_scores import Missing
from heft.models.importance.weightings import Input, Measure, Mode, Update, Weighting

LEAST_PI = 0.05
"""A sampler keeps every sample with at least this probability, so that no structural weight is above 20."""

LEAST_P = 1e-12
"""Probabilities are clipped to [1e-12, 1 - 1e-12] before anything is made of them."""

_REMEMBERED = 8  # weights a cell of a permuted weighting holds
_Q_RANGES = 10  # of q, one unit of logit each

(
    _UNIFORM, _PROBABILITY, _LOGIT, _INVERSE_LOGIT, _ATTENTION, _REFERENCE_LOSS, _INVERSE_REFERENCE_LOSS,
    _REFERENCE_GRADIENT, _GRADIENT, _EL2N, _LOSS, _UNCERTAINTY, _NOVELTY, _DISAGREEMENT, _RHO, _RHO_RELU, _RANDOM,
    _PERMUTED,
) = range(len(Measure))  # fmt: skip

# What is drawn for one purpose tells nothing of what is drawn for another, nor of which negatives are thinned.
_DRAW_RANDOM, _DRAW_SAMPLE, _DRAW_SLOT = np.uint64(0x52), np.uint64(0x53), np.uint64(0x54)


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
    """`Missing` [n]; what is NaN counts as absent though it says present."""
    counts: NDArray[np.float64]
    """How often each item had been shown [n]."""
    learned: NDArray[np.bool_]
    """Which rows are samples at all [n]; what was never on screen is none."""
    items: NDArray[np.uint64]
    """Hashes of the items [n]."""
    request: int
    """Hash of the request, unsigned."""
    surface: str


class Weights(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What the student learns the slate with; rows that are no samples have weight 1."""

    importance: NDArray[np.float64]
    """How often each sample counts [n, K]: sub-steps."""
    structural: NDArray[np.float64]
    """Factors on the gradient [n, K]."""
    offsets: NDArray[np.float64]
    """Added to the logit in training only, to the offsets of thinning [n, K]."""
    targets: NDArray[np.float64]
    """Labels, or soft labels [n, K]."""
    kept: NDArray[np.bool_]
    """What a sampler or a selection keeps [n, K]; True for all others."""


class Importance:
    """K weightings over one stream and one version of the reference.

    Parameters
    ----------
    weightings
        In the order of the arms they train; a plain arm's weighting is ``Weighting(name)``.
    seed
        Of all draws, together with request and item.

    Raises
    ------
    ValueError
        If a name comes twice, or `permuted` has no earlier source of weights.

    Attributes
    ----------
    missing : int64 [K, 6]
        Samples by `Missing`, of the weightings that read the reference.
    normaliser, gate
        Strengths, normalisers and effective sample sizes; open slices, of the gated weightings in their order.
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
        order, gates = list(Measure), {int(k): place for place, k in enumerate(self._gated)}
        self._flags = np.array(
            [
                (
                    order.index(weighting.measure), weighting.reads_reference, weighting.input is not Input.NONE,
                    gates.get(k, -1), weighting.offset, weighting.mode is Mode.SAMPLE,
                    weighting.update is Update.LINEAR, standardised(weighting), _source(weightings, k),
                    weighting.mode is Mode.SELECT,
                )
                for k, weighting in enumerate(weightings)
            ],
            np.int64,
        )  # fmt: skip
        self._numbers = np.array(
            [
                (
                    weighting.pipeline.limit, weighting.pipeline.low, weighting.pipeline.high, weighting.pipeline.mix,
                    weighting.distill, weighting.denoise, weighting.keep,
                )
                for weighting in weightings
            ]
        )  # fmt: skip
        self._remembered = np.ones((_permuted(weightings), 2, _Q_RANGES, COUNTS, _REMEMBERED))

    def weigh(self, evidence: Evidence) -> Weights:
        """Return what to learn a slate with, by the statistics of earlier slates; then let it enter them.

        Raises
        ------
        ValueError
            If a current prediction is not a probability; nothing has moved then.
        """
        shape = evidence.q.shape
        floats = np.empty((4, *shape))
        kept = np.empty(shape, np.bool_)
        why, r = evidence.missing.copy(), evidence.reference
        normaliser = self.normaliser
        bad = _sift(evidence.q, evidence.learned, r, why)
        if bad >= 0:
            row, k = divmod(bad, shape[1])
            msg = (
                f"importance: weighting {self.weightings[k].name!r} predicts {evidence.q[row, k]} in row {row}; "
                "expected a probability: its model has diverged, lower the arm's alpha"
            )
            raise ValueError(msg)
        slices = self.gate.slices(evidence.counts, evidence.surface)
        _weigh(
            self._flags, self._numbers, normaliser.now, normaliser.planned, self.gate.open, self._seed,
            np.uint64(evidence.request), evidence.items, evidence.labels, evidence.q, r, why, evidence.counts,
            evidence.learned, slices, self._remembered,
            normaliser.bars, normaliser.ranked, normaliser.values, normaliser.counted, normaliser.masses, self.missing,
            floats, kept,
        )  # fmt: skip
        if len(self._gated):
            judged = evidence.learned & ((why == Missing.PRESENT) | (why == Missing.LATE))
            self.gate.learn(slices, evidence.shown[:, self._gated], r, evidence.labels, judged)
        self._in_epoch += int(np.count_nonzero(evidence.learned))
        if self._in_epoch >= EPOCH:
            normaliser.turn(self._in_epoch)
            self.gate.turn()
            self._in_epoch = 0
        return Weights(floats[0], floats[1], floats[2], floats[3], kept)

    def reset_arms(self) -> None:
        """Forget what was known of the reference: a new version has taken over.

        Gates close until it has lost less than the student itself, and weights are 1 until its measures are known.
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


def _permuted(weightings: tuple[Weighting, ...]) -> int:
    """Return how many weightings exchange weights."""
    return sum(weighting.measure is Measure.PERMUTED for weighting in weightings)


def _source(weightings: tuple[Weighting, ...], k: int) -> int:
    """Return whose weights weighting k takes, or -1."""
    weighting = weightings[k]
    if weighting.measure is not Measure.PERMUTED:
        return -1
    for place, other in enumerate(weightings[:k]):
        repeats = other.mode is Mode.REPEAT and other.update is Update.SUB_STEPS
        weighs = other.measure is not Measure.UNIFORM and repeats
        if other.name == weighting.source and weighs:
            return place
    earlier = ", ".join(other.name for other in weightings[:k])
    msg = (
        f"importance: weighting {weighting.name!r} takes its weights from {weighting.source!r}; expected one that "
        f"weighs, in sub-steps, among the earlier ones: {earlier}"
    )
    raise ValueError(msg)


@njit(cache=True)
def _sift(q: NDArray[Any], learned: NDArray[Any], r: NDArray[Any], why: NDArray[Any]) -> int:
    """Note which r are none; return the place of a q that is no probability, or -1."""
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


@njit(cache=True, inline="always")
def _clipped(p: float) -> float:
    return float(min(max(p, LEAST_P), 1.0 - LEAST_P))


@njit(cache=True)
def odds(r: NDArray[Any], why: NDArray[Any]) -> float:
    """Return the mean of the odds of r [n] over the items of a slate that have a score; 1 where none has."""
    total, scored = 0.0, 0
    for row in range(r.size):
        if why[row] == Missing.PRESENT or why[row] == Missing.LATE:
            total += _clipped(r[row]) / (1.0 - _clipped(r[row]))
            scored += 1
    return total / scored if scored else 1.0


@njit(cache=True)
def measured(
    code: int, r: float, q: float, label: int, count: float, drawn: np.uint64, around: float = 1.0
) -> float:  # fmt: skip
    """Return F of a sample, as `models.importance.weightings.Measure` says, ``code`` being the place in it.

    ``around`` are the mean `odds` of its slate.
    """
    r, q = _clipped(r), _clipped(q)
    r_y, q_y = (r, q) if label == 1 else (1.0 - r, 1.0 - q)
    if code == _PROBABILITY:
        return r
    if code == _LOGIT:
        return log(r) - log1p(-r)
    if code == _INVERSE_LOGIT:
        return log1p(-r) - log(r)
    if code == _ATTENTION:
        return log(r) - log1p(-r) - log(around)
    if code == _REFERENCE_LOSS:
        return -log(r_y)
    if code == _INVERSE_REFERENCE_LOSS:
        return log(r_y)
    if code == _REFERENCE_GRADIENT:
        return log(1.0 - r_y)
    if code in (_GRADIENT, _EL2N):
        return log(sqrt(2.0) * (1.0 - q_y))
    if code == _LOSS:
        return log(-log(q_y))
    if code == _UNCERTAINTY:
        return log(q) + log1p(-q)
    if code == _NOVELTY:
        return -0.5 * log1p(count)
    if code == _DISAGREEMENT:
        return log(r * log(r / q) + (1.0 - r) * log((1.0 - r) / (1.0 - q)) + 1e-3)
    if code == _RHO:
        return log(r_y) - log(q_y)
    if code == _RHO_RELU:
        return log(max(log(r_y) - log(q_y), 1e-6))
    if code == _RANDOM:
        second = unit(mix(_DRAW_RANDOM, drawn))
        return sqrt(-2.0 * log1p(-unit(drawn))) * cos(2.0 * pi * second)
    return 0.0


@njit(cache=True, inline="always")
def _scaled(measure: float, how: NDArray[Any], centred: int, limit: float) -> float:
    z = (measure - how[CENTRE]) * how[SCALE] if centred else measure
    return min(max(z, -limit), limit)


@njit(cache=True, inline="always")
def _final(measure: float, now: NDArray[Any], centred: int, numbers: NDArray[Any]) -> float:
    """Return the weight of a measure: scaled, tempered, normalised, clipped, mixed."""
    limit, low, high, share = numbers[0], numbers[1], numbers[2], numbers[3]
    if now[STRENGTH] == 0.0:
        return 1.0
    w = exp(now[STRENGTH] * _scaled(measure, now, centred, limit)) / now[MEAN]
    return float(1.0 + share * (min(max(w, low), high) - 1.0))


@njit(cache=True)
def _weigh(
    flags: NDArray[Any], numbers: NDArray[Any], now: NDArray[Any], planned: NDArray[Any], opened: NDArray[Any],
    seed: np.uint64, request: np.uint64, items: NDArray[Any], labels: NDArray[Any], q: NDArray[Any], r: NDArray[Any],
    why: NDArray[Any], counts: NDArray[Any], learned: NDArray[Any], slices: NDArray[Any], remembered: NDArray[Any],
    bars: NDArray[Any], ranked: NDArray[Any], values: NDArray[Any], counted: NDArray[Any], masses: NDArray[Any],
    missing: NDArray[Any], floats: NDArray[Any], kept: NDArray[Any],
) -> None:  # fmt: skip
    """Fill ``floats`` (importance, structural, offsets, targets) and ``kept``; add to the statistics."""
    n, weightings = q.shape
    stream = mix(seed, request)
    place, chosen, around = 0, 0, odds(r, why)
    for k in range(weightings):
        code, reads, is_input, gate, offset, sampler, linear, centred, source, selects = flags[k]
        limit, distill, denoise, keep = numbers[k, 0], numbers[k, 4], numbers[k, 5], numbers[k, 6]
        for row in range(n):
            label = labels[row]
            floats[0, row, k], floats[1, row, k], floats[2, row, k] = 1.0, 1.0, 0.0
            floats[3, row, k] = label
            kept[row, k] = True
            if not learned[row]:
                continue
            if reads:
                missing[k, why[row]] += 1
            unsaid = why[row] != Missing.PRESENT and why[row] != Missing.LATE
            lacks = unsaid and (reads or (code == _PERMUTED and flags[source, 1]))
            if is_input:
                continue
            listens = not lacks and (gate < 0 or opened[slices[row], gate])
            if distill > 0.0 and listens:
                floats[3, row, k] = (1.0 - distill) * label + distill * r[row]
            elif denoise > 0.0 and listens and label == 1:
                floats[3, row, k] = r[row] / (r[row] + denoise)
            if code == _UNIFORM:
                continue
            w = 1.0
            if code == _PERMUTED:
                if not lacks:
                    w = _exchange(floats[0, row, source], label, q[row, k], slices[row] % COUNTS,
                                  mix(mix(_DRAW_SLOT, stream), items[row]), remembered[place])  # fmt: skip
            elif not lacks:
                drawn = mix(mix(_DRAW_RANDOM, stream), items[row])
                measure = measured(code, r[row], q[row, k], label, counts[row], drawn, around)
                if selects:
                    ranked[chosen, int(values[k, 0, COUNT] + values[k, 1, COUNT]) % EPOCH] = measure
                    kept[row, k] = not listens or now[k, STRENGTH] == 0.0 or measure >= bars[chosen]
                if not centred:
                    measure = min(max(measure, -limit), limit)
                value = values[k, label]
                value[COUNT] += 1.0
                value[SUM] += measure
                value[SQUARES] += measure * measure
                if listens:
                    counted[k, COUNT] += 1.0
                    counted[k, SUM] += exp(planned[k, STRENGTH] * _scaled(measure, planned[k], centred, limit))
                    w = _final(measure, now[k], centred, numbers[k])
                    if offset:
                        other = measured(code, r[row], q[row, k], 1 - label, counts[row], drawn)
                        against = _final(other, now[k], centred, numbers[k])
                        floats[2, row, k] = log(w / against) if label == 1 else log(against / w)
            if selects:
                continue
            if not lacks:
                _weigh_in(w, label, abs(q[row, k] - label), masses[k])
            if sampler:
                chance = min(1.0, max(LEAST_PI, keep * w))
                kept[row, k] = unit(mix(mix(_DRAW_SAMPLE, stream), items[row])) < chance
                floats[1, row, k] = 1.0 / chance
            else:
                floats[1 if linear else 0, row, k] = w
        if code == _PERMUTED:
            place += 1
        if selects:
            chosen += 1


@njit(cache=True, inline="always")
def _weigh_in(w: float, label: int, gradient: float, masses: NDArray[Any]) -> None:
    group = masses[POSITIVES if label == 1 else NEGATIVES]
    group[COUNT] += 1.0
    group[SUM] += w
    group[SQUARES] += w * w
    group = masses[GRADIENT]
    mass = gradient * gradient
    group[COUNT] += mass
    group[SUM] += w * mass
    group[SQUARES] += w * w * mass


@njit(cache=True)
def _exchange(
    w: float, label: int, q: float, counts: int, drawn: np.uint64, cells: NDArray[Any]
) -> float:  # fmt: skip
    """Put a weight into a cell of samples alike and take an earlier one out: a shuffle that needs no future."""
    p = _clipped(q)
    logit = log(p) - log1p(-p)
    place = int(min(max(logit + _Q_RANGES - 2, 0.0), _Q_RANGES - 1.0))
    slot = int(drawn % np.uint64(_REMEMBERED))
    taken = cells[label, place, counts, slot]
    cells[label, place, counts, slot] = w
    return float(taken)
