"""The teacher's scores of a slate, and what its logit is worth here: `TeacherCalibration`.

A teacher reads text. It knows nothing of the place an item was shown at, and its base rate is that of its own data. So
its logit z is never used as it is, but as r = sigmoid(a z + b[surface] + c[place]), fitted as labels come, unweighted.
A new version of the teacher is calibrated beside the one in use where both score, and takes over once it has seen
enough samples. At the first takeover the arms that read the teacher are reset, and so they are at a later one if the
new version's logits spread much more or much less than those of the version before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.bounded_names import BoundedNames
from heft.models.features.vectors import item_hash
from heft.models.records import ReferenceScore, data_ends_ms

SETTLED_SAMPLES = {"click": 10_000, "order": 1_000}
SETTLED_POSITIVES = 100
"""Samples and positives a version must have been calibrated on before it is used; for orders, samples are clicks."""

VERSIONS = 2
"""Versions of the teacher whose scores of one slate are kept: the one in use, and the one that will follow it."""

# Logits. A teacher whose calibrated logits spread less tells next to nothing; dividing by its spread would give noise.
_LEAST_UNIT = 0.05
# Arms continue under a new version if its spread is at most this many times larger or smaller than their unit.
_CONTINUE_WITHIN = 3.0
# A larger logit means no more certainty, and one sample with a large wrong logit would bend the slope for long.
_MOST_LOGIT = 15.0
_RETIRED = 8  # versions remembered as having been in use

PLACES = 12
"""Half octaves of the position, the last one open."""

SURFACES = 8
"""Surfaces with an intercept of their own, in the order they come, and one more that all others share."""

_SLOPE, _FIRST_PLACE, _FIRST_SURFACE = 0, 1, 1 + PLACES
_SIZE = 1 + PLACES + SURFACES
_PRIOR_VARIANCE = np.array([0.1] + [4.0] * (PLACES + SURFACES))
# Variance added for each sample: with one click in thirty, what was learned 100,000 samples ago counts half.
_DRIFT = 3e-9


class Missing(IntEnum):
    """Whether a sample has a reference score, and why not.

    ============= ============================================= ============== ==================
    reason        what happened                                 weights, soft  inputs of arms,
                                                                labels use it  as when served
    ============= ============================================= ============== ==================
    PRESENT       the score was known when the slate was shown  yes            yes
    ABSENT        none came before the click window closed      no             no
    LATE          it came after the slate was shown             yes            no
    OTHER_VERSION it is from a teacher that is not in use       no             no
    IN_SAMPLE     the slate was shown before the teacher's data no             no
                  ends, so the teacher may know the label
    INVALID       the calibrated score is no probability        no             no
    ============= ============================================= ============== ==================
    """

    PRESENT = 0
    ABSENT = 1
    LATE = 2
    OTHER_VERSION = 3
    IN_SAMPLE = 4
    INVALID = 5


class VersionScores(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The scores that one version of the teacher gave to the n items of a slate."""

    version: str
    """Digest of the teacher, ``@``, and the time its data ends in milliseconds; empty: no version scored the slate."""
    click: NDArray[np.float64]
    """Logits of a click [n], within 15 of 0; NaN where missing."""
    order: NDArray[np.float64]
    """Logits of an order after a click [n], within 15 of 0; NaN where missing."""
    missing: NDArray[np.uint8]
    """`Missing` [n]: PRESENT, ABSENT, LATE or OTHER_VERSION."""

    @classmethod
    def none(cls, n: int, version: str) -> VersionScores:
        """Return n absent scores."""
        nothing = np.full(n, np.nan)
        return cls(version, nothing, nothing, np.full(n, Missing.ABSENT, np.uint8))

    def joined(self, rows: dict[int, int], scores: Sequence[ReferenceScore], as_: Missing) -> VersionScores:
        """Return these scores and further ones of the same version, marked ``as_``; scores that were on time stay.

        ``rows`` gives the row of each item hash.
        """
        click, order, missing = self.click.copy(), self.order.copy(), self.missing.copy()
        for score in scores:
            row = rows.get(item_hash(score.item_id))
            if row is None or missing[row] == Missing.PRESENT:
                continue
            click[row] = _logit(score.logit_256)
            order[row] = np.nan if score.order_256 is None else _logit(score.order_256)
            missing[row] = as_
        return VersionScores(self.version, click, order, missing)

    def logits(self, label: Literal["click", "order"]) -> NDArray[np.float64]:
        """Return the logits of one label [n]."""
        return self.click if label == "click" else self.order

    def one(self, row: int) -> VersionScores:
        """Return one row alone."""
        rows = slice(row, row + 1)
        return VersionScores(self.version, self.click[rows].copy(), self.order[rows].copy(), self.missing[rows].copy())

    def state(self) -> tuple[Any, ...]:
        """Return a string and arrays; ``VersionScores(*state)`` is the same again."""
        return self.version, self.click, self.order, self.missing


