"""What a teacher's logit is worth here: which scores may be used, calibrated for place and surface on plain traffic.

A teacher reads text. It knows nothing of the place an item was shown at, and its base rate is that of its own data. So
its logit z is never used as it is: r = sigmoid(a z + b[surface] + c[place]), fitted as labels come, unweighted. A new
version of the teacher is calibrated in shadow, beside the old one where both score, and takes over once it has seen
enough. The first one to do so is when the arms that read it are *born*.
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
"""What a version must have been calibrated on before it is used; of an order, samples are clicks."""

VERSIONS = 2
"""Of the teacher that are listened to in one slate: the one in use, and the one that is to come."""

_LEAST_UNIT = 0.05  # logits; below, a teacher tells next to nothing, and dividing by it would make noise of it
_GOES_ON = 3.0  # a new version may say as much as the one before it, or so many times more or less
_MOST_LOGIT = 15.0  # beyond, nothing is more certain, and one sample that it is wrong of would bend the slope for long
_RETIRED = 8  # versions that are remembered as such

PLACES = 12
"""Half octaves of the position, the last one open."""

SURFACES = 8
"""BoundedNames kept apart, in the order they come; the last place is shared by all others."""

_SLOPE, _FIRST_PLACE, _FIRST_SURFACE = 0, 1, 1 + PLACES
_SIZE = 1 + PLACES + SURFACES
_PRIOR_VARIANCE = np.array([0.1] + [4.0] * (PLACES + SURFACES))
# Per sample: with a click in thirty, what was learned 100,000 samples ago counts half.
_DRIFT = 3e-9


class Missing(IntEnum):
    """Why a sample has no reference score."""

    PRESENT = 0
    ABSENT = 1
    """None came before the window closed."""
    LATE = 2
    """It came, but too late to be an input at serving; weights and soft labels use it."""
    OTHER_VERSION = 3
    """Of another teacher."""
    IN_SAMPLE = 4
    """Shown before the teacher's data ends: it may have learned the label."""
    INVALID = 5
    """Not a probability."""


