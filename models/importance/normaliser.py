"""What the past says of a weighting's measure: where its middle is, how strong it may be, what its weights sum to.

Time is cut into epochs of samples, and within one everything is frozen: a weight is a function of its sample and the
epoch. Strength and moments are settled one epoch before they are used; in between, the mean that the weights have under
them is counted, so that the normaliser is that of the very weights it divides.
"""

from __future__ import annotations

from math import ceil, inf, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heft.models.importance.weightings import Measure, Mode, Pipeline, Weighting

EPOCH = 10_000
"""Samples."""

HALF_LIFE = 50_000
"""Samples after which what was measured counts half."""

STOP = 0.25
"""Share of samples left in effect below which weights are 1 until warm again."""

_ENOUGH = 100
"""Weights that must have been counted before their mean divides; values of a class before its spread is believed."""

STRENGTH, CENTRE, SCALE, MEAN = range(4)
COUNT, SUM, SQUARES = range(3)
POSITIVES, NEGATIVES, GRADIENT = range(3)


def effective(masses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (sum w)^2 / (n sum w^2), the share of n samples left in effect, of masses [..., (n, sum, squares)].

    1 where nothing was counted. References: Kish 1965, Survey sampling, section 11.7.
    """
    n, total, squares = masses[..., COUNT], masses[..., SUM], masses[..., SQUARES]
    full = n * squares
    return np.asarray(np.divide(total * total, full, out=np.ones_like(total), where=full > 0))


def tempered(strength: float, spread: float, target: float) -> float:
    """Return the strength at which log-normal weights of log-deviation ``spread`` keep ``target`` of their samples.

    ESS / n = exp(-(strength spread)^2); never more than ``strength``; target 0 means none.

    Examples
    --------
    >>> tempered(1.0, 2.0, 0.5)
    0.41627730557884884
    """
    return strength if target <= 0.0 or spread <= 0.0 else min(strength, sqrt(-log(target)) / spread)


def bar(values: NDArray[np.float64], keep: float) -> float:
    """Return the value that a share ``keep`` of ``values`` [n] reaches; negative infinity if all do.

    Examples
    --------
    >>> bar(np.array([3.0, 1.0, 4.0, 2.0]), 0.25)
    4.0
    """
    left_out = values.size - ceil(keep * values.size)
    return float(np.partition(values, left_out)[left_out]) if left_out else -inf


class Normaliser:
    """Statistics of K weightings' measures, past only.

    The compiled weighing reads `now`, `planned` and `bars` and adds to the others; `turn` ends an epoch.

    Parameters
    ----------
    weightings
        K weightings, in the order of every array.

    Attributes
    ----------
    now : float64 [K, 4]
        Strength, centre, inverse scale, mean weight: what weights are made with in this epoch.
    planned : float64 [K, 3]
        Strength, centre, inverse scale that come next.
    values : float64 [K, 2, 3]
        Count, sum and sum of squares of F in this epoch, by label.
    counted : float64 [K, 3]
        Count and sum of raw weights under `planned`.
    masses : float64 [K, 3, 3]
        Count, sum and sum of squares of the weights of positives, of negatives, and of all, where a sample counts by
        the square of its gradient |q - y|. Samples that nothing was measured of, since their score is missing, are in
        none of the three.
    ess : float64 [K, 3]
        Share of the measured samples left in effect over the last epoch: of positives, of negatives, of squared
        gradient; 1 where there was none.
    bars : float64 [S]
        What F must reach to be selected, by the last epoch, of the S weightings that select, in their order; negative
        infinity: everything is.
    ranked : float64 [S, EPOCH]
        Their F in this epoch, the last ones where there were more.
    """

    def __init__(self, weightings: tuple[Weighting, ...]) -> None:
        self._weightings = weightings
        many = len(weightings)
        self.now = np.tile([0.0, 0.0, 1.0, 1.0], (many, 1))
        self.values = np.zeros((many, 2, 3))
        self.counted = np.zeros((many, 3))
        self.masses = np.zeros((many, 3, 3))
        self.ess = np.ones((many, 3))
        self._selects = [k for k, weighting in enumerate(weightings) if weighting.mode is Mode.SELECT]
        self.bars = np.full(len(self._selects), -inf)
        self.ranked = np.zeros((len(self._selects), EPOCH))
        self._moments = np.zeros((many, 2, 3))
        self._warm = np.zeros(many)
        self.planned = np.array([self._plan(k) for k in range(many)])
        pipes = [weighting.pipeline for weighting in weightings]
        self._waits = np.array([bool(pipe.standardise or pipe.normalise or pipe.ess_target) for pipe in pipes])
        for k in np.flatnonzero(~self._waits).tolist():  # nothing of it waits for the past
            self.now[k, :MEAN] = self.planned[k] = self._plan(k, ahead=0)

    def forget(self, weightings: NDArray[np.bool_]) -> None:
        """Let some weightings [K] weigh nothing until their measures have been met anew: the reference is another one.

        That is the rest of this epoch and the next one; then they go on at the strength that the schedule had reached.
        """
        self._moments[weightings] = self.values[weightings] = self.counted[weightings] = 0.0
        for k in np.flatnonzero(weightings & self._waits).tolist():
            self.now[k] = 0.0, 0.0, 1.0, 1.0
            self.planned[k] = 0.0, 0.0, 1.0
        for place, k in enumerate(self._selects):
            if weightings[k]:
                self.bars[place] = -inf

    def turn(self, samples: int) -> None:
        """End an epoch of so many samples: what was planned is used, and the next is planned."""
        fade = 0.5 ** (samples / HALF_LIFE)
        self._moments = fade * self._moments + self.values
        self._warm += self.values[:, :, COUNT].sum(axis=1)
        self.ess = effective(self.masses)
        for place, k in enumerate(self._selects):
            measured = min(int(self.values[k, :, COUNT].sum()), EPOCH)
            if measured >= _ENOUGH:
                self.bars[place] = bar(self.ranked[place, :measured], self._weightings[k].keep)
        for k, weighting in enumerate(self._weightings):
            if weighting.pipeline.ess_target and self.ess[k, :GRADIENT].min() < STOP:
                self._warm[k] = 0.0
                self.now[k] = 0.0, 0.0, 1.0, 1.0
            elif self.counted[k, COUNT] >= _ENOUGH:
                self.now[k, :MEAN] = self.planned[k]
                mean = self.counted[k, SUM] / self.counted[k, COUNT]
                self.now[k, MEAN] = mean if weighting.pipeline.normalise and mean > 0.0 else 1.0
            else:
                continue
            self.planned[k] = self._plan(k)
            self.counted[k] = 0.0
        self.values[:] = 0.0
        self.masses[:] = 0.0

    def _plan(self, k: int, ahead: int = EPOCH) -> tuple[float, float, float]:
        """Return strength, centre and inverse scale for the epoch that begins ``ahead`` samples from now."""
        weighting, pipe = self._weightings[k], self._weightings[k].pipeline
        centre, scale = 0.0, 1.0
        if standardised(weighting):
            n, total, squares = self._moments[k].sum(axis=0).tolist()
            if n < _ENOUGH:
                return 0.0, 0.0, 1.0
            centre = total / n
            deviation = sqrt(max(squares / n - centre * centre, 0.0))
            # Below a millionth of the centre, a deviation from sums of squares is rounding.
            scale = 1.0 / deviation if deviation > 1e-6 * max(1.0, abs(centre)) else 0.0
        most = tempered(weighting.strength, self._spread(k) * scale, pipe.ess_target)
        return self._warmth(k, pipe, ahead) * most, centre, scale

    def _warmth(self, k: int, pipe: Pipeline, ahead: int) -> float:
        """Return the share of the full strength that the schedule allows."""
        past = self._warm[k] + ahead - pipe.quiet
        if past < 0:
            return 0.0
        return 1.0 if pipe.ramp == 0 else min(1.0, past / pipe.ramp)

    def _spread(self, k: int) -> float:
        """Return the deviation of F among positives or among negatives, the larger."""
        most = 0.0
        for n, total, squares in self._moments[k].tolist():
            if n >= _ENOUGH:
                most = max(most, squares / n - (total / n) ** 2)
        return sqrt(most)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that future weights depend on."""
        names = ("now", "planned", "values", "counted", "masses", "ess", "bars", "ranked", "_moments", "_warm")
        return {name: getattr(self, name).copy() for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same weightings."""
        for name, value in state.items():
            setattr(self, name, value.copy())


def standardised(weighting: Weighting) -> bool:
    """Whether F is centred and scaled; the zero of a `rho` measure means that there is nothing to learn."""
    return weighting.pipeline.standardise and weighting.measure not in (Measure.RHO, Measure.RHO_RELU)
