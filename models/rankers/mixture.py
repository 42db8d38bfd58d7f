"""Which arm to believe: what is served is the mixture of the calibrated arms.

Each arm is in one `ArmState`. The first, `uniform`, is always FIRST. All others begin with PROBATION and move thus:

| from              | to                | when                                                                         |
|-------------------|-------------------|------------------------------------------------------------------------------|
| PROBATION         | BELIEVED          | as many samples have closed as a probation takes                             |
| RESET_PROBATION   | BELIEVED          | likewise; its weight is then its prior                                       |
| BENCHED_PROBATION | BENCHED           | likewise                                                                     |
| BELIEVED          | BENCHED           | it is significantly worse than `uniform`, and its weight at most a half      |
| BENCHED           | BELIEVED          | it is significantly better, or its weight in shadow is more than a half, or  |
|                   |                   | 10,000 slates have not shown it to be worse                                  |
| BENCHED_PROBATION | PROBATION         | likewise                                                                     |
| BELIEVED          | PROBATION         | the mixture is significantly worse than `uniform`: all weights are the prior |
|                   |                   | again, and every arm but the first begins a probation                        |
| RESET_PROBATION   | PROBATION         | likewise                                                                     |
| BENCHED           | BENCHED_PROBATION | likewise: the benched stay benched                                           |
| any but FIRST     | RESET_PROBATION   | `reset_arms`: its model has begun anew (an arm that is never served, of      |
|                   |                   | which no weight has to be kept back: PROBATION)                              |

Only FIRST and BELIEVED have weight in what is served. An arm that is never served moves like the others, and is
reported like them; its prior is 0, so its weight is 0 in every state.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.evaluate.confidence import ConfidenceSequence

_MIN_P = 1e-12
_LOOK_EVERY = 100  # slates
_AFRESH = 10_000  # slates after which the evidence on a benched arm is gathered anew


class ArmState(IntEnum):
    """Where an arm stands; what leads from one state to another is written at the top of this module."""

    FIRST = 0
    """`uniform`, which is served with what weight the others leave."""
    BELIEVED = 1
    """It is served with its weight."""
    BENCHED = 2
    """It was significantly worse than `uniform`; its weight moves in shadow."""
    PROBATION = 3
    """Too few samples have closed since it began; its weight moves in shadow."""
    RESET_PROBATION = 4
    """Likewise, and its model is new: its weight is 0 and it is charged nothing."""
    BENCHED_PROBATION = 5
    """Benched when a probation of all arms began."""


_BELIEVED, _PROBATION, _RESET_PROBATION = ArmState.BELIEVED, ArmState.PROBATION, ArmState.RESET_PROBATION
_BENCHED, _BENCHED_PROBATION = ArmState.BENCHED, ArmState.BENCHED_PROBATION

# What becomes of an arm in each state, in the order of `ArmState`.
_ENTERED = np.array([ArmState.FIRST, _BELIEVED, _BENCHED, _BELIEVED, _BELIEVED, _BENCHED], np.uint8)
_TURNED = np.array([ArmState.FIRST, _BENCHED, _BELIEVED, _PROBATION, _RESET_PROBATION, _PROBATION], np.uint8)
_CONVICTED = np.array(
    [ArmState.FIRST, _PROBATION, _BENCHED_PROBATION, _PROBATION, _PROBATION, _BENCHED_PROBATION], np.uint8
)


class _Belief(NamedTuple):
    """What a slate moves; the arrays are changed in place."""

    share: float
    prior: NDArray[np.float64]
    """[K]; 0 of arms that are never served."""
    weights: NDArray[np.float64]
    """By all labels so far, in every state [K]; they sum to 1."""
    states: NDArray[np.uint8]
    """`ArmState` [K]."""
    probation_left: NDArray[np.int64]
    """Samples until each arm's probation ends [K]; 0 or less: it has ended."""
    probation_number: NDArray[np.int64]
    """`Hedge.changes` when it began [K]."""
    served: NDArray[np.float64]
    """The weights of what is served [K]; they sum to 1."""
    differences: NDArray[np.float64]
    """Of the newest slate: losses of the arms and, last, the mixture, less that of `uniform` [K + 1]."""