def _logit(steps: int) -> float:
    return min(max(steps / 256.0, -_MOST_LOGIT), _MOST_LOGIT)


TeacherScores: TypeAlias = tuple[VersionScores, ...]
"""A slate's scores by each version of the teacher, in the order in which versions came: the last `VERSIONS`."""


def scores_on_time(items: NDArray[np.uint64], scores: Sequence[ReferenceScore]) -> TeacherScores:
    """Return the scores that were known when a slate of ``items`` [n] (hashes) was shown."""
    return _joined((), items, [score for score in scores if score.on_time], Missing.PRESENT)


def scores_at_close(
    on_time: TeacherScores, items: NDArray[np.uint64], scores: Sequence[ReferenceScore]
) -> TeacherScores:
    """Return the scores that were on time, and those attached when the slate closed.

    Scores attached at close are always late, even if their own flag says on time.
    """
    return _joined(on_time, items, scores, Missing.LATE)


def _joined(
    known: TeacherScores, items: NDArray[np.uint64], scores: Sequence[ReferenceScore], as_: Missing
) -> TeacherScores:
    if not scores:
        return known
    by_version = {each.version: each for each in known}
    rows = {item: row for row, item in enumerate(items.tolist())}
    for version in dict.fromkeys(score.version for score in scores):
        before = by_version.get(version) or VersionScores.none(len(items), version)
        by_version[version] = before.joined(rows, [score for score in scores if score.version == version], as_)
    return tuple(by_version.values())[-VERSIONS:]


class _Calibration:
    """One version's slope and intercepts, with their covariance: the extended Kalman filter of logistic regression."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.theta = np.zeros(_SIZE)
        self.theta[_SLOPE] = 1.0
        self.covariance = np.diag(_PRIOR_VARIANCE)
        self.moments = np.zeros(4)
        """Samples, positives, sums of z and of its square."""

    @property
    def samples(self) -> float:
        return float(self.moments[0])

    @property
    def positives(self) -> float:
        return float(self.moments[1])

    @property
    def slope(self) -> float:
        return float(self.theta[_SLOPE])

    @property
    def centre(self) -> float:
        return float(self.moments[2] / self.moments[0])

    @property
    def spread(self) -> float:
        """Standard deviation of its calibrated logits."""
        squares = float(self.moments[3]) / self.samples
        return float(abs(self.slope) * max(squares - self.centre**2, 0.0) ** 0.5)

    def state(self) -> tuple[Any, ...]:
        return self.version, self.theta.copy(), self.covariance.copy(), self.moments.copy()

    @classmethod
    def restore(cls, state: Sequence[Any]) -> _Calibration:
        one = cls(state[0])
        one.theta, one.covariance, one.moments = (np.array(each) for each in state[1:])
        return one


class Takeover(IntEnum):
    """Whether a new version of the teacher takes over, and what becomes of the arms that read the reference then."""

    NONE = 0
    """No version took over."""
    RESET = 1
    """The arms begin anew: it is the first version, or its logits spread much more or much less than the last one's."""
    CONTINUE = 2
    """The arms go on, since the new inputs mean the same in the same unit. An arm with a fixed offset begins anew."""


