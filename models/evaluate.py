"""How good each policy was, on every sample, before it learned from it.

All sums are whole numbers (losses and probabilities in units of 2^-24), so whole-log figures do not depend on the
order in which samples came, and merge exactly. AUC over the whole log comes from histograms of logits in steps of
1/1024; its error is at most half the share of pairs that fall into one step. The log is kept in blocks of slates, and
neighbouring blocks are merged as it grows, so that its second half can be told without knowing its length beforehand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.ranking import gauc, ndcg_mrr
from models.tally import BINS, COARSE, GAUC, LOSS, LOSS_RAW, LOW, MAX_SURFACES, MRR, NDCG, PREDICTED, STEP, UNIT, add

_WINDOW = 50_000
_BLOCK_SLATES = 64
_MAX_BLOCKS = 32
_GAUC_ROWS = 10_000
_POSITIONS = ("position 0", "position 1-2", "position 3-5", "position 6-10", "position 11+")

N, POSITIVES = range(2)


class _Block:
    """Sums over some slates: ``counts`` n, positives, slates with a positive, rows of users with both labels."""

    def __init__(self, columns: int) -> None:
        self.counts = np.zeros(4, np.int64)
        self.sums = np.zeros((6, columns), np.int64)
        self.shown = np.zeros((columns, 2, BINS), np.uint32)
        self.rank = np.zeros((columns, 2, BINS // COARSE), np.uint32)

    def add(self, other: _Block) -> None:
        self.counts += other.counts
        self.sums += other.sums
        self.shown += other.shown
        self.rank += other.rank

    def state(self) -> list[Any]:
        filled = np.flatnonzero(self.shown)
        return [
            self.counts.copy(),
            self.sums.copy(),
            filled.astype(np.uint32),
            self.shown.ravel()[filled],
            self.rank.copy(),
        ]

    def restore(self, state: list[Any]) -> None:
        self.counts, self.sums, filled, values, self.rank = state
        self.shown.fill(0)
        self.shown.ravel()[filled] = values


class Prequential:
    """Metrics of several policies on the same samples.

    Parameters
    ----------
    policies
        Names of the columns of every array given to `add`.
    """

    def __init__(self, policies: tuple[str, ...]) -> None:
        columns = len(policies)
        self.policies = policies
        self._blocks = [_Block(columns)]
        self._block_slates = _BLOCK_SLATES
        self._in_block = 0
        self._surfaces: dict[str, int] = {}
        slices = MAX_SURFACES + len(_POSITIONS) + 1
        self._slice_counts = np.zeros((slices, 2), np.int64)
        self._slice_sums = np.zeros((slices, 3, columns), np.int64)
        self._slice_bins = np.zeros((slices, columns, 2, BINS // COARSE), np.uint32)
        self._logits = np.zeros((_WINDOW, columns), np.float32)
        self._raw = np.zeros((_WINDOW, columns), np.float32)
        self._ranks = np.zeros((_WINDOW, columns), np.float32)
        self._labels = np.zeros(_WINDOW, np.uint8)
        self._users = np.zeros(_WINDOW, np.uint64)
        self._slates = np.zeros(_WINDOW, np.int64)
        self._rows = 0  # samples ever added
        self._gauc_from = 0  # the first sample not yet grouped by user
        self._slate = 0
        self._weights = np.zeros((2, 3, columns))  # of negatives and positives: n, sum w, sum w^2

    @property
    def samples(self) -> int:
        """How many samples were measured."""
        return self._rows

    def add(
        self,
        user: int,
        labels: NDArray[np.uint8],
        raw: NDArray[np.float32],
        p: NDArray[np.float32],
        rank: NDArray[np.float32],
        measured: NDArray[np.bool_],
        positions: NDArray[np.uint16],
        new: NDArray[np.bool_],
        surface: str,
    ) -> None:
        """Add a slate.

        Parameters
        ----------
        user
            Hash of the user.
        labels, measured, positions, new
            [n] label 0 or 1, whether the row counts, position shown, whether the item was new.
        raw, p, rank
            [n, columns] raw logits, calibrated probabilities in [0, 1], position-free scores, all as shown.
        surface
            Slice of the slate; beyond 16 different ones they share the last.
        """
        which = self._surfaces.get(surface)
        if which is None:
            which = self._surfaces.setdefault(surface, min(len(self._surfaces), MAX_SURFACES - 1))
        block = self._blocks[-1]
        self._rows = add(
            labels, raw, p, rank, measured, positions, new, which, np.uint64(user), self._slate, self._rows,
            block.counts, block.sums, block.shown, block.rank,
            self._slice_counts, self._slice_sums, self._slice_bins,
            self._logits, self._raw, self._ranks, self._labels, self._users, self._slates,
        )  # fmt: skip
        self._slate += 1
        if self._rows - self._gauc_from >= _GAUC_ROWS:
            self._group_users(block)
            self._gauc_from = self._rows
        self._in_block += 1
        if self._in_block == self._block_slates:
            self._next_block()

    def weigh(self, labels: NDArray[np.uint8], weights: NDArray[np.float64]) -> None:
        """Count the weights [n, columns] with which policies learn, for their effective sample size."""
        columns = weights.shape[1]
        for label in (0, 1):
            rows = weights[labels == label]
            self._weights[label, 0] += len(rows)
            self._weights[label, 1, :columns] += rows.sum(0)
            self._weights[label, 2, :columns] += (rows * rows).sum(0)

    def _group_users(self, block: _Block) -> None:
        """Add the AUC within users of the samples not yet grouped to a block."""
        rows = np.arange(self._gauc_from, self._rows) % _WINDOW
        counted, sums = gauc(self._users[rows], self._labels[rows], self._ranks[rows])
        block.counts[3] += counted
        block.sums[GAUC] += np.round(sums * UNIT).astype(np.int64)

    def _next_block(self) -> None:
        self._in_block = 0
        if len(self._blocks) == _MAX_BLOCKS:
            for left, right in zip(self._blocks[::2], self._blocks[1::2], strict=True):
                left.add(right)
            self._blocks = self._blocks[::2]
            self._block_slates *= 2
        self._blocks.append(_Block(len(self.policies)))

    # ---------------------------------------------------------------- reports

    def report(self) -> dict[str, Any]:
        """Return ``{"positives", "policies": {name: {metric: value, "second_half": {...}}}, "slices"}``."""
        whole, half = self._sum(0), self._sum(self._half())
        for block in (whole, half):
            self._group_users(block)
        policies = {}
        for column, name in enumerate(self.policies):
            policies[name] = _metrics(whole, column) | self._sizes(column) | {"second_half": _metrics(half, column)}
        return {
            "samples": int(whole.counts[N]),
            "positives": int(whole.counts[POSITIVES]),
            "second_half": {"samples": int(half.counts[N]), "positives": int(half.counts[POSITIVES])},
            "policies": policies,
            "slices": self._slice_report(),
        }

    def _sizes(self, column: int) -> dict[str, float]:
        n, total, squares = self._weights[:, :, column].T
        with np.errstate(divide="ignore", invalid="ignore"):
            negative, positive = (total * total / (squares * n)).tolist()
        return {"ess": float(np.fmin(negative, positive)), "ess_positive": positive, "ess_negative": negative}

    def _half(self) -> int:
        """Return the first block of the second half: the cut nearest to half the samples."""
        ends = np.cumsum([block.counts[N] for block in self._blocks])
        return int(np.argmin(np.abs(np.concatenate(([0], ends)) - ends[-1] / 2)))

    def _sum(self, start: int) -> _Block:
        total = _Block(len(self.policies))
        for block in self._blocks[start:]:
            total.add(block)
        return total

    def _slice_report(self) -> dict[str, dict[str, Any]]:
        names = {which: surface or "(none)" for surface, which in reversed(self._surfaces.items())}
        slices = {f"surface {name}": which for which, name in sorted(names.items())}
        slices |= {name: MAX_SURFACES + number for number, name in enumerate(_POSITIONS)}
        slices["new items"] = MAX_SURFACES + len(_POSITIONS)
        report: dict[str, dict[str, Any]] = {}
        for name, which in slices.items():
            n, positives = self._slice_counts[which].tolist()
            if not n:
                continue
            loss, _, predicted = self._slice_sums[which] / UNIT
            report[name] = {
                "samples": n,
                "positives": positives,
                "policies": {
                    policy: {
                        "auc": auc_of_bins(self._slice_bins[which, column]),
                        "ne": _ratio(loss[column] / n, entropy(positives / n)),
                        "calibration": _ratio(predicted[column], positives),
                    }
                    for column, policy in enumerate(self.policies)
                },
            }
        return report

    def window(self, samples: int = _WINDOW) -> dict[str, dict[str, float]]:
        """Return the metrics over the newest samples, AUC exact, by policy."""
        size = min(samples, self._rows, _WINDOW)
        rows = np.arange(self._rows - size, self._rows) % _WINDOW
        labels, users = self._labels[rows], self._users[rows]
        positives = int(labels.sum())
        base = entropy(positives / size) if size else 0.0
        starts = np.flatnonzero(np.diff(self._slates[rows], prepend=-1))
        counted, by_user = gauc(users, labels, self._ranks[rows])
        slates, ndcg, mrr = _by_slate(starts, labels, self._ranks[rows])
        report = {}
        for column, name in enumerate(self.policies):
            logit = self._logits[rows, column].astype(np.float64)
            p = 1.0 / (1.0 + np.exp(-logit))
            loss, raw = (
                float(np.mean(_losses(each, labels))) if size else 0.0 for each in (logit, self._raw[rows, column])
            )
            report[name] = {
                "auc": exact_auc(logit, labels),
                "logloss": loss,
                "ne": _ratio(loss, base),
                "ne_raw": _ratio(raw, base),
                "calibration": _ratio(float(p.sum()), positives),
                "ece": ece(p, labels),
                "gauc": _ratio(by_user[column], counted),
                "ndcg_at_10": _ratio(ndcg[column], slates),
                "mrr": _ratio(mrr[column], slates),
                "auc_rank": exact_auc(self._ranks[rows, column], labels),
                "samples": size,
                "positives": positives,
            }
        return report

    # ---------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """Return everything later reports depend on, as copies."""
        used = min(self._rows, _WINDOW)
        return {
            "policies": list(self.policies),
            "blocks": [block.state() for block in self._blocks],
            "block": [self._block_slates, self._in_block, self._rows, self._gauc_from, self._slate],
            "surfaces": list(self._surfaces.items()),
            "slices": [self._slice_counts.copy(), self._slice_sums.copy(), self._slice_bins.copy()],
            "window": [
                each[:used].copy()
                for each in (self._logits, self._raw, self._ranks, self._labels, self._users, self._slates)
            ],
            "weights": self._weights.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, for the same policies."""
        if tuple(state["policies"]) != self.policies:
            msg = f"expected metrics of {', '.join(self.policies)}; the state has {', '.join(state['policies'])}"
            raise ValueError(msg)
        self._blocks = []
        for saved in state["blocks"]:
            block = _Block(len(self.policies))
            block.restore(saved)
            self._blocks.append(block)
        self._block_slates, self._in_block, self._rows, self._gauc_from, self._slate = state["block"]
        self._surfaces = dict(state["surfaces"])
        self._slice_counts, self._slice_sums, self._slice_bins = state["slices"]
        rings: tuple[NDArray[Any], ...] = (
            self._logits,
            self._raw,
            self._ranks,
            self._labels,
            self._users,
            self._slates,
        )
        for ring, saved in zip(rings, state["window"], strict=True):
            ring[: len(saved)] = saved
        self._weights = state["weights"]


