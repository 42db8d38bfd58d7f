"""The bank of online models: K arms over the same features, updated in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heft.models.features.vectors import Vectors
from heft.models.hashing import hash_text
from heft.models.importance.weightings import Input
from heft.models.rankers import ftrl
from heft.models.rankers.arms import Arm
from heft.models.rankers.protocol import Samples

_EMPTY = np.zeros((0, 0))
_NOTHING = np.zeros(0, np.float32)
_NO_QUERY = hash_text("") % 2**64


class Bank:
    """FTRL-Proximal models of K arms in one table of 2^bits hashed slots and a bias.

    Parameters
    ----------
    arms
        The arms, in the order of every [n, K] array.
    bits
        2^bits slots, 4 to 28.
    inputs
        Whether and how each arm reads the teacher's logit; default: none does.

    Examples
    --------
    >>> from heft.models.features.config import FeatureConfig
    >>> from heft.models.features.featurizer import Featurizer
    >>> from heft.models.records import Item, Slate
    >>> slate = Slate(request_id="r", user_id="u", at_ms=1541548939000, items=[Item("a"), Item("b")])
    >>> vectors = Featurizer(FeatureConfig(features=("item_id",))).shown(slate, [])
    >>> bank = Bank([Arm("uniform", alpha=0.5)], bits=10)
    >>> bank.learn(Samples(vectors, np.array([1, 0], np.uint8)))
    >>> q, rank = bank.predict(vectors)
    >>> bool(q[0, 0] > 0 > q[1, 0])
    True
    """

    def __init__(self, arms: tuple[Arm, ...] | list[Arm], bits: int, inputs: Sequence[Input] = ()) -> None:
        self.arms = tuple(arms)
        self.bits = bits
        hyper = np.ones((5, ftrl.blocks_of(len(arms)) * ftrl.LANES))
        for k, arm in enumerate(arms):
            kept = 1.0 if arm.half_life is None else 0.5 ** (1.0 / arm.half_life)
            hyper[:, k] = 1.0 / arm.alpha, arm.beta, arm.l1, arm.l2, kept
        kinds = tuple(inputs) or (Input.NONE,) * len(arms)
        self._stacked = np.array([kind is Input.STACKED for kind in kinds])
        self._reads_teacher = np.array([kind is not Input.NONE for kind in kinds])
        self._any_reads_teacher = bool(self._reads_teacher.any())
        self._fixed_slopes = np.zeros((len(arms), 4))  # of the teacher's inputs, not learned
        self._inputs: NDArray[Any] = np.zeros(len(arms), ftrl.INPUT)
        # A model of its own has a bias; a stacked one needs a bias for the rows that have a score.
        self._inputs["learned"] = [{Input.FEATURE: 2, Input.STACKED: 4}.get(kind, 0) for kind in kinds]
        self._inputs["stacked"] = self._stacked
        self._shift = np.uint32(32 - bits)
        self._cells = ftrl.cells_of(1 << bits, len(arms))
        self._touched = np.zeros((1 << bits) + 1, np.bool_)
        self._hyper = hyper

    @property
    def memory_bytes(self) -> int:
        """How much memory the models take, in bytes: 192 for a slot and eight arms, and what is small beside it."""
        arrays = self._cells, self._touched, self._hyper, self._inputs, self._fixed_slopes
        return sum(each.nbytes for each in arrays)

    def predict(
        self, vectors: Vectors, teacher_inputs: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return raw logits [n, K] as shown, and those with every row at the same position. Changes nothing.

        Where ``teacher_inputs`` [n], the teacher's calibrated logits, are NaN or not given, an arm that reads them has
        the logits of the first arm.
        """
        q = np.empty((len(vectors), len(self.arms)))
        rank = np.empty_like(q)
        ftrl.predict(vectors.indptr, vectors.slots, self._shift, self._cells, q, rank)
        if self._any_reads_teacher:
            numbers, input_missing = self._numbers_of(vectors, teacher_inputs)
            slopes = self._fixed_slopes + self._inputs["cells"][:, :, 2]
            ftrl.add_teacher_input(q, rank, numbers, input_missing, slopes, self._reads_teacher, self._stacked)
        return q, rank

    @staticmethod
    def _numbers_of(
        vectors: Vectors, teacher_inputs: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        inputs = _NOTHING if teacher_inputs is None else teacher_inputs
        numbers, missing = ftrl.numbers_of(inputs, len(vectors), vectors.query == _NO_QUERY)
        return numbers, missing

    def learn(self, samples: Samples) -> None:
        """Learn a slate, row by row, each arm from its own prediction at that moment.

        An integer importance weight k is k repeats bit for bit.

        Raises
        ------
        ValueError
            If a weight is NaN, negative, infinite, or an importance weight above 1,000; nothing is learned then.
        """
        vectors, shape = samples.vectors, (len(samples.labels), len(self.arms))
        each: NDArray[Any] = np.empty(shape, ftrl.SAMPLE)
        each["target"] = samples.labels[:, None] if samples.targets is None else samples.targets
        each["importance"] = 1.0 if samples.importance is None else samples.importance
        each["structural"] = 1.0 if samples.structural is None else samples.structural
        each["offset"] = 0.0 if samples.offsets is None else samples.offsets
        each["active"] = True if samples.active is None else samples.active
        numbers = _EMPTY
        if self._any_reads_teacher:
            numbers, input_missing = self._numbers_of(vectors, samples.teacher_inputs)
            each["active"] &= ~(self._reads_teacher & input_missing[:, None])
            each["offset"] += self._fixed_slopes[:, 0] * numbers[:, :1]
        refused = ftrl.learn(
            self._shift, self._cells, self._touched, self._hyper, self._inputs,
            vectors.indptr, vectors.slots, each, numbers,
        )  # fmt: skip
        if refused >= 0:
            row, k = divmod(refused, len(self.arms))
            weights = each[row, k]
            msg = (
                f"weights of row {row}, arm {self.arms[k].name!r}: importance {weights['importance']}, structural "
                f"{weights['structural']}; expected 0 to {ftrl.MAX_STEPS} and a finite number from 0; clip them before"
            )
            raise ValueError(msg)

    def reset_arms(self, offset: float, reset: NDArray[np.bool_]) -> None:
        """Let arms ``reset`` [K], of those that read the teacher, begin anew: a new version of it has taken over.

        An arm with the teacher as a feature goes on from the first arm's model, and a stacked one has that model for
        good: both agree with it until they have learned what the teacher is worth. An arm with a fixed summand,
        ``offset`` for each unit of the input, begins from nothing: the first arm's model knows part of what the summand
        says, and would count it twice.
        """
        places = np.flatnonzero(self._touched)
        for k in np.flatnonzero(self._reads_teacher & reset).tolist():
            if self._inputs["learned"][k]:
                if places.size and not self._stacked[k]:
                    ftrl.adopt(self._cells, places, k, self._hyper)
            else:
                self._blocks[:, k // ftrl.LANES, :, k % ftrl.LANES] = 0.0
                self._fixed_slopes[k, 0] = offset
            self._inputs["cells"][k] = 0.0

    def state(self) -> dict[str, Any]:
        """Return a copy of everything learned: the touched slots and their z and n [touched, 2, K]."""
        places = np.flatnonzero(self._touched)
        table = np.empty((len(places), 2, len(self.arms)))
        ftrl.collect(self._cells, places, table)
        return {
            "places": places.astype(np.uint32),
            "table": table,
            "fixed_slopes": self._fixed_slopes.copy(),
            "input_cells": self._inputs["cells"].copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same arms and bits.

        Raises
        ------
        ValueError
            If the state is of another number of arms or slots.
        """
        places, table = state["places"], state["table"]
        if table.shape[1:] != (2, len(self.arms)) or (places.size and int(places[-1]) != 1 << self.bits):
            msg = f"expected a state of {len(self.arms)} arms and 2^{self.bits} slots, got {table.shape[2]} arms"
            raise ValueError(msg)
        self._fixed_slopes[:] = state["fixed_slopes"]
        self._inputs["cells"] = state["input_cells"]
        self._touched.fill(False)
        self._cells.fill(0.0)
        self._touched[places] = True
        for k in range(len(self.arms)):
            self._blocks[places, k // ftrl.LANES, 0, k % ftrl.LANES] = table[:, 0, k]
            self._blocks[places, k // ftrl.LANES, 1, k % ftrl.LANES] = np.sqrt(table[:, 1, k])
        if places.size:
            ftrl.derive(self._cells, places.astype(np.int64), self._hyper)

    @property
    def _blocks(self) -> NDArray[np.float64]:
        """The cells by slot, block, (z, root of n, weight) and arm [slots + 1, blocks, 3, 8]."""
        return self._cells.reshape(len(self._touched), -1, 3, ftrl.LANES)
