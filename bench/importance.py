"""What weighting by a teacher is worth: every policy at several learning rates, on the same samples as `uniform`.

The second half of a log is judged, after the teacher's data; on the simulated shop by the expected log loss of a
click that someone meant, elsewhere by the clicks. Each policy stands with the best of its learning rates, `uniform`
too, since a weight is a learning rate in disguise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import exact
from models.policies import Reading
from models.ranker import Arm, RankerConfig
from models.sample import Record
from stream.learn import Learner, LearnerConfig, Outcome
from stream.shop.truth import SlateTruth

RATES = (0.2, 0.3, 0.45, 0.7)
POLICIES = (
    "uniform", "feature", "offset", "distill", "distill_gate", "rho", "rho_gate", "denoise", "exp_score", "gradient",
    "el2n", "loss", "uncertainty", "novelty", "disagreement", "sampler", "random", "permuted",
    *(reading.name.lower() for reading in Reading),
)  # fmt: skip
BLOCKS = 100
"""Stretches of time that are drawn again and again for an interval."""


class Losses(NamedTuple):
    """Sums by block of time [BLOCKS, ...] over all samples and over those on new items."""

    names: tuple[str, ...]
    loss: NDArray[np.float64]
    """[BLOCKS, 2, K + 1]"""
    counts: NDArray[np.float64]
    """Samples and clicks [BLOCKS, 2, 2]."""
    auc: dict[str, float]
    """On all samples, by the clicks that were logged."""


def sweep(policies: Sequence[str] = POLICIES, rates: Sequence[float] = RATES) -> tuple[Arm, ...]:
    """Return an arm for each policy and learning rate; the first is `uniform` at its default."""
    arms = [Arm("uniform")]
    for policy in policies:
        arms += [Arm(f"{policy}@{rate}", alpha=rate, policy=policy) for rate in rates if policy != "permuted"]
    # What `permuted` exchanges are the weights of another arm.
    return tuple(arms)


def run(records: Iterable[Record], truths: dict[str, SlateTruth], ranker: RankerConfig, from_ms: int) -> Losses:
    """Learn the records once and return the losses of what was shown from a time on."""
    rows: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    said: list[NDArray[np.float32]] = []
    clicked: list[NDArray[np.uint8]] = []

    def observe(outcome: Outcome) -> None:
        vectors = outcome.vectors
        if outcome.head != "click" or vectors.at_ms < from_ms or not outcome.measured:
            return
        seen = vectors.seen
        p = np.clip(outcome.shown.p[seen].astype(np.float64), exact.LEAST_P, 1.0 - exact.LEAST_P)
        truth = truths.get(outcome.request_id)
        target = outcome.labels[seen].astype(np.float64) if truth is None else np.array(truth.human)[seen]
        loss = -(target[:, None] * np.log(p) + (1.0 - target[:, None]) * np.log1p(-p))
        new = vectors.new[seen]
        sums = np.stack([loss.sum(axis=0), loss[new].sum(axis=0)])
        counts = np.array([[len(target), target.sum()], [new.sum(), target[new].sum()]])
        rows.append((vectors.at_ms, sums, counts))
        said.append(outcome.shown.p[seen])
        clicked.append(outcome.labels[seen])

    learner = Learner(LearnerConfig(ranker=ranker), observe)
    for record in records:
        learner.apply(0, record)
    learner.flush()
    block = np.minimum(np.arange(len(rows)) * BLOCKS // len(rows), BLOCKS - 1)
    loss = np.zeros((BLOCKS, *rows[0][1].shape))
    counts = np.zeros((BLOCKS, 2, 2))
    for n, (_, sums, its) in enumerate(rows):
        loss[block[n]] += sums
        counts[block[n]] += its
    names = (*(arm.name for arm in ranker.click_arms), "mixture")
    p, y = np.concatenate(said), np.concatenate(clicked)
    auc = {name: exact.auc(y, p[:, k]) for k, name in enumerate(names)}
    return Losses(names, loss, counts, auc)


def ne(losses: Losses, name: str, part: int = 0, blocks: NDArray[np.int64] | None = None) -> float:
    """Return the normalised entropy of an arm over all samples (0) or new items (1), over some blocks."""
    some = slice(None) if blocks is None else blocks
    n, clicks = losses.counts[some, part].sum(axis=0)
    return float(losses.loss[some, part, losses.names.index(name)].sum() / (n * exact.entropy(clicks / n)))


def best(losses: Losses, policy: str) -> str:
    """Return the arm of a policy whose learning rate is best over all samples."""
    arms = [name for name in losses.names if name == policy or name.startswith(f"{policy}@")]
    return min(arms, key=lambda name: ne(losses, name))


def interval(losses: Losses, name: str, other: str, part: int = 0, seed: int = 1) -> tuple[float, float, float]:
    """Return the relative difference of two arms' losses, in percent, and a 95 % bootstrap interval over blocks."""
    a, b = (losses.loss[:, part, losses.names.index(each)] for each in (name, other))
    drawn = np.random.default_rng(seed).integers(0, BLOCKS, (2_000, BLOCKS))
    ratios = 100.0 * (a[drawn].sum(axis=1) / b[drawn].sum(axis=1) - 1.0)
    low, high = np.quantile(ratios, [0.025, 0.975]).tolist()
    return float(100.0 * (a.sum() / b.sum() - 1.0)), low, high