class TeacherCalibration:
    """What the teacher's logits are worth to one head of one stream.

    Parameters
    ----------
    label
        Which of the teacher's logits are for this head.

    Attributes
    ----------
    takeovers : int
        How many versions have taken over.
    unit : float
        How many calibrated logits one unit of `inputs` is; it changes only when the arms are reset.
    """

    def __init__(self, label: Literal["click", "order"] = "click") -> None:
        self.takeovers = 0
        self.unit = 1.0
        self._label: Literal["click", "order"] = label
        self._centre, self._slope = 0.0, 1.0
        self._current = _Calibration("")
        self._coming: dict[str, _Calibration] = {}
        self._retired: list[str] = []
        self._surfaces = BoundedNames(SURFACES - 1)

    @property
    def version(self) -> str:
        """The version in use; empty before the first took over."""
        return self._current.version

    @property
    def slope(self) -> float:
        """The slope a of sigmoid(a z + ...) of the version in use; near 0, the teacher tells nothing here."""
        return self._current.slope

    def of(self, scores: TeacherScores) -> VersionScores:
        """Return a slate's scores by the version in use, else by the newest version, which `why` then refuses.

        ``scores`` must not be empty. Where only other versions scored an item, its reason becomes `OTHER_VERSION`.
        """
        mine = next((each for each in scores if each.version == self.version), scores[-1])
        if len(scores) == 1 or mine.version != self.version:
            return mine
        scored = np.any([each.missing != Missing.ABSENT for each in scores], axis=0)
        missing = np.where(scored & (mine.missing == Missing.ABSENT), np.uint8(Missing.OTHER_VERSION), mine.missing)
        return VersionScores(mine.version, mine.click, mine.order, missing)

    def why(self, scores: VersionScores, at_ms: int) -> NDArray[np.uint8]:
        """Return `Missing` for each row [n] of a slate that was shown at ``at_ms``."""
        if not scores.version:
            return scores.missing
        missing = scores.missing
        if scores.version != self.version:
            missing = np.where(missing == Missing.ABSENT, missing, np.uint8(Missing.OTHER_VERSION))
        if at_ms <= data_ends_ms(scores.version):
            missing = np.where(missing == Missing.ABSENT, missing, np.uint8(Missing.IN_SAMPLE))
        return missing

    def inputs(self, z: NDArray[np.float64], why: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the inputs of arms from logits [n]: calibrated and centred, in units of `unit`; NaN where missing.

        Slope and centre are those with which the version took over, so that a number means the same from then on.
        """
        usable = (why == Missing.PRESENT) & (self.takeovers > 0)
        return np.where(usable, self._slope * (z - self._centre) / self.unit, np.nan).astype(np.float32)

    def probability(self, z: NDArray[np.float64], positions: NDArray[np.uint16], surface: str) -> NDArray[np.float64]:
        """Return r [n] of logits [n]; NaN where there is none."""
        return np.asarray(_probability(self._current.theta, z, positions, self._surfaces.place(surface)))

    def learn(
        self,
        scores: TeacherScores,
        labels: NDArray[np.uint8],
        learned: NDArray[np.bool_],
        positions: NDArray[np.uint16],
        surface: str,
        at_ms: int,
    ) -> Takeover:
        """Learn from the rows of a slate that are samples and have a score; return whether a new version takes over.

        A retired version comes back only if the version that followed it scores no more. Otherwise, two hosts that
        score with different teachers would take over from each other for ever.

        Parameters
        ----------
        scores
            Those of each version.
        labels, learned, positions
            [n] 0 or 1, whether the row is a sample, the position shown.
        surface, at_ms
            Where and when (milliseconds since the epoch) the slate was shown.
        """
        place = self._surfaces.place(surface)
        usable = [each for each in scores if at_ms > data_ends_ms(each.version)]
        versions = {each.version for each in usable}
        for each in usable:
            which, z = self._calibration(each.version, versions), each.logits(self._label)
            _learn(which.theta, which.covariance, which.moments, z, labels, learned, positions, place)
        for each in reversed(usable):  # the newest first
            if each.version in self._coming and self._settled(self._coming[each.version]):
                return self._take_over(each.version)
        return Takeover.NONE

    def _calibration(self, version: str, scoring: set[str]) -> _Calibration:
        """Return a version's calibration. Of versions to come, few are kept: first those ``scoring`` this slate."""
        if version == self.version:
            # Its scores still come, so no retired version may come back.
            for back in [coming for coming in self._coming if coming in self._retired]:
                del self._coming[back]
            return self._current
        if version not in self._coming:
            silent = [coming for coming in self._coming if coming not in scoring]
            for other in silent[: max(0, len(self._coming) - VERSIONS + 1)]:
                del self._coming[other]
            self._coming[version] = _Calibration(version)
        return self._coming[version]

    def _settled(self, which: _Calibration) -> bool:
        return which.samples >= SETTLED_SAMPLES[self._label] and which.positives >= SETTLED_POSITIVES

    def _take_over(self, version: str) -> Takeover:
        before = [self.version] if self.version else []
        earlier = list(self._coming)[: list(self._coming).index(version)]
        self._retired = [*self._retired, *before, *earlier][-_RETIRED:]
        self._current = self._coming[version]
        self._coming = {}
        self._centre, self._slope = self._current.centre, self._current.slope
        spread = max(self._current.spread, _LEAST_UNIT)
        self.takeovers += 1
        if self.takeovers > 1 and self.unit / _CONTINUE_WITHIN <= spread <= self.unit * _CONTINUE_WITHIN:
            return Takeover.CONTINUE
        self.unit = spread
        return Takeover.RESET

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that future inputs and probabilities depend on."""
        return {
            "takeovers": self.takeovers,
            "unit": self.unit,
            "centre": self._centre,
            "slope": self._slope,
            "current": self._current.state(),
            "coming": [coming.state() for coming in self._coming.values()],
            "retired": list(self._retired),
            "surfaces": self._surfaces.names,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.takeovers, self.unit = int(state["takeovers"]), float(state["unit"])
        self._centre, self._slope = float(state["centre"]), float(state["slope"])
        self._current = _Calibration.restore(state["current"])
        self._coming = {one[0]: _Calibration.restore(one) for one in state["coming"]}
        self._retired = list(state["retired"])
        self._surfaces = BoundedNames(SURFACES - 1, state["surfaces"])


@njit(cache=True, inline="always")
def _place(position: int) -> int:
    return int(min(2.0 * np.log2(1.0 + position), PLACES - 1.0))


@njit(cache=True)
def _probability(
    theta: NDArray[Any], z: NDArray[Any], positions: NDArray[Any], surface: int
) -> NDArray[np.float64]:  # fmt: skip
    out = np.empty(z.size)
    for row in range(z.size):
        place = _FIRST_PLACE + _place(positions[row])
        out[row] = 1.0 / (1.0 + np.exp(-(theta[_SLOPE] * z[row] + theta[place] + theta[_FIRST_SURFACE + surface])))
    return out


@njit(cache=True)
def _learn(
    theta: NDArray[Any], covariance: NDArray[Any], moments: NDArray[Any], z: NDArray[Any], labels: NDArray[Any],
    learned: NDArray[Any], positions: NDArray[Any], surface: int,
) -> None:  # fmt: skip
    """Make one step of the filter for each row: theta += P x (y - p) / (1 + v x P x), where v = p (1 - p).

    Only three entries of x are not 0: the logit at the slope, and 1 at the place and at the surface.
    """
    at = np.empty(3, np.int64)
    x = np.ones(3)
    px = np.empty(theta.size)
    at[0], at[2] = _SLOPE, _FIRST_SURFACE + surface
    for row in range(z.size):
        if not learned[row] or np.isnan(z[row]):
            continue
        at[1], x[0] = _FIRST_PLACE + _place(positions[row]), z[row]
        moments += np.array([1.0, labels[row], z[row], z[row] * z[row]])
        logit = 0.0
        for i in range(3):
            covariance[at[i], at[i]] += _DRIFT
            logit += theta[at[i]] * x[i]
        for j in range(theta.size):
            px[j] = covariance[j, at[0]] * x[0] + covariance[j, at[1]] + covariance[j, at[2]]
        p = 1.0 / (1.0 + np.exp(-logit))
        v = p * (1.0 - p)
        spread = 1.0 + v * (px[at[0]] * x[0] + px[at[1]] + px[at[2]])
        for j in range(theta.size):
            theta[j] += px[j] * (labels[row] - p) / spread
            for i in range(theta.size):
                covariance[j, i] -= v * px[j] * px[i] / spread