def merge(first: Prequential, second: Prequential) -> _Block:
    """Return the whole-log sums of two shards' samples together; exact, in either order."""
    total = first._sum(0)
    total.add(second._sum(0))
    return total


# -------------------------------------------------------------------- formulas


def entropy(rate: float) -> float:
    """Return the log loss, in nats, of predicting the base rate."""
    if rate <= 0.0 or rate >= 1.0:
        return 0.0
    return float(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate))


def auc_of_bins(bins: NDArray[np.uint32]) -> float:
    """Return the AUC from counts [2, bins] of negatives and positives, ties counted half; NaN without both."""
    negatives, positives = bins.astype(np.int64)
    below = np.cumsum(negatives) - negatives
    pairs = int(negatives.sum()) * int(positives.sum())
    return _ratio(float((positives * (2 * below + negatives)).sum()) / 2, pairs)


def exact_auc(scores: NDArray[np.floating[Any]], labels: NDArray[np.uint8]) -> float:
    """Return the AUC, ties counted half; NaN without both labels."""
    order = np.argsort(scores, kind="stable")
    ranked, label = scores[order], labels[order].astype(np.int64)
    group = np.cumsum(np.diff(ranked, prepend=ranked[:1]) != 0) if len(ranked) else np.zeros(0, np.int64)
    positives = np.bincount(group, label).astype(np.int64)
    negatives = np.bincount(group).astype(np.int64) - positives
    below = np.cumsum(negatives) - negatives
    return _ratio(float((positives * (2 * below + negatives)).sum()) / 2, int(positives.sum()) * int(negatives.sum()))


