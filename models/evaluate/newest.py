"""The newest samples of a head, measured exactly and one arm at a time.

All arms of 50,000 samples take half a second. Who must not stand still for so long measures an arm, does other work,
and measures the next: what is measured stays as it was, whatever is added meanwhile.
"""

from __future__ import annotations

from functools import cached_property
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heft.models.evaluate import formulas


class NewestSamples:
    """Samples in whole slates, with K predictions of each, as they were at one moment.

    Parameters
    ----------
    labels : uint8 [n]
    p, raw, rank : float32 [n, K]
        Calibrated probabilities, raw logits, position-free scores.
    starts : int64 [slates + 1]
        Slate s is rows ``starts[s]:starts[s+1]``.
    users : uint64 [slates]
        Hash of the user of each slate.
    """

    def __init__(
        self,
        labels: NDArray[np.uint8],
        p: NDArray[np.float32],
        raw: NDArray[np.float32],
        rank: NDArray[np.float32],
        starts: NDArray[np.int64],
        users: NDArray[np.uint64],
    ) -> None:
        self._labels, self._p, self._raw, self._rank = labels, p, raw, rank
        self._starts, self._users = starts, users
        self.samples = len(labels)
        self.positives = int(labels.sum())

    @cached_property
    def _by_user(self) -> NDArray[np.int64]:
        order: NDArray[Any] = np.argsort(self._users, kind="stable")
        return order

    def metrics(self, k: int) -> dict[str, float]:
        """Return the metrics of arm k; NaN where one is not defined."""
        n, labels = self.samples, self._labels
        p, rank = np.ascontiguousarray(self._p[:, k]), np.ascontiguousarray(self._rank[:, k : k + 1])
        entropy = formulas.entropy(self.positives / n) if n else nan
        weight, user_sums = formulas.grouped_auc(labels, rank, self._starts, self._users, self._by_user)
        slates, (ndcg, reciprocal) = formulas.rankings(labels, rank, self._starts)
        order = np.argsort(p, kind="stable")  # the longest part: once for all that needs it
        positives, negatives = formulas.groups(labels, p, order)
        loss = formulas.logloss(labels, p)
        return {
            "auc": formulas.auc_of_groups(positives, negatives),
            "logloss": loss,
            "ne": loss / entropy,
            "calibration": float(p.sum(dtype=np.float64)) / self.positives if self.positives else nan,
            "ece": formulas.ece_of_groups(np.ones(n), labels[order].astype(np.float64), p[order].astype(np.float64)),
            "gauc": float(user_sums[0]) / weight if weight else nan,
            "ndcg_at_10": float(ndcg[0]) / slates if slates else nan,
            "mrr": float(reciprocal[0]) / slates if slates else nan,
            "auc_rank": formulas.auc(labels, rank[:, 0]),
            "pr_auc": formulas.pr_auc_of_groups(positives, negatives),
            "ne_raw": formulas.raw_logloss(labels, self._raw[:, k]) / entropy,
        }
