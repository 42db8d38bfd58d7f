"""What the past says of a weighting's measure: where its centre is, how strong it may be, the mean of its weights.

Samples are counted in epochs, and within an epoch everything is frozen: a weight is a function of its sample and the
epoch. Strength, centre and scale are fixed one epoch before they are used. During that epoch, the mean of the weights
that they would give is counted. So the mean that divides the weights is a mean of weights made in the same way.
"""

from __future__ import annotations

from math import ceil, inf, log, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heft.models.importance.weightings import Measure, Mode, Pipeline, Weighting

EPOCH = 10_000
"""Samples."""

HALF_LIFE = 50_000
"""Samples after which what was measured counts half."""

STOP = 0.25
"""If a smaller share of the samples than this is left in effect, weights are 1 and the warm-up starts over."""

_ENOUGH = 100
"""Weights that must have been counted before their mean is used, and values of a label before their spread is."""

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


class Statistics(NamedTuple):
    """The arrays that compiled weighing reads and adds to, for K weightings. Built once, changed in place."""

    now: NDArray[np.float64]
    """[K, 4] strength, centre, inverse scale and mean weight: what weights are made with in this epoch."""
    planned: NDArray[np.float64]
    """[K, 3] strength, centre and inverse scale of the next epoch."""
    values: NDArray[np.float64]
    """[K, 2, 3] count, sum and sum of squares of F in this epoch, by label."""
    counted: NDArray[np.float64]
    """[K, 3] count and sum of the raw weights that ``planned`` gives."""
    masses: NDArray[np.float64]
    """[K, 3, 3] count, sum and sum of squares of weights: of positives, of negatives, and of all samples, where each
    counts by the square of its gradient |q - y|. Samples whose score is missing are in none of the three."""
    bars: NDArray[np.float64]
    """[S] what F must reach to be selected, of the S weightings that select; negative infinity: all are selected."""
    ranked: NDArray[np.float64]
    """[S, EPOCH] their F in this epoch; the last ones if there were more."""


class Normaliser:
    """Statistics of K weightings' measures. Weights depend on past epochs only.

    Compiled weighing reads and fills `statistics`; `turn` ends an epoch.

    Parameters
    ----------
    weightings
        K weightings, in the order of every array.

    Attributes
    ----------
    statistics : Statistics
        Of this epoch and the next.
    ess : float64 [K, 3]
        Share of the measured samples left in effect over the last epoch: of positives, of negatives, of squared
        gradients; 1 where there was none.
    """

    def __init__(self, weightings: tuple[Weighting, ...]) -> None:
        self._weightings = weightings
        many = len(weightings)
        self._selects = [k for k, weighting in enumerate(weightings) if weighting.mode is Mode.SELECT]
        self.ess = np.ones((many, 3))
        self._moments = np.zeros((many, 2, 3))
        self._warm = np.zeros(many)
        self.statistics = Statistics(
            now=np.tile([0.0, 0.0, 1.0, 1.0], (many, 1)),
            planned=np.array([self._plan(k) for k in range(many)]),
            values=np.zeros((many, 2, 3)),
            counted=np.zeros((many, 3)),
            masses=np.zeros((many, 3, 3)),
            bars=np.full(len(self._selects), -inf),
            ranked=np.zeros((len(self._selects), EPOCH)),
        )
        pipes = [weighting.pipeline for weighting in weightings]
        self._waits = np.array([bool(pipe.standardise or pipe.normalise or pipe.ess_target) for pipe in pipes])
        for k in np.flatnonzero(~self._waits).tolist():  # nothing about these depends on the past
            self.statistics.now[k, :MEAN] = self.statistics.planned[k] = self._plan(k, ahead=0)

    def forget(self, weightings: NDArray[np.bool_]) -> None:
        """Forget the statistics of some weightings [K], because the reference has become another one.

        Their weights are 1 for the rest of this epoch and the next one. Then they go on at the strength that the
        schedule had reached.
        """
        stats = self.statistics
        self._moments[weightings] = stats.values[weightings] = stats.counted[weightings] = 0.0
        for k in np.flatnonzero(weightings & self._waits).tolist():
            stats.now[k] = 0.0, 0.0, 1.0, 1.0
            stats.planned[k] = 0.0, 0.0, 1.0
        for place, k in enumerate(self._selects):
            if weightings[k]:
                stats.bars[place] = -inf

    def turn(self, samples: int) -> None:
        """End an epoch of so many samples: use what was planned, and plan the next epoch."""
        stats = self.statistics
        fade = 0.5 ** (samples / HALF_LIFE)
        self._moments = fade * self._moments + stats.values
        self._warm += stats.values[:, :, COUNT].sum(axis=1)
        self.ess = effective(stats.masses)
        for place, k in enumerate(self._selects):
            measured = min(int(stats.values[k, :, COUNT].sum()), EPOCH)
            if measured >= _ENOUGH:
                stats.bars[place] = bar(stats.ranked[place, :measured], self._weightings[k].keep)
        for k, weighting in enumerate(self._weightings):
            if weighting.pipeline.ess_target and self.ess[k, :GRADIENT].min() < STOP:
                self._warm[k] = 0.0
                stats.now[k] = 0.0, 0.0, 1.0, 1.0
            elif stats.counted[k, COUNT] >= _ENOUGH:
                stats.now[k, :MEAN] = stats.planned[k]
                mean = stats.counted[k, SUM] / stats.counted[k, COUNT]
                stats.now[k, MEAN] = mean if weighting.pipeline.normalise and mean > 0.0 else 1.0
            else:
                continue
            stats.planned[k] = self._plan(k)
            stats.counted[k] = 0.0
        stats.values[:] = 0.0
        stats.masses[:] = 0.0

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
        own = {"ess": self.ess, "_moments": self._moments, "_warm": self._warm}
        return {name: array.copy() for name, array in (self.statistics._asdict() | own).items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same weightings."""
        for name, array in self.statistics._asdict().items():
            array[...] = state[name]
        self.ess, self._moments, self._warm = (state[name].copy() for name in ("ess", "_moments", "_warm"))


def standardised(weighting: Weighting) -> bool:
    """Tell whether F is centred and scaled. `rho` measures keep their zero: it means that there is nothing to learn."""
    return weighting.pipeline.standardise and weighting.measure not in (Measure.RHO, Measure.RHO_RELU)