class Scores(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What one version of the teacher said of a slate's n items."""

    version: str
    """Digest of the teacher, ``@``, and the time its data ends, in milliseconds; empty: nothing was said."""
    click: NDArray[np.float64]
    """Logits of a click [n], within 15 of 0; NaN where missing."""
    order: NDArray[np.float64]
    """Logits of an order after a click [n]; NaN where missing."""
    missing: NDArray[np.uint8]
    """`Missing` [n]: present, absent, late, or of another version."""

    @classmethod
    def none(cls, n: int, version: str) -> Scores:
        """Return what is known of n items that a version said nothing of."""
        nothing = np.full(n, np.nan)
        return cls(version, nothing, nothing, np.full(n, Missing.ABSENT, np.uint8))

    def joined(self, rows: dict[int, int], scores: Sequence[ReferenceScore], as_: Missing) -> Scores:
        """Return these and more of the same version; what was said in time stays. ``rows``: those of item hashes."""
        click, order, missing = self.click.copy(), self.order.copy(), self.missing.copy()
        for score in scores:
            row = rows.get(item_hash(score.item_id))
            if row is None or missing[row] == Missing.PRESENT:
                continue
            click[row] = _logit(score.logit_256)
            order[row] = np.nan if score.order_256 is None else _logit(score.order_256)
            missing[row] = as_
        return Scores(self.version, click, order, missing)

    def logits(self, label: Literal["click", "order"]) -> NDArray[np.float64]:
        """Return the logits of one label [n]."""
        return self.click if label == "click" else self.order

    def one(self, row: int) -> Scores:
        """Return one row alone."""
        rows = slice(row, row + 1)
        return Scores(self.version, self.click[rows].copy(), self.order[rows].copy(), self.missing[rows].copy())

    def state(self) -> tuple[Any, ...]:
        """Return a string and arrays; ``Scores(*state)`` is the same again."""
        return self.version, self.click, self.order, self.missing


def _logit(steps: int) -> float:
    return min(max(steps / 256.0, -_MOST_LOGIT), _MOST_LOGIT)


TeacherScores: TypeAlias = tuple[Scores, ...]
"""What each version of the teacher said of a slate, in the order in which they came; the last `VERSIONS` of them."""


def scores_on_time(items: NDArray[np.uint64], scores: Sequence[ReferenceScore]) -> TeacherScores:
    """Return what was said in time of items [n], given by their hashes."""
    return _told((), items, [score for score in scores if score.on_time], Missing.PRESENT)


def scores_at_close(told: TeacherScores, items: NDArray[np.uint64], scores: Sequence[ReferenceScore]) -> TeacherScores:
    """Return that and what else has come by the time the slate closed, which is late whatever it says of itself."""
    return _told(told, items, scores, Missing.LATE)


def _told(
    told: TeacherScores, items: NDArray[np.uint64], scores: Sequence[ReferenceScore], as_: Missing
) -> TeacherScores:
    if not scores:
        return told
    by_version = {each.version: each for each in told}
    rows = {item: row for row, item in enumerate(items.tolist())}
    for version in dict.fromkeys(score.version for score in scores):
        known = by_version.get(version) or Scores.none(len(items), version)
        by_version[version] = known.joined(rows, [score for score in scores if score.version == version], as_)
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
        """Standard deviation of what it says, in calibrated logits."""
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
    """What becomes of the arms that read the reference when a version of it takes over."""

    NONE = 0
    """None took over."""
    ANEW = 1
    """They begin anew: there was none before, or it said much more or much less."""
    ON = 2
    """They go on: what the new one says means the same, in the same unit. An arm with a fixed offset begins anew."""


class TeacherCalibration:
    """The teacher as one head of one stream sees it.

    Parameters
    ----------
    label
        Which of its logits are for this head.

    Attributes
    ----------
    takeovers : int
        How many versions have taken over.
    unit : float
        Calibrated logits that one unit of `inputs` means, since the arms last began anew.
    """

    def __init__(self, label: Literal["click", "order"] = "click") -> None:
        self.takeovers = 0
        self.unit = 1.0
        self._label = label
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
        """The a of sigmoid(a z + ...) of the version in use: near 0, the teacher tells nothing here."""
        return self._current.slope

    def of(self, told: TeacherScores) -> Scores:
        """Return what the version in use said of a slate, of which something was; or another, which `why` refuses."""
        mine = next((scores for scores in told if scores.version == self.version), told[-1])
        if len(told) == 1 or mine.version != self.version:
            return mine
        said = np.any([scores.missing != Missing.ABSENT for scores in told], axis=0)
        missing = np.where(said & (mine.missing == Missing.ABSENT), np.uint8(Missing.OTHER_VERSION), mine.missing)
        return Scores(mine.version, mine.click, mine.order, missing)

    def why(self, scores: Scores, at_ms: int) -> NDArray[np.uint8]:
        """Return for each row of a slate why its score may not be used, `Missing` [n]."""
        if not scores.version:
            return scores.missing
        missing = scores.missing
        if scores.version != self.version:
            missing = np.where(missing == Missing.ABSENT, missing, np.uint8(Missing.OTHER_VERSION))
        if at_ms <= data_ends_ms(scores.version):
            missing = np.where(missing == Missing.ABSENT, missing, np.uint8(Missing.IN_SAMPLE))
        return missing

    def inputs(self, z: NDArray[np.float64], why: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what arms take in of logits [n]: calibrated and centred, in units of `unit`; NaN where they sleep.

        Slope and centre are those with which the version took over, so that a number means the same from then on.
        """
        usable = (why == Missing.PRESENT) & (self.takeovers > 0)
        return np.where(usable, self._slope * (z - self._centre) / self.unit, np.nan).astype(np.float32)

    def probability(self, z: NDArray[np.float64], positions: NDArray[np.uint16], surface: str) -> NDArray[np.float64]:
        """Return r [n] of logits [n]; NaN where there is none."""
        return np.asarray(_probability(self._current.theta, z, positions, self._surfaces.place(surface)))

    def learn(
        self,
        told: TeacherScores,
        labels: NDArray[np.uint8],
        learned: NDArray[np.bool_],
        positions: NDArray[np.uint16],
        surface: str,
        at_ms: int,
    ) -> Takeover:
        """Learn from the rows of a slate that are samples and have a score; tell whether a new version takes over.

        A version that was in use before, and that another took over from, comes back only if nothing is heard of that
        one: two hosts that score with different teachers would take over from each other for ever.

        Parameters
        ----------
        told
            What each version said.
        labels, learned, positions
            [n]
        surface, at_ms
            Where and when the slate was shown.
        """
        place = self._surfaces.place(surface)
        heard = [scores for scores in told if at_ms > data_ends_ms(scores.version)]
        versions = {scores.version for scores in heard}
        for scores in heard:
            which, z = self._calibration(scores.version, versions), scores.logits(self._label)
            _learn(which.theta, which.covariance, which.moments, z, labels, learned, positions, place)
        for scores in reversed(heard):  # the newest first
            if scores.version in self._coming and self._settled(self._coming[scores.version]):
                return self._take_over(scores.version)
        return Takeover.NONE

    def _calibration(self, version: str, heard: set[str]) -> _Calibration:
        if version == self.version:
            for back in [coming for coming in self._coming if coming in self._retired]:
                del self._coming[back]
            return self._current
        if version not in self._coming:
            unheard = [coming for coming in self._coming if coming not in heard]
            for other in unheard[: max(0, len(self._coming) - VERSIONS + 1)]:
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
        if self.takeovers > 1 and self.unit / _GOES_ON <= spread <= self.unit * _GOES_ON:
            return Takeover.ON
        self.unit = spread
        return Takeover.ANEW

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
    """One step of the filter a row: P x (y - p) / (1 + v x P x), v = p (1 - p), all x but three being 0."""
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
