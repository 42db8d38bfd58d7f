"""The bank of online models: K arms over the same features, updated in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heft.models.features.featurizer import Vectors
from heft.models.hashing import hash_text
from heft.models.importance.weightings import Input
from heft.models.rankers import ftrl
from heft.models.rankers.arms import Arm
from heft.models.rankers.protocol import Samples

_EMPTY = np.zeros((0, 0))
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
    >>> from heft.models.features.featurizer import FeatureConfig, Featurizer
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
        self._parameters = ftrl.Parameters(
            shift=np.uint32(32 - bits),
            cells=ftrl.cells_of(1 << bits, len(arms)),
            touched=np.zeros((1 << bits) + 1, np.bool_),
            hyper=hyper,
            # A model of its own has a bias; a stacked one needs a bias for the rows that have a score.
            input_counts=np.array([{Input.FEATURE: 2, Input.STACKED: 4}.get(kind, 0) for kind in kinds], np.int64),
            stacked=self._stacked,
            input_cells=np.zeros((len(arms), 4, 3)),
        )

    @property
    def memory_bytes(self) -> int:
        """How much memory the models take, in bytes: 192 for a slot and eight arms, and what is small beside it."""
        arrays = [each for each in self._parameters if isinstance(each, np.ndarray)]
        return sum(each.nbytes for each in (*arrays, self._fixed_slopes))

    def predict(
        self, vectors: Vectors, teacher_inputs: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return raw logits [n, K] as shown, and those with every row at the same position. Changes nothing.

        Where ``teacher_inputs`` [n], the teacher's calibrated logits, are NaN or not given, an arm that reads them has
        the logits of the first arm.
        """
        parameters = self._parameters
        q = np.empty((len(vectors), len(self.arms)))
        rank = np.empty_like(q)
        ftrl.predict(vectors.indptr, vectors.slots, parameters.shift, parameters.cells, q, rank)
        if self._any_reads_teacher:
            numbers, input_missing = self._numbers_of(vectors, teacher_inputs)
            slopes = self._fixed_slopes + parameters.input_cells[:, :, 2]
            ftrl.add_teacher_input(q, rank, numbers, input_missing, slopes, self._reads_teacher, self._stacked)
        return q, rank

    @staticmethod
    def _numbers_of(
        vectors: Vectors, teacher_inputs: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the numbers that arms which read the teacher take in [n, 4], and where they are missing [n].

        The teacher's logit; the logit again, but 0 where the slate has a query; and likewise twice the number 1. A
        reader of query and item says something else where there is no query, so that is weighed apart. All four are 0
        where the logit is missing.
        """
        if teacher_inputs is None:
            teacher_inputs = np.full(len(vectors), np.nan, np.float32)
        input_missing = np.isnan(teacher_inputs)
        numbers = np.zeros((len(vectors), 4))
        numbers[:, 0] = np.where(input_missing, 0.0, teacher_inputs)
        numbers[:, 2] = ~input_missing
        if vectors.query == _NO_QUERY:
            numbers[:, 1] = numbers[:, 0]
            numbers[:, 3] = numbers[:, 2]
        return numbers, input_missing

    def learn(self, samples: Samples) -> None:
        """Learn a slate, row by row, each arm from its own prediction at that moment.

        An integer importance weight k is k repeats bit for bit.

        Raises
        ------
        ValueError
            If a weight is NaN, negative, infinite, or an importance weight above 1,000; nothing is learned then.
        """
        vectors, shape = samples.vectors, (len(samples.labels), len(self.arms))
        importance = np.ones(shape) if samples.importance is None else samples.importance
        structural = np.ones(shape) if samples.structural is None else samples.structural
        active = np.ones(shape, np.bool_) if samples.active is None else samples.active
        offsets = np.zeros(shape) if samples.offsets is None else samples.offsets
        numbers = _EMPTY
        if self._any_reads_teacher:
            numbers, input_missing = self._numbers_of(vectors, samples.teacher_inputs)
            active = active & ~(self._reads_teacher & input_missing[:, None])
            offsets = offsets + self._fixed_slopes[:, 0] * numbers[:, :1]
        refused = ftrl.learn(
            self._parameters,
            ftrl.Batch(
                vectors.indptr, vectors.slots, samples.labels, _EMPTY if samples.targets is None else samples.targets,
                importance, structural, offsets, active, numbers,
            ),
        )  # fmt: skip
        if refused >= 0:
            row, k = divmod(refused, len(self.arms))
            msg = (
                f"weights of row {row}, arm {self.arms[k].name!r}: importance {importance[row, k]}, structural "
                f"{structural[row, k]}; expected 0 to {ftrl.MAX_STEPS} and a finite number from 0; clip them before"
            )
            raise ValueError(msg)

    def reset_arms(self, offset: float, reset: NDArray[np.bool_]) -> None:
        """Let arms ``reset`` [K], of those that read the teacher, begin anew: a new version of it has taken over.

        An arm with the teacher as a feature goes on from the first arm's model, and a stacked one has that model for
        good: both agree with it until they have learned what the teacher is worth. An arm with a fixed summand,
        ``offset`` for each unit of the input, begins from nothing: the first arm's model knows part of what the summand
        says, and would count it twice.
        """
        parameters = self._parameters
        places = np.flatnonzero(parameters.touched)
        for k in np.flatnonzero(self._reads_teacher & reset).tolist():
            if parameters.input_counts[k]:
                if places.size and not self._stacked[k]:
                    ftrl.adopt(parameters.cells, places, k, parameters.hyper)
            else:
                self._blocks[:, k // ftrl.LANES, :, k % ftrl.LANES] = 0.0
                self._fixed_slopes[k, 0] = offset
            parameters.input_cells[k] = 0.0

    def state(self) -> dict[str, Any]:
        """Return a copy of everything learned: the touched slots and their z and n [touched, 2, K]."""
        parameters = self._parameters
        places = np.flatnonzero(parameters.touched)
        table = np.empty((len(places), 2, len(self.arms)))
        ftrl.collect(parameters.cells, places, table)
        return {
            "places": places.astype(np.uint32),
            "table": table,
            "fixed_slopes": self._fixed_slopes.copy(),
            "input_cells": parameters.input_cells.copy(),
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
        parameters = self._parameters
        self._fixed_slopes[:] = state["fixed_slopes"]
        parameters.input_cells[:] = state["input_cells"]
        parameters.touched.fill(False)
        parameters.cells.fill(0.0)
        parameters.touched[places] = True
        for k in range(len(self.arms)):
            self._blocks[places, k // ftrl.LANES, 0, k % ftrl.LANES] = table[:, 0, k]
            self._blocks[places, k // ftrl.LANES, 1, k % ftrl.LANES] = np.sqrt(table[:, 1, k])
        if places.size:
            ftrl.derive(parameters.cells, places.astype(np.int64), parameters.hyper)

    @property
    def _blocks(self) -> NDArray[np.float64]:
        """The cells by slot, block, (z, root of n, weight) and arm [slots + 1, blocks, 3, 8]."""
        return self._parameters.cells.reshape(len(self._parameters.touched), -1, 3, ftrl.LANES)