def average_precision(bins: NDArray[np.uint32]) -> float:
    """Return the area under precision and recall from counts [2, bins]; samples of one step enter together."""
    negatives, positives = bins[:, ::-1].astype(np.int64)
    found = np.cumsum(positives)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.nan_to_num(found / (found + np.cumsum(negatives)))
    return _ratio(float((precision * positives).sum()), int(positives.sum()))


def ece(p: NDArray[np.float64], labels: NDArray[np.uint8], bins: int = 20) -> float:
    """Return the expected calibration error over bins of equal mass (not debiased: noise alone gives a little)."""
    if not len(p):
        return float("nan")
    order = np.argsort(p, kind="stable")
    gaps = (p - labels)[order]
    return float(sum(abs(float(part.sum())) for part in np.array_split(gaps, bins)) / len(p))


def _ece_of_bins(bins: NDArray[np.uint32], groups: int = 20) -> float:
    n = bins.sum(0).astype(np.int64)
    total = int(n.sum())
    if not total:
        return float("nan")
    p = 1.0 / (1.0 + np.exp(-(LOW + STEP * (np.arange(BINS) + 0.5))))
    group = np.minimum((np.cumsum(n) - n) * groups // total, groups - 1)
    return float(np.abs(np.bincount(group, p * n - bins[1], groups)).sum() / total)


def _losses(logit: NDArray[np.floating[Any]], labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    signed = np.where(labels == 1, -logit, logit).astype(np.float64)
    return np.logaddexp(0.0, signed)


def _ratio(a: float, b: float) -> float:
    return float(a) / float(b) if b else float("nan")


def _metrics(block: _Block, column: int) -> dict[str, float]:
    n, positives, slates, grouped = block.counts.tolist()
    sums = (block.sums[:, column] / UNIT).tolist()
    base = entropy(positives / n) if n else 0.0
    return {
        "auc": auc_of_bins(block.shown[column]),
        "logloss": _ratio(sums[LOSS], n),
        "ne": _ratio(_ratio(sums[LOSS], n), base),
        "ne_raw": _ratio(_ratio(sums[LOSS_RAW], n), base),
        "calibration": _ratio(sums[PREDICTED], positives),
        "ece": _ece_of_bins(block.shown[column]),
        "gauc": _ratio(sums[GAUC], grouped),
        "ndcg_at_10": _ratio(sums[NDCG], slates),
        "mrr": _ratio(sums[MRR], slates),
        "auc_rank": auc_of_bins(block.rank[column]),
        "pr_auc": average_precision(block.shown[column]),
    }


def _by_slate(
    starts: NDArray[np.int64], labels: NDArray[np.uint8], ranks: NDArray[np.float32]
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    ndcg, mrr = np.zeros(ranks.shape[1]), np.zeros(ranks.shape[1])
    slates = 0
    for start, end in zip(starts, [*starts[1:], len(labels)], strict=True):
        if labels[start:end].any():
            slates += 1
            for column in range(ranks.shape[1]):
                one, two = ndcg_mrr(ranks[start:end, column], labels[start:end])
                ndcg[column] += one
                mrr[column] += two
    return slates, ndcg, mrr


class Cohorts:
    """p(click) p(order) against orders, over all matured impressions, by the hour they were shown.

    Orders come a day after impressions, so sums are kept by hour, and only hours whose every click has matured count.
    """

    _HOUR_MS = 3_600_000
    _KEPT = 24 * 14

    def __init__(self) -> None:
        self._hours: dict[int, list[float]] = {}  # hour -> expected orders, orders, clicks waiting

    def shown(self, at_ms: int, expected: float, clicks: int) -> None:
        """Add the expected orders of a closed slate, and how many of its clicks wait to mature."""
        hour = self._hours.setdefault(at_ms // self._HOUR_MS, [0.0, 0.0, 0.0])
        hour[0] += expected
        hour[2] += clicks
        if len(self._hours) > self._KEPT:
            del self._hours[min(self._hours)]

    def matured(self, at_ms: int, converted: bool) -> None:
        """Add what became of a click on a slate shown at ``at_ms``."""
        hour = self._hours.get(at_ms // self._HOUR_MS)
        if hour is not None:
            hour[1] += converted
            hour[2] -= 1

    def report(self) -> dict[str, float]:
        """Return expected orders, orders and their ratio over the hours before the first one that still waits."""
        expected = orders = 0.0
        newest = max(self._hours, default=0)
        for hour in sorted(self._hours):
            if self._hours[hour][2] > 0 or hour == newest:
                break
            expected += self._hours[hour][0]
            orders += self._hours[hour][1]
        return {"expected_orders": expected, "orders": orders, "calibration": _ratio(expected, orders)}

    def state(self) -> list[Any]:
        """Return everything, by hour."""
        return [[hour, *sums] for hour, sums in sorted(self._hours.items())]

    def restore(self, state: list[Any]) -> None:
        """Go on from what `state` returned."""
        self._hours = {hour: sums for hour, *sums in state}
