"""Prequential metrics of one head: every sample is predicted when shown, and measured when its label is known.

Metrics are never weighted. A whole log is counted in bounded memory, in blocks of integer counts
(`models.evaluate.tally`). When there are too many blocks, neighbours are merged and the block size doubles. So the
second half of a log of unknown length can be cut out to within half a block: a sixteenth of the half at most. The last
samples are kept as they are, and a window of them is measured exactly (`models.evaluate.newest`) when asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import nan
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.bounded_names import BoundedNames
from heft.models.evaluate import formulas
from heft.models.evaluate.newest import NewestSamples
from heft.models.evaluate.tally import (
    EDGE,
    OTHER_SURFACE,
    POSITIVES,
    SLICES,
    UNIT,
    USER_AUC,
    USER_SAMPLES,
    SliceCounters,
    Tally,
    count,
    ess,
    weigh,
)

_FIRST_BLOCK = 1_024
_MOST_BLOCKS = 32
_USERS_WITHIN = 16_384  # samples among which slates of one user meet for GAUC

_SLICE_BINS = 2 * EDGE * 16
_MOST_SURFACES = 16

Metrics = dict[str, float]


class Observation(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A slate of n items, or one matured click (n = 1), with K predictions as they were when it was shown."""

    user: int
    """Hash of the user: unsigned, 64 bits."""
    labels: NDArray[np.uint8]
    """[n] 0 or 1."""
    raw: NDArray[np.float32]
    """[n, K] raw logits."""
    p: NDArray[np.float32]
    """[n, K] calibrated probabilities."""
    rank: NDArray[np.float32]
    """[n, K] position-free scores on a logit's scale."""
    measured: NDArray[np.bool_]
    """[n] whether the row counts."""
    positions: NDArray[np.uint16]
    """[n] the position shown."""
    new: NDArray[np.bool_]
    """[n] whether the item was new."""
    surface: str = ""
    """Where it was shown; all surfaces beyond the first 16 share a slice."""


