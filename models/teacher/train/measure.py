"""How good logits are: metrics over examples with counts, and calibration learned from held-out examples."""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import NDArray

from heft.models.evaluate import formulas
from heft.models.teacher.data.examples import FEWEST_QUERIES, Examples

Floats = NDArray[np.float64]

BINS = 10


def sigmoid(z: Floats) -> Floats:
    """Return the probabilities of logits."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))


def fit_platt(z: Floats, offset: Floats, trials: Floats, positives: Floats) -> tuple[float, float]:
    """Return a and b that minimise the log loss of sigmoid(a z + b + offset), by Newton's method.

    A normal prior of variance 1 around a = 1, b = 0 keeps them finite even where a threshold separates the labels.

    References
    ----------
    Platt 1999, Probabilistic outputs for support vector machines.
    """
    x = np.stack([z, np.ones_like(z)], 1)
    theta = np.array([1.0, 0.0])
    for _ in range(50):
        p = sigmoid(x @ theta + offset)
        gradient = x.T @ (trials * p - positives) + (theta - (1.0, 0.0))
        hessian = (x * (trials * p * (1.0 - p))[:, None]).T @ x + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta = theta - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return float(theta[0]), float(theta[1])


def calibrate(z: Floats, offset: Floats, examples: Examples, head: int) -> tuple[float, float]:
    """Return scale and shift of a head from held-out examples; 1 and 0 if queries are too few or all labels are equal.

    If all examples have the same query, as in a feed without queries, items are counted instead.
    """
    trials, positives = examples.trials[:, head], examples.positives[:, head]
    rows = trials > 0
    groups = len(np.unique(examples.groups[rows]))
    total = positives[rows].sum()
    if groups == 1:
        groups = len({examples.pairs[n][1] for n in np.flatnonzero(rows)})
    if groups < FEWEST_QUERIES or not 0 < total < trials[rows].sum():
        return 1.0, 0.0
    return fit_platt(z[rows], offset[rows], trials[rows], positives[rows])


def cross_entropy(z: Floats, trials: Floats, positives: Floats) -> float:
    """Return the mean log loss in nats, over all trials."""
    losses = positives * np.logaddexp(0.0, -z) + (trials - positives) * np.logaddexp(0.0, z)
    return float(losses.sum() / trials.sum())


def metrics(z: Floats, trials: Floats, positives: Floats, graded: bool = False) -> dict[str, float]:
    """Measure logits.

    Parameters
    ----------
    z, trials, positives
        [N] logits, how many labels, how many (or how much of one) positive.
    graded
        The labels are grades: AUC is then of the highest grade against all others.

    Returns
    -------
    dict
        ``spearman``: rank correlation with the share of positives; ``auc``; ``logloss`` in nats; ``ne``: log loss over
        that of always predicting the base rate; ``calibration``: predicted over actual positives; ``ece``.
    """
    rows = trials > 0
    z, trials, positives = z[rows], trials[rows], positives[rows]
    if not len(z):
        return {"examples": 0.0} | dict.fromkeys(("spearman", "auc", "logloss", "ne", "calibration", "ece"), nan)
    top = np.where(positives >= trials - 1e-9, trials, 0.0) if graded else positives
    order = np.argsort(-z, kind="stable")
    starts = np.flatnonzero(np.diff(z[order], prepend=np.nan) != 0)
    p = sigmoid(z)
    loss, total = cross_entropy(z, trials, positives), positives.sum()
    base = formulas.entropy(float(total / trials.sum()))
    by_p = np.argsort(p, kind="stable")
    return {
        "examples": float(len(z)),
        "labels": float(trials.sum()),
        "positives": float(total),
        "spearman": _spearman(z, positives / trials),
        "auc": formulas.auc_of_groups(
            np.add.reduceat(top[order], starts), np.add.reduceat((trials - top)[order], starts)
        ),
        "logloss": loss,
        "ne": loss / base if base else nan,
        "calibration": float((p * trials).sum() / total) if total else nan,
        "ece": formulas.ece_of_groups(trials[by_p], positives[by_p], p[by_p]),
    }


def calibration_table(z: Floats, trials: Floats, positives: Floats) -> list[dict[str, float]]:
    """Return mean prediction and actual rate in ten bins of equally many labels, lowest prediction first."""
    rows = trials > 0
    z, trials, positives = z[rows], trials[rows], positives[rows]
    order = np.argsort(z, kind="stable")
    p, trials, positives = sigmoid(z[order]), trials[order], positives[order]
    ends = np.cumsum(trials)
    bins = np.minimum(((ends - 0.5 * trials) * BINS / max(ends[-1:], default=1.0)).astype(np.int64), BINS - 1)
    table = []
    for n in range(BINS):
        among = bins == n
        labels = trials[among].sum()
        if labels:
            predicted = float((p * trials)[among].sum() / labels)
            table.append(
                {"labels": float(labels), "predicted": predicted, "actual": float(positives[among].sum() / labels)}
            )
    return table


def _spearman(a: Floats, b: Floats) -> float:
    x, y = _ranks(a), _ranks(b)
    spread = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else nan


def _ranks(values: Floats) -> Floats:
    """Ranks from 0; ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - 0.5 * (counts + 1))[inverse])
