"""How far a model has come from knowing the base rate to knowing the truth, over any samples of a simulated log.

Losses are *expected* ones: the true probability stands in place of the label, so that no luck is in them. What the
labels made of them, the *realised* loss, stands beside each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heft.models.evaluate.formulas import LEAST_P, entropy
from heft.models.features.vectors import item_hash
from heft.stream.learn.learner import Outcome
from heft.stream.shop.truth import SlateTruth

_ORACLE, _CLICKS, _SAMPLES = 0, 1, 2
_POLICIES = 3


class Measured(NamedTuple):
    """A number as expected from the truth, and as the labels had it."""

    expected: float
    realised: float


class Verdict(NamedTuple):
    """What came out over some samples."""

    samples: int
    rate: Measured
    """Click-through rate."""
    oracle: Measured
    """Normalised entropy of the true probabilities: the least there is."""
    arms: dict[str, Measured]
    """Normalised entropy of the predictions as shown; 1 is predicting the base rate.

    X. He et al., "Practical lessons from predicting clicks on ads at Facebook" (2014), equation 1.
    """

    def closed(self, arm: str = "mixture") -> Measured:
        """Return how much of the way from the base rate (0) to the truth (1) an arm has made."""
        ne = self.arms[arm]
        return Measured(
            (1.0 - ne.expected) / (1.0 - self.oracle.expected), (1.0 - ne.realised) / (1.0 - self.oracle.realised)
        )


class Judge:
    """An observer of a learner that knows the truth about what was shown.

    Parameters
    ----------
    truths
        The truth about the slates of the log; those that the learner never closes may be among them.
    arms
        Names of the click head's arms.

    Examples
    --------
    >>> from heft.stream.learn.learner import Learner
    >>> judge = Judge([], ["uniform"])
    >>> learner = Learner(observer=judge)
    """

    def __init__(self, truths: Iterable[SlateTruth], arms: Iterable[str]) -> None:
        self._truths = {truth.request_id: truth for truth in truths}
        self._arms = (*arms, "mixture")
        self._at_ms: list[int] = []
        self._sums: list[NDArray[np.float64]] = []  # a slate: [2, _POLICIES + K + 1], expected and realised

    def __call__(self, outcome: Outcome) -> None:
        """Take the labels of a slate."""
        if outcome.head != "click":
            return
        truth = self._truths.pop(outcome.request_id)
        if [item_hash(item) for item in truth.items] != outcome.vectors.items.tolist():
            msg = f"request {outcome.request_id}: the truth is about other items than were shown; is it of another log?"
            raise ValueError(msg)
        click = np.array(truth.click)
        targets = np.stack([click, outcome.labels])
        p = np.clip(np.column_stack([click, outcome.shown.p.astype(np.float64)]), LEAST_P, 1.0 - LEAST_P)
        losses = -(targets @ np.log(p) + (1.0 - targets) @ np.log1p(-p))
        counts = np.column_stack([targets.sum(axis=1), np.full(2, len(click))])
        self._sums.append(np.column_stack([losses[:, :1], counts, losses[:, 1:]]))
        self._at_ms.append(truth.at_ms)

    @property
    def samples(self) -> int:
        """How many samples have been judged."""
        return int(sum(sums[0, _SAMPLES] for sums in self._sums))

    def shown_before(self, at_ms: int) -> int:
        """Return how many samples were shown before a time."""
        return int(sum(sums[0, _SAMPLES] for sums, at in zip(self._sums, self._at_ms, strict=True) if at < at_ms))

    def verdict(self, first: int = 0, last: int | None = None) -> Verdict:
        """Return what came out over the samples from ``first`` up to ``last``, in whole slates, in order of closing."""
        sums = np.stack(self._sums)
        begins = np.cumsum(sums[:, 0, _SAMPLES]) - sums[:, 0, _SAMPLES]
        chosen = (begins >= first) & (begins < (np.inf if last is None else last))
        total = sums[chosen].sum(axis=0)
        n = total[0, _SAMPLES]
        rates = total[:, _CLICKS] / n
        scale = n * np.array([entropy(rate) for rate in rates.tolist()])
        ne = {
            name: Measured(*(total[:, column] / scale).tolist())
            for name, column in [
                ("oracle", _ORACLE),
                *zip(self._arms, range(_POLICIES, total.shape[1]), strict=True),
            ]
        }
        return Verdict(int(n), Measured(*rates.tolist()), ne.pop("oracle"), ne)