class Prequential:
    """Metrics of K arms on the same samples.

    Parameters
    ----------
    arms
        Names, in the order of the columns of every array.
    window
        How many of the last samples `window` measures.

    Examples
    --------
    >>> metrics = Prequential(("uniform",))
    >>> p = np.array([[0.75], [0.25]], np.float32)
    >>> q = np.log(p / (1 - p))
    >>> seen, new = np.array([True, True]), np.array([False, True])
    >>> metrics.add(Observation(7, np.array([1, 0], np.uint8), q, p, q, seen, np.array([0, 1], np.uint16), new))
    >>> metrics.report()["arms"]["uniform"]["auc"]
    1.0
    """

    def __init__(self, arms: Iterable[str], window: int = 50_000) -> None:
        self.arms = tuple(arms)
        K = len(self.arms)
        if not K or window < 1:
            msg = f"metrics: expected at least one arm and a window of 1 or more, got {K} and {window}"
            raise ValueError(msg)
        self._window = window
        self._block_size = _FIRST_BLOCK
        self._blocks: list[Tally] = []
        self._block = Tally(K)
        self._counters = self._block.counters()
        self._surfaces = BoundedNames(_MOST_SURFACES)
        slices = len(SLICES) + _MOST_SURFACES
        self._slices: SliceCounters = (
            np.zeros((slices, 2), np.int64),
            np.zeros((slices, 2, K), np.int64),
            np.zeros((slices, K, 2, _SLICE_BINS), np.uint32),
        )
        # The last samples, and the slates they came in; rows that nothing needs any more go when room runs out.
        self._labels = np.zeros(0, np.uint8)
        self._p = np.zeros((0, K), np.float32)
        self._raw = np.zeros((0, K), np.float32)
        self._rank = np.zeros((0, K), np.float32)
        self._rows = 0
        self._starts = np.zeros(1, np.int64)
        self._users = np.zeros(0, np.uint64)
        self._slates = 0
        self._grouped = 0  # slates already counted in GAUC

    @property
    def samples(self) -> int:
        """How many samples were measured."""
        return sum(block.samples for block in self._blocks) + self._block.samples

    def add(self, slate: Observation) -> None:
        """Measure one slate, or one matured click."""
        labels, raw, p, rank, positions, new = (
            slate.labels, slate.raw, slate.p, slate.rank, slate.positions, slate.new,
        )  # fmt: skip
        if not slate.measured.all():
            rows = slate.measured
            labels, raw, p, rank = labels[rows], raw[rows], p[rows], rank[rows]
            positions, new = positions[rows], new[rows]
        if not len(labels):
            return
        count(labels, raw, p, rank, positions, new, self._slice_of(slate.surface), self._counters, self._slices)
        self._remember(labels, raw, p, rank, slate.user)
        if self._block.samples >= self._block_size:
            self._close_block()
        elif self._rows - self._starts[self._grouped] >= _USERS_WITHIN:
            self._group_users()

    def weigh(self, labels: NDArray[np.uint8], weights: NDArray[np.float64]) -> None:
        """Note the weights [n, K'] with which the first K' arms learn, for their effective sample size."""
        weigh(labels, weights, self._block.weights)

    def _slice_of(self, surface: str) -> int:
        place = self._surfaces.place(surface)
        return OTHER_SURFACE if place == _MOST_SURFACES else len(SLICES) + place

    def _remember(
        self,
        labels: NDArray[np.uint8],
        raw: NDArray[np.float32],
        p: NDArray[np.float32],
        rank: NDArray[np.float32],
        user: int,
    ) -> None:
        n = len(labels)
        if self._rows + n > len(self._labels) or self._slates + 1 > len(self._users):
            self._make_room(n)
        rows = slice(self._rows, self._rows + n)
        self._labels[rows] = labels
        self._p[rows] = p
        self._raw[rows] = raw
        self._rank[rows] = rank
        self._users[self._slates] = user
        self._rows += n
        self._slates += 1
        self._starts[self._slates] = self._rows

    def _kept_from(self) -> int:
        """Return the first slate that is still needed: for the window, or because it is not yet grouped by user."""
        from_row = max(self._rows - self._window, 0)
        first = int(np.searchsorted(self._starts[: self._slates + 1], from_row, "right")) - 1
        return min(first, self._grouped)

    def _make_room(self, n: int) -> None:
        kept = self._kept_from()
        self._load(self._tail(kept), self._grouped - kept, n)

    def _tail(self, first: int) -> dict[str, NDArray[Any]]:
        """Return the kept samples from slate ``first`` on."""
        row = int(self._starts[first])
        rows, slates = slice(row, self._rows), slice(first, self._slates)
        return {
            "labels": self._labels[rows],
            "p": self._p[rows],
            "raw": self._raw[rows],
            "rank": self._rank[rows],
            "users": self._users[slates],
            "starts": self._starts[first : self._slates + 1] - row,
        }

    def _load(self, tail: dict[str, NDArray[Any]], grouped: int, n: int = 0) -> None:
        """Lay the samples out anew with room for at least n more."""
        held = len(tail["labels"])
        size = min(2 * held + 4 * n + 1_024, held + n + self._window)
        for name in ("labels", "p", "raw", "rank"):
            old = tail[name]
            fresh = np.zeros((size, *old.shape[1:]), old.dtype)
            fresh[:held] = old
            setattr(self, f"_{name}", fresh)
        slates = len(tail["users"])
        self._users = np.zeros(2 * slates + 64, np.uint64)
        self._users[:slates] = tail["users"]
        self._starts = np.zeros(len(self._users) + 1, np.int64)
        self._starts[: slates + 1] = tail["starts"]
        self._rows, self._slates, self._grouped = held, slates, grouped

    def _pending_users(self) -> tuple[int, NDArray[np.int64]]:
        """Return what the slates not yet grouped by user add to GAUC: samples, and sums by arm in fixed point."""
        first, last = self._grouped, self._slates
        weight, sums = self._gauc(first, last)
        return weight, np.rint(sums * UNIT).astype(np.int64)

    def _gauc(self, first: int, last: int) -> tuple[int, NDArray[np.float64]]:
        users = self._users[first:last]
        order = np.argsort(users, kind="stable")
        weight, sums = formulas.grouped_auc(self._labels, self._rank, self._starts[first : last + 1], users, order)
        return weight, sums

    def _group_users(self) -> None:
        weight, sums = self._pending_users()
        self._block.counts[USER_SAMPLES] += weight
        self._block.sums[USER_AUC] += sums
        self._grouped = self._slates

    def _close_block(self) -> None:
        self._group_users()
        self._blocks.append(self._block.take())
        if len(self._blocks) == _MOST_BLOCKS:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
            self._blocks = [_sum((first, second)) for first, second in pairs]
            self._block_size *= 2

    def _current(self) -> Tally:
        """Return the counts of the unfinished block, slates not yet grouped by user included."""
        current = _sum((self._block,))
        weight, sums = self._pending_users()
        current.counts[USER_SAMPLES] += weight
        current.sums[USER_AUC] += sums
        return current

    def total(self) -> Tally:
        """Return the counts of the whole log. Those of several logs or shards may be added, see `merge`."""
        return _sum((*self._blocks, self._current()))

    def second_half(self) -> Tally:
        """Return the counts of the samples after the first half, cut at the block bound nearest to it."""
        blocks = [*self._blocks, self._current()]
        before = np.cumsum([0] + [block.samples for block in blocks])
        first = int(np.argmin(np.abs(before[:-1] - before[-1] / 2)))
        return _sum(blocks[first:])

    def report(self) -> dict[str, Any]:
        """Return counts, metrics by arm with those of the second half beside them, and metrics by slice."""
        whole, half = self.total(), self.second_half()
        return {
            "samples": whole.samples,
            "positives": int(whole.counts[POSITIVES]),
            "second_half": {"samples": half.samples, "positives": int(half.counts[POSITIVES])},
            "arms": {name: whole.metrics(k) | {"second_half": half.metrics(k)} for k, name in enumerate(self.arms)},
            "slices": self.slices(),
        }

    def slices(self) -> dict[str, dict[str, Any]]:
        """Return, by slice that has samples: counts, and log loss, NE, calibration and AUC by arm."""
        counts, sums, histogram = self._slices
        names = [*SLICES, *(f"surface {surface or '(none)'}" for surface in self._surfaces.names)]
        out: dict[str, dict[str, Any]] = {}
        for s, name in enumerate(names):
            n, positives = (int(each) for each in counts[s])
            if not n:
                continue
            entropy = formulas.entropy(positives / n)
            arms = {}
            for k, arm in enumerate(self.arms):
                loss, predicted = sums[s, :, k] / UNIT
                negative, positive = histogram[s, k, :, ::-1].astype(np.float64)
                arms[arm] = {
                    "logloss": float(loss / n),
                    "ne": float(loss / n / entropy),
                    "calibration": float(predicted / positives) if positives else nan,
                    "auc": formulas.auc_of_groups(positive, negative),
                }
            out[name] = {"samples": n, "positives": positives, "arms": arms}
        return out

    def newest(self) -> NewestSamples:
        """Return the last samples: ``window`` of them, in whole slates. What is added later changes nothing there."""
        first = int(np.searchsorted(self._starts[: self._slates + 1], max(self._rows - self._window, 0)))
        row = int(self._starts[first])
        # Rows are written once, and making room lays them out in new arrays: views stay as they are.
        rows, slates = slice(row, self._rows), slice(first, self._slates)
        starts = self._starts[first : self._slates + 1] - row
        return NewestSamples(
            self._labels[rows], self._p[rows], self._raw[rows], self._rank[rows], starts, self._users[slates]
        )

    def window(self) -> dict[str, Any]:
        """Return counts and exact metrics by arm of the last samples."""
        newest = self.newest()
        arms = {name: newest.metrics(k) for k, name in enumerate(self.arms)}
        return {"samples": newest.samples, "positives": newest.positives, "arms": arms}

    def effective_samples(self) -> list[tuple[float, float]]:
        """Return, by arm that was weighed, the effective share of the negatives and of the positives."""
        weights = sum((block.weights for block in self._blocks), self._block.weights)
        return [(ess(*negative), ess(*positive)) for negative, positive in weights.astype(np.float64)]

    def state(self) -> dict[str, Any]:
        """Return everything, as plain values and arrays. Resting blocks are shared, since they never change."""
        kept = self._kept_from()
        slice_counts, slice_sums, slice_histogram = (each.copy() for each in self._slices)
        return {
            "arms": list(self.arms),
            "block_size": self._block_size,
            "blocks": [block.state() for block in self._blocks],
            "block": self._block.state(),
            "surfaces": self._surfaces.names,
            "slice_counts": slice_counts,
            "slice_sums": slice_sums,
            "slice_histogram": slice_histogram,
            "tail": {name: each.copy() for name, each in self._tail(kept).items()},
            "grouped": self._grouped - kept,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises
        ------
        ValueError
            If the state is of other arms; nothing has changed then.
        """
        if tuple(state["arms"]) != self.arms:
            msg = f"metrics: expected a state of {', '.join(self.arms)}, got {', '.join(state['arms'])}"
            raise ValueError(msg)
        self._block_size = int(state["block_size"])
        self._blocks = [Tally.of(each, resting=True) for each in state["blocks"]]
        self._block = Tally.of(state["block"], resting=False)
        self._counters = self._block.counters()
        self._surfaces = BoundedNames(_MOST_SURFACES, state["surfaces"])
        self._slices = state["slice_counts"].copy(), state["slice_sums"].copy(), state["slice_histogram"].copy()
        self._load(state["tail"], int(state["grouped"]))


def _sum(tallies: Iterable[Tally]) -> Tally:
    tallies = list(tallies)
    whole = Tally(tallies[0].arms)
    for each in tallies:
        whole.add(each)
    if len(tallies) > 1:
        whole.rest()
    return whole


def merge(first: Prequential, second: Prequential) -> Tally:
    """Return the counts of two logs together: the same in either order, bit for bit.

    They equal the counts of one log that holds both, except that GAUC groups users within each log alone.
    """
    return _sum((first.total(), second.total()))
