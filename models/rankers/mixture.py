"""Which arm to believe: what is served is the mixture of the calibrated arms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.evaluate.confidence import ConfidenceSequence

_MIN_P = 1e-12
_LOOK_EVERY = 100  # slates
_AFRESH = 10_000  # slates after which the evidence on a benched arm is gathered anew


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

    One update a slate: each arm pays the sum of its log losses on the slate's samples. A arm that is input_missing on a
    sample stands in with the prediction of `uniform`, so it is charged nothing of its own. Then weight flows back to
    the prior, so that who was ahead once does not keep the lead. Were each label known before the next item is shown,
    and nobody benched, the mixture would lose at most log 2 nats and half of ``share`` of all that `uniform` loses more
    than `uniform`, whatever the arms do; over any later stretch, log(1/w) nats in place of log 2, w being the
    weight of `uniform` where it begins. Labels come a slate at a time and a window late: what the mixture costs then is
    measured (LOG.md).

    Beside it runs a confidence sequence of each arm's losses against `uniform`. A arm that is significantly worse
    is *benched*: it goes on learning and has no weight. It returns when it is significantly better, when its weight in
    shadow is more than a half, or when 10,000 slates have not shown it to be worse. Should the mixture itself be
    significantly worse, all others begin anew, on probation; who is benched stays so. What happens on probation moves
    weights and is no evidence for or against anyone.

    Parameters
    ----------
    arms
        K names; the first is `uniform`.
    share
        Weight that flows back to the prior for each nat that `uniform` loses.
    probation
        Samples, shown since and closed, before any other arm than `uniform` has weight.
    served
        Whether each arm may have weight at all [K]; diagnostic arms and placebos never do. Default: all.

    Attributes
    ----------
    sequence : ConfidenceSequence
        Of the K arms and, last, the mixture: sums per slate of log losses less those of `uniform`.
    benched : bool [K]
        Who is not believed now.
    changes : int
        How many probations have begun: to be noted with a prediction, and given back with its labels. What was shown
        before a arm's probation says nothing of the arm, and a busy shop has more of it in flight than a
        probation counts.
    decisions : list [K + 1]
        The last `Decision` about each arm and, last, the mixture; None where there was none.

    References
    ----------
    Herbster & Warmuth 1998, Tracking the best expert, section 5; Freund, Schapire, Singer & Warmuth 1997 for experts
    that sleep.
    """

    def __init__(
        self,
        arms: tuple[str, ...],
        share: float = 1e-4,
        probation: int = 20_000,
        served: NDArray[np.bool_] | None = None,
    ) -> None:
        many = len(arms)
        able = np.ones(many, np.bool_) if served is None else served
        others = int(able[1:].sum())
        self._prior = np.where(able, 0.5 / max(others, 1), 0.0)
        self._prior[0] = 0.5 if others else 1.0
        self._share = share
        self._probation = probation
        self._weights = self._prior.copy()
        self._left = np.full(many, probation)  # samples of its probation
        self._since = np.zeros(many, np.int64)  # `changes` with it
        self._waiting = np.ones(many, np.bool_)  # for that
        self._waiting[0] = False
        self._reset = np.zeros(many, np.bool_)  # on a probation of its own
        self.changes = 0
        self.samples = 0
        self.sequence = ConfidenceSequence(many + 1)
        self.benched = np.zeros(many, np.bool_)
        self.decisions: list[Decision | None] = [None] * (many + 1)
        self._differences = np.empty(many + 1)
        self._able = np.ones(many, np.bool_)
        self._served = np.empty(many)
        self._slates = 0
        self._enter()
        self._serve()

    @property
    def weights(self) -> NDArray[np.float64]:
        """How much each arm is believed [K]; sums to 1."""
        return self._served

    def mix(self, p: NDArray[Any], awake: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Return the mixture [n] of probabilities [n, K]; arms not ``awake`` [K] say what `uniform` does."""
        return np.asarray(self._stand_in(p, awake) @ self.weights)

    def learn(
        self,
        p: NDArray[np.float32],
        labels: NDArray[np.uint8],
        awake: NDArray[np.bool_] | None = None,
        mixture: NDArray[Any] | None = None,
        at_ms: int = 0,
        changes: int | None = None,
    ) -> None:
        """Learn from the probabilities [n, K] as shown and the labels [n] of one slate.

        ``mixture`` [n] is what was served then; by default what would be served now. ``at_ms``: when it was shown;
        ``changes``: those of then, by default of now.
        """
        n = len(labels)
        if not n:
            return
        said = p if awake is None else self._stand_in(p, awake)
        mixed = self.mix(said) if mixture is None else mixture
        _learn(
            said, mixed, labels, self._share, self._prior, self._weights, self._reset, self._able,
            self._served, self._differences,
        )  # fmt: skip
        self.sequence.add(self._differences)
        self.samples += n
        self._left[self._since <= (self.changes if changes is None else changes)] -= n
        self._slates += 1
        if self._slates % _LOOK_EVERY == 0:
            self._bench(at_ms)
        if self._anyone_waits:
            self._enter()

    def _enter(self) -> None:
        entering = self._waiting & (self._left <= 0)
        if entering.any():
            reset = entering & self._reset
            if reset.any():
                self._weights[reset] = self._prior[reset]
                self._weights /= self._weights.sum()
            self._reset &= ~entering
            self._waiting &= ~entering
            self.sequence.restart(np.append(entering, True))
            self._serve()

    def reset_arms(self, arms: NDArray[np.bool_]) -> None:
        """Put some arms [K] on a probation of their own: their models have just begun.

        Until it ends they have no weight and are charged nothing; then they enter with their prior.
        """
        reset = arms & (self._prior > 0.0)
        self._reset |= reset
        self._begin_probation(arms)
        self._weights[self._reset] = 0.0
        self._weights /= self._weights.sum()
        self.benched &= ~arms
        self._serve()

    def _begin_probation(self, arms: NDArray[np.bool_]) -> None:
        self.changes += 1
        self._waiting |= arms
        self._left[arms], self._since[arms] = self._probation, self.changes

    def restart(self) -> None:
        """Forget the evidence, for and against: the world has changed. Who is benched stays so."""
        self.sequence.restart()

    def _bench(self, at_ms: int) -> None:
        worse, better = self.sequence.above, self.sequence.below
        if worse[-1] and not self._waiting[1:].all():
            self._decide(len(worse) - 1, True, at_ms)
            self._weights[:] = self._prior
            self._reset[:] = False
            self._begin_probation(np.arange(len(self._reset)) > 0)
            self._serve()
            return
        long_enough = self.sequence.slates[:-1] >= _AFRESH
        # The sequence says who is better since it began; weights, who is now: they forget what was before a change.
        ahead = self._weights > 0.5
        back = self.benched & (better[:-1] | ahead | (long_enough & ~worse[:-1]))
        out = ~self.benched & worse[:-1] & ~ahead & ~self._waiting
        # What decided is not evidence for the next decision, and a benched arm need not make up for all of its past.
        anew = back | out | (self.benched & long_enough)
        for k in np.flatnonzero(back | out).tolist():
            self._decide(k, bool(out[k]), at_ms)
        if anew.any():
            self.sequence.restart(np.append(anew, False))
            self.benched ^= back | out
            self._serve()

    def _decide(self, k: int, out: bool, at_ms: int) -> None:
        its = self.sequence
        self.decisions[k] = Decision(out, at_ms, float(its.mean[k]), float(its.half_width[k]), int(its.slates[k]))

    def _serve(self) -> None:
        self._anyone_waits = bool(self._waiting.any())
        self._able = ~self._waiting & ~self.benched
        _let_serve(self._weights, self._able, self._served)

    @staticmethod
    def _stand_in(p: NDArray[Any], awake: NDArray[np.bool_] | None) -> NDArray[Any]:
        return p if awake is None else np.where(awake, p, p[:, :1])

    def state(self) -> dict[str, Any]:
        """Return a copy of what was learned."""
        return {
            "weights": self._weights.copy(),
            "samples": self.samples,
            "changes": self.changes,
            "left": self._left.copy(),
            "since": self._since.copy(),
            "waiting": self._waiting.copy(),
            "reset": self._reset.copy(),
            "benched": self.benched.copy(),
            "slates": self._slates,
            "decisions": [decision and tuple(decision) for decision in self.decisions],
            "sequence": self.sequence.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._weights, self.samples = state["weights"].copy(), int(state["samples"])
        self.changes, self._reset = int(state["changes"]), state["reset"].copy()
        self._left, self._since = state["left"].copy(), state["since"].copy()
        self._waiting = state["waiting"].copy()
        self.benched, self._slates = state["benched"].copy(), int(state["slates"])
        self.decisions = [decision and Decision(*decision) for decision in state["decisions"]]
        self.sequence.restore(state["sequence"])
        self._serve()


@njit(cache=True)
def _let_serve(weights: Any, able: Any, served: Any) -> None:
    """Fill ``served`` with the weights of those that are able; the first has what is left."""
    others = 0.0
    for k in range(1, weights.size):
        served[k] = weights[k] if able[k] else 0.0
        others += served[k]
    served[0] = max(1.0 - others, 0.0)


@njit(cache=True)
def _learn(
    p: Any, mixture: Any, labels: Any, share: float, prior: Any, weights: Any, reset: Any, able: Any,
    served: Any, differences: Any,
) -> None:  # fmt: skip
    """Bayes' rule on a slate, in logarithms, then sharing: w <- kept w + (1 - kept) prior, kept = exp(-share loss).

    Fill ``served`` [K] from the weights, and ``differences`` [K + 1] with the losses of arms and mixture less those
    of the first.
    """
    arms = p.shape[1]
    gained = np.zeros(arms + 1)
    for k in range(arms + 1):
        for row in range(p.shape[0]):
            p_of = np.float64(p[row, k]) if k < arms else np.float64(mixture[row])
            said = min(max(p_of, _MIN_P), 1.0 - _MIN_P)
            gained[k] += np.log(said) if labels[row] == 1 else np.log1p(-said)
    most = -np.inf
    gain = np.empty(arms)
    for k in range(arms):
        differences[k] = gained[0] - gained[k]
        gain[k] = np.log(weights[k]) + gained[k] if weights[k] > 0.0 else -np.inf
        most = max(most, gain[k])
    differences[arms] = gained[0] - gained[arms]
    gain = np.exp(gain - most)
    gain /= gain.sum()
    kept = np.exp(share * gained[0])
    for k in range(arms):
        weights[k] = 0.0 if reset[k] else kept * gain[k] + (1.0 - kept) * prior[k]
    _let_serve(weights, able, served)