class Decision(NamedTuple):
    """Who was put out or let in again, when, and on what evidence."""

    out: bool
    """Benched; of the mixture: all but `uniform` were put on probation. Else: let in again."""
    at_ms: int
    """Event time of the slate that decided."""
    mean: float
    """Nats a slate more than `uniform` loses."""
    half_width: float
    """Of the confidence sequence about it; infinite where there were too few slates for one."""
    slates: int


class Hedge:
    """Fixed-share Hedge over arms by log loss as shown; half the prior is on the first, `uniform`.

    There is one update for each slate: each arm pays the sum of its log losses on the slate's samples. An arm without
    an input of its own on a sample shows the prediction of `uniform` there, so it neither gains nor loses against it.
    Then weight flows back to the prior, so that an arm that was ahead once does not keep the lead.

    Were each label known before the next item is shown, and no arm benched, the mixture would lose at most log 2 nats
    more than `uniform`, and half of ``share`` of all that `uniform` loses, whatever the arms do. Over any later stretch
    it is log(1/w) nats in place of log 2, w being the weight of `uniform` where the stretch begins. Labels come a slate
    at a time and a window late: what the mixture costs then is measured (LOG.md).

    Beside it runs a confidence sequence of each arm's losses against `uniform`. It decides which arms are *benched*:
    those go on learning and have no weight. What happens on probation moves weights and is no evidence for or against
    any arm.

    Parameters
    ----------
    arms
        K names; the first is `uniform`.
    share
        Share of all weight that flows back to the prior for each nat that `uniform` loses.
    probation
        Samples that must have been shown since an arm began, and closed, before it has weight.
    served
        Whether each arm may have weight at all [K]; diagnostic arms and placebos never do. Default: all.

    Attributes
    ----------
    sequence : ConfidenceSequence
        Of the K arms and, last, the mixture: sums per slate of log losses less those of `uniform`.
    changes : int
        How many probations have begun. It is noted with each prediction, and given back with the labels: what was
        shown before an arm's probation says nothing of the arm, and a busy shop has more slates in flight than a
        probation counts.
    decisions : list [K + 1]
        The last `Decision` about each arm and, last, the mixture; None where there was none.

    References
    ----------
    Herbster & Warmuth 1998, Tracking the best expert, section 5. Freund, Schapire, Singer & Warmuth 1997, Using and
    combining predictors that specialize, for arms without an input.
    """

    def __init__(
        self,
        arms: tuple[str, ...],
        share: float = 1e-4,
        probation: int = 20_000,
        served: NDArray[np.bool_] | None = None,
    ) -> None:
        many = len(arms)
        may_serve = np.ones(many, np.bool_) if served is None else served
        others = int(may_serve[1:].sum())
        prior = np.where(may_serve, 0.5 / max(others, 1), 0.0)
        prior[0] = 0.5 if others else 1.0
        states = np.full(many, ArmState.PROBATION, np.uint8)
        states[0] = ArmState.FIRST
        self._probation = probation
        self._belief = _Belief(
            share, prior, prior.copy(), states, np.full(many, probation, np.int64), np.zeros(many, np.int64),
            np.empty(many), np.empty(many + 1),
        )  # fmt: skip
        self.changes = 0
        self.samples = 0
        self.sequence = ConfidenceSequence(many + 1)
        self.decisions: list[Decision | None] = [None] * (many + 1)
        self._slates = 0
        self._end_probations()
        self._states_have_changed()

    @property
    def weights(self) -> NDArray[np.float64]:
        """How much each arm is believed [K]; sums to 1."""
        return self._belief.served

    @property
    def states(self) -> NDArray[np.uint8]:
        """The `ArmState` of each arm [K]."""
        return self._belief.states

    @property
    def benched(self) -> NDArray[np.bool_]:
        """Which arms are benched now [K]."""
        states = self._belief.states
        benched: NDArray[np.bool_] = (states == _BENCHED) | (states == _BENCHED_PROBATION)
        return benched

    @property
    def _on_probation(self) -> NDArray[np.bool_]:
        return self._belief.states >= _PROBATION

    def mix(self, p: NDArray[Any]) -> NDArray[np.float64]:
        """Return the mixture [n] of probabilities [n, K]."""
        return np.asarray(p @ self.weights)

    def learn(
        self,
        p: NDArray[np.float32],
        labels: NDArray[np.uint8],
        mixture: NDArray[Any] | None = None,
        at_ms: int = 0,
        changes: int | None = None,
    ) -> None:
        """Learn from the probabilities and labels of one slate.

        Parameters
        ----------
        p
            What each arm showed [n, K].
        labels
            0 or 1 [n].
        mixture
            What was served then [n]; default: what would be served now.
        at_ms
            When the slate was shown.
        changes
            `changes` when it was shown; default: as now.
        """
        if not len(labels):
            return
        mixed = self.mix(p) if mixture is None else mixture
        _learn(tuple(self._belief), p, mixed, labels, self.changes if changes is None else changes)
        self.sequence.add(self._belief.differences)
        self.samples += len(labels)
        self._slates += 1
        if self._slates % _LOOK_EVERY == 0:
            self._judge(at_ms)
        if self._any_on_probation:
            self._end_probations()

    def reset_arms(self, arms: NDArray[np.bool_]) -> None:
        """Put some arms [K], never the first, on a probation of their own: their models have begun anew.

        Until it ends they have no weight and are charged nothing; then they enter with their prior.
        """
        belief = self._belief
        belief.states[arms] = np.where(belief.prior[arms] > 0.0, _RESET_PROBATION, _PROBATION)
        self._begin_probation(arms)
        belief.weights[belief.states == _RESET_PROBATION] = 0.0
        belief.weights[:] /= belief.weights.sum()
        self._states_have_changed()

    def restart(self) -> None:
        """Forget the evidence, for and against: the world has changed. The benched stay benched."""
        self.sequence.restart()

    def _begin_probation(self, arms: NDArray[np.bool_]) -> None:
        self.changes += 1
        self._belief.probation_left[arms] = self._probation
        self._belief.probation_number[arms] = self.changes

    def _end_probations(self) -> None:
        belief = self._belief
        entering = self._on_probation & (belief.probation_left <= 0)
        if entering.any():
            reset = entering & (belief.states == _RESET_PROBATION)
            if reset.any():
                belief.weights[reset] = belief.prior[reset]
                belief.weights[:] /= belief.weights.sum()
            belief.states[entering] = _ENTERED[belief.states[entering]]
            self.sequence.restart(np.append(entering, True))
            self._states_have_changed()

    def _judge(self, at_ms: int) -> None:
        """Bench arms, let benched ones return, or put all on probation, by the evidence of now."""
        worse, better = self.sequence.above, self.sequence.below
        states, weights, on_probation = self._belief.states, self._belief.weights, self._on_probation
        if worse[-1] and not on_probation[1:].all():
            self._decide(len(worse) - 1, True, at_ms)
            weights[:] = self._belief.prior
            states[:] = _CONVICTED[states]
            self._begin_probation(np.arange(len(states)) > 0)
            self._states_have_changed()
            return
        benched = self.benched
        long_enough = self.sequence.slates[:-1] >= _AFRESH
        # The sequence says who is better since it began; weights, who is now: they forget what was before a change.
        ahead = weights > 0.5
        back = benched & (better[:-1] | ahead | (long_enough & ~worse[:-1]))
        out = ~benched & worse[:-1] & ~ahead & ~on_probation
        # What decided is not evidence for the next decision, and a benched arm need not make up for all of its past.
        evidence_used = back | out | (benched & long_enough)
        for k in np.flatnonzero(back | out).tolist():
            self._decide(k, bool(out[k]), at_ms)
        if evidence_used.any():
            self.sequence.restart(np.append(evidence_used, False))
            states[back | out] = _TURNED[states[back | out]]
            self._states_have_changed()

    def _decide(self, k: int, out: bool, at_ms: int) -> None:
        evidence = self.sequence
        self.decisions[k] = Decision(
            out, at_ms, float(evidence.mean[k]), float(evidence.half_width[k]), int(evidence.slates[k])
        )

    def _states_have_changed(self) -> None:
        self._any_on_probation = bool(self._on_probation.any())
        _serve(self._belief)

    def state(self) -> dict[str, Any]:
        """Return a copy of what was learned."""
        return {
            "weights": self._belief.weights.copy(),
            "samples": self.samples,
            "changes": self.changes,
            "states": self._belief.states.copy(),
            "probation_left": self._belief.probation_left.copy(),
            "probation_number": self._belief.probation_number.copy(),
            "slates": self._slates,
            "decisions": [decision and tuple(decision) for decision in self.decisions],
            "sequence": self.sequence.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for name in ("weights", "states", "probation_left", "probation_number"):
            getattr(self._belief, name)[:] = state[name]
        self.samples, self.changes = int(state["samples"]), int(state["changes"])
        self._slates = int(state["slates"])
        self.decisions = [decision and Decision(*decision) for decision in state["decisions"]]
        self.sequence.restore(state["sequence"])
        self._states_have_changed()


@njit(cache=True)
def _serve(belief: _Belief) -> None:
    """Fill the served weights with those of the arms that are believed; the first has what is left."""
    served = belief.served
    others = 0.0
    for k in range(1, served.size):
        served[k] = belief.weights[k] if belief.states[k] == _BELIEVED else 0.0
        others += served[k]
    served[0] = max(1.0 - others, 0.0)


@njit(cache=True)
def _learn(
    of_belief: tuple[Any, ...], p: NDArray[Any], mixture: NDArray[Any], labels: NDArray[np.uint8], changes: int
) -> None:  # fmt: skip
    """Bayes' rule on a slate, in logarithms, then sharing: w <- kept w + (1 - kept) prior, kept = exp(-share loss).

    Probations that had begun when the slate was shown, as ``changes`` tells, come nearer to their end. Then fill the
    differences and the served weights.
    """
    belief = _Belief(*of_belief)  # by name only from here on: numba takes long to look at one that comes from Python
    weights, differences = belief.weights, belief.differences
    arms = p.shape[1]
    log_likelihood = np.zeros(arms + 1)
    for k in range(arms + 1):
        for row in range(p.shape[0]):
            p_row = np.float64(p[row, k]) if k < arms else np.float64(mixture[row])
            clipped = min(max(p_row, _MIN_P), 1.0 - _MIN_P)
            log_likelihood[k] += np.log(clipped) if labels[row] == 1 else np.log1p(-clipped)
    most = -np.inf
    gain = np.empty(arms)
    for k in range(arms):
        differences[k] = log_likelihood[0] - log_likelihood[k]
        gain[k] = np.log(weights[k]) + log_likelihood[k] if weights[k] > 0.0 else -np.inf
        most = max(most, gain[k])
    differences[arms] = log_likelihood[0] - log_likelihood[arms]
    gain = np.exp(gain - most)
    gain /= gain.sum()
    kept = np.exp(belief.share * log_likelihood[0])
    for k in range(arms):
        reset = belief.states[k] == _RESET_PROBATION
        weights[k] = 0.0 if reset else kept * gain[k] + (1.0 - kept) * belief.prior[k]
        if belief.probation_number[k] <= changes:
            belief.probation_left[k] -= labels.size
    _serve(belief)
