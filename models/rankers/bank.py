"""The bank of online models: K arms over the same features, updated in one pass.

Two kinds of weight come in apart and never mix. An *importance* weight says "this sample counts h times" and is applied
in sub-steps; a *structural* weight keeps an expectation unbiased and multiplies the gradient. Neither is changed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.features.featurizer import Vectors
from heft.models.hashing import hash_text, mix, unit
from heft.models.importance.weightings import Input
from heft.models.rankers import ftrl
from heft.models.rankers.arms import Arm

_NO_INPUTS = np.zeros((0, 0))
_NO_QUERY = hash_text("") % 2**64


class Bank:
    """FTRL-Proximal models of K arms in one table of 2^bits hashed slots and a bias.

    Parameters
    ----------
    arms
        The arms, in the order of every [n, K] array.
    bits
        2^bits slots, 4 to 28.
    seed
        Which negatives a thinned arm learns.
    inputs
        Whether and how each arm reads the reference; default: none does.

    Examples
    --------
    >>> from heft.models.features.featurizer import FeatureConfig, Featurizer
    >>> from heft.models.records import Item, Slate
    >>> slate = Slate(request_id="r", user_id="u", at_ms=1541548939000, items=[Item("a"), Item("b")])
    >>> vectors = Featurizer(FeatureConfig(features=("item_id",))).shown(slate, [])
    >>> bank = Bank([Arm("uniform", alpha=0.5)], bits=10)
    >>> bank.learn(vectors, np.array([1, 0], np.uint8))
    >>> q, rank = bank.predict(vectors)
    >>> bool(q[0, 0] > 0 > q[1, 0])
    True
    """

    def __init__(
        self, arms: tuple[Arm, ...] | list[Arm], bits: int, seed: int = 1, inputs: Sequence[Input] = ()
    ) -> None:
        self.arms = tuple(arms)
        self.bits = bits
        self._seed = np.uint64(seed)
        self._shift = np.uint32(32 - bits)
        self._cells = ftrl.cells_of(1 << bits, len(arms))
        self._touched = np.zeros((1 << bits) + 1, np.bool_)
        self._numbers = np.ones((5, ftrl.blocks_of(len(arms)) * ftrl.LANES))
        for k, arm in enumerate(arms):
            kept = 1.0 if arm.half_life is None else 0.5 ** (1.0 / arm.half_life)
            self._numbers[:, k] = 1.0 / arm.alpha, arm.beta, arm.l1, arm.l2, kept
        self._keep = np.array([arm.keep for arm in arms])
        self._offset = np.array([log(1.0 / arm.keep) for arm in arms])
        self._thins = bool((self._keep < 1.0).any())
        takes = tuple(inputs) or (Input.NONE,) * len(arms)
        # A model of its own has a bias; what is stacked needs one for the rows that have a score.
        self._learns = np.array([{Input.FEATURE: 2, Input.STACKED: 4}.get(each, 0) for each in takes], np.int64)
        self._stacked = np.array([each is Input.STACKED for each in takes])
        self._reads = np.array([each is not Input.NONE for each in takes])
        self._any_reads = bool(self._reads.any())
        self._fixed = np.zeros((len(arms), 4))
        self._dense = np.zeros((len(arms), 4, 3))

    def predict(
        self, vectors: Vectors, inputs: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return raw logits [n, K] as shown, and those with every row at the same position. Changes nothing.

        Where ``inputs`` [n], what the reference said, are NaN or not given, a arm that reads them says what the
        first does.
        """
        q = np.empty((len(vectors), len(self.arms)))
        rank = np.empty_like(q)
        ftrl.predict(vectors.indptr, vectors.slots, self._shift, self._cells, q, rank)
        if self._any_reads:
            taken, input_missing = self._inputs(vectors, inputs)
            ftrl.add_teacher_input(
                q, rank, taken, input_missing, self._fixed + self._dense[:, :, 2], self._reads, self._stacked
            )
        return q, rank

    def _inputs(
        self, vectors: Vectors, inputs: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return what the reading arms take in, and who sleeps [n].

        [n, 4]: the reference's number, for all and again for slates without a query, where a reader of query and item
        says something else; and likewise 1. All 0 where it is missing.
        """
        if inputs is None:
            inputs = np.full(len(vectors), np.nan, np.float32)
        input_missing = np.isnan(inputs)
        taken = np.zeros((len(vectors), 4))
        taken[:, 0] = np.where(input_missing, 0.0, inputs)
        taken[:, 2] = ~input_missing
        if vectors.query == _NO_QUERY:
            taken[:, 1] = taken[:, 0]
            taken[:, 3] = taken[:, 2]
        return taken, input_missing

    def reset_arms(self, offset: float, reset: NDArray[np.bool_]) -> None:
        """Let arms ``reset`` [K], of those that read the reference, begin: a new version of it has taken over.

        One with the reference as a feature goes on from the first arm's model, and one that is stacked on it has
        that model for good: both agree with it until they have learned what the reference is worth. One with a fixed
        summand, ``offset`` for each unit of the input, begins from nothing: the first arm's model knows part of what
        the summand says, and would count it twice.
        """
        places = np.flatnonzero(self._touched)
        for k in np.flatnonzero(self._reads & reset).tolist():
            if self._learns[k]:
                if places.size and not self._stacked[k]:
                    ftrl.adopt(self._cells, places, k, self._numbers)
            else:
                self._blocks[:, k // ftrl.LANES, :, k % ftrl.LANES] = 0.0
                self._fixed[k, 0] = offset
            self._dense[k] = 0.0

    def thin(self, vectors: Vectors, labels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return which rows each arm learns [n, K], and its training offsets [n, K].

        A negative is kept with probability ``keep``, decided by (seed, request, item) alone. With the offset
        log(1 / keep) added in training, the logit without it is that of all samples (He et al. 2014, section 6.3,
        turned round). Items never on screen are active for none; a click proves that its item was.
        """
        shape = (len(vectors), len(self.arms))
        offsets = np.empty(shape)
        offsets[:] = self._offset
        active = np.empty(shape, np.bool_)
        active[:] = (vectors.seen | (labels == 1))[:, None]
        if self._thins:
            _thin(self._seed, np.uint64(vectors.request), vectors.items, labels, self._keep, active)
        return active, offsets

    def learn(
        self,
        vectors: Vectors,
        labels: NDArray[np.uint8],
        importance_weights: NDArray[np.float64] | None = None,
        structural_weights: NDArray[np.float64] | None = None,
        offsets: NDArray[np.float64] | None = None,
        active: NDArray[np.bool_] | None = None,
        targets: NDArray[np.float64] | None = None,
        inputs: NDArray[np.float32] | None = None,
    ) -> None:
        """Learn a slate, row by row, each arm from its own prediction at that moment.

        Parameters
        ----------
        vectors
            The slate as it was shown.
        labels
            0 or 1 [n].
        importance_weights
            How often each sample counts, 0 to 1,000 [n, K]; default 1. Weight k is k repeats bit for bit, 0 is none.
        structural_weights
            Factors on the gradient, at least 0 and finite [n, K]; default 1.
        offsets
            Added to the logit in training only [n, K]; default those of `thin`.
        active
            Whether a arm learns a row [n, K]; default that of `thin`.
        targets
            What each arm learns in place of the labels, soft labels among them, 0 to 1 [n, K].
        inputs
            What the reference said, as `TeacherCalibration.inputs` has it; NaN where a arm that reads it
            learns nothing [n]. Default: everywhere.

        Raises
        ------
        ValueError
            If a weight is NaN, negative, infinite, or a importance weight above 1,000; nothing is learned then.
        """
        if offsets is None or active is None:
            thinned, shifted = self.thin(vectors, labels)
            active = thinned if active is None else active
            offsets = shifted if offsets is None else offsets
        importance = np.ones(active.shape) if importance_weights is None else importance_weights
        structural = np.ones(active.shape) if structural_weights is None else structural_weights
        taken = _NO_INPUTS
        if self._any_reads:
            taken, input_missing = self._inputs(vectors, inputs)
            active = active & ~(self._reads & input_missing[:, None])
            offsets = offsets + self._fixed[:, 0] * taken[:, :1]
        refused = ftrl.learn(
            vectors.indptr, vectors.slots, self._shift, self._cells, self._numbers, self._touched,
            labels, _NO_INPUTS if targets is None else targets, importance, structural, offsets, active,
            taken, self._learns, self._stacked, self._dense,
        )  # fmt: skip
        if refused >= 0:
            row, k = divmod(refused, len(self.arms))
            msg = (
                f"weights of row {row}, arm {self.arms[k].name!r}: importance {importance[row, k]}, structural "
                f"{structural[row, k]}; expected 0 to {ftrl.MAX_STEPS} and a finite number from 0; clip them before"
            )
            raise ValueError(msg)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything learned: the touched slots and their z and n [touched, 2, K]."""
        places = np.flatnonzero(self._touched)
        table = np.empty((len(places), 2, len(self.arms)))
        ftrl.collect(self._cells, places, table)
        return {
            "places": places.astype(np.uint32),
            "table": table,
            "fixed": self._fixed.copy(),
            "dense": self._dense.copy(),
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
        self._fixed, self._dense = state["fixed"].copy(), state["dense"].copy()
        self._touched.fill(False)
        self._cells.fill(0.0)
        self._touched[places] = True
        for k in range(len(self.arms)):
            self._blocks[places, k // ftrl.LANES, 0, k % ftrl.LANES] = table[:, 0, k]
            self._blocks[places, k // ftrl.LANES, 1, k % ftrl.LANES] = np.sqrt(table[:, 1, k])
        if places.size:
            ftrl.derive(self._cells, places.astype(np.int64), self._numbers)

    @property
    def _blocks(self) -> NDArray[np.float64]:
        """The cells by slot, block, (z, root of n, weight) and arm [slots + 1, blocks, 3, 8]."""
        return self._cells.reshape(len(self._touched), -1, 3, ftrl.LANES)


@njit(cache=True)
def _thin(
    seed: np.uint64,
    request: np.uint64,
    items: NDArray[np.uint64],
    labels: NDArray[np.uint8],
    keep: NDArray[np.float64],
    active: NDArray[np.bool_],
) -> None:
    stream = mix(seed, request)
    for row in range(items.size):
        if labels[row] == 0:
            drawn = unit(mix(stream, items[row]))
            for k in range(keep.size):
                if drawn >= keep[k]:
                    active[row, k] = False
