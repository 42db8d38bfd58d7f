"""FTRL-Proximal for K arms at once, compiled.

The parameters of one slot lie beside each other, eight arms to a block, so that a block is a few vector
instructions: ``cells[(slot * blocks + block) * 24 + (0, 8 or 16) + k]`` is z, the root of n, or the weight w of arm
``8 * block + k``; the last slot is the bias. The weight is derived as soon as z and n move, so a prediction is never a
step behind and reads one number a slot and arm:

    w = -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)   if |z| > l1 else 0
    z += h g x - (sqrt(n + h (g x)^2) - sqrt(n)) / alpha * w,   n += h (g x)^2

after McMahan et al., "Ad Click Prediction: a View from the Trenches" (2013), algorithm 1; the bias is not regularised.
Rows are of unit length: each of a row's E slots has the value x = 1 / sqrt(E), the bias 1, so that a good learning rate
is good for rows of 20 slots and of 100, and unknown slots draw a prediction towards the base rate.
An importance weight h enters as sub-steps: ceil(h) inner updates of equal weight, each from the prediction it finds,
so that weight k is k repeats (Karampatziakis & Langford 2011, section 2, take the limit of infinitely many). Within a
sub-step, of weight at most 1, the accumulator grows by h (g x)^2, not (h g x)^2: weight means repetition there too.
A structural weight is a factor on g itself, and the accumulator grows by its square: with beta, l1 and l2 of 0, a
factor on all structural weights changes nothing, and one on all importance weights multiplies the steps by its root.
"""

from __future__ import annotations

from math import exp, sqrt
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

MAX_STEPS = 1_000
LANES = 8
"""Arms to a block."""

CELL = 3 * LANES
"""Numbers to a block of one slot."""

_ROOT, _WEIGHT = LANES, 2 * LANES
INVERSE_ALPHA, BETA, L1, L2, KEEP = range(5)
"""Rows of the hyper-parameters; the last is the factor by which an accumulator fades with each update."""


INPUT = np.dtype(
    [
        ("cells", np.float64, (4, 3)),  # z, root of n and weight of each of the teacher's numbers
        ("learned", np.int64),  # how many of the numbers the arm learns a weight for
        ("stacked", np.bool_),  # whether it adds to the logit of the first arm, and has no weights for slots
    ],
    align=True,
)
"""How an arm reads the teacher."""

SAMPLE = np.dtype(
    [
        ("target", np.float64),  # the label, or what stands in for it: 0 to 1
        ("importance", np.float64),
        ("structural", np.float64),  # the two kinds of weight
        ("offset", np.float64),  # added to the logit
        ("active", np.bool_),  # whether the arm learns the row
    ],
    align=True,
)
"""What an arm learns of a row."""


class Rates(NamedTuple):
    """What decides how far each arm's weights move [lanes]."""

    inverse_alpha: NDArray[np.float64]
    beta: NDArray[np.float64]
    l1: NDArray[np.float64]
    l2: NDArray[np.float64]


def cells_of(slots: int, arms: int) -> NDArray[np.float64]:
    """Return room for ``slots`` and the bias, all zero, blocks at bounds of cache lines."""
    size = (slots + 1) * blocks_of(arms) * CELL
    room = np.zeros(size + LANES)
    start = -(room.ctypes.data // room.itemsize) % LANES
    return room[start : start + size]


def blocks_of(arms: int) -> int:
    """Return how many blocks hold so many arms."""
    return -(-arms // LANES)


@njit(cache=True, inline="always")
def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + exp(-x))
    e = exp(x)
    return e / (1.0 + e)


@njit(cache=True)
def _gather(
    slots: NDArray[np.uint32], start: int, end: int, shift: np.uint32, known: int, out: NDArray[np.int64]
) -> int:
    """Append to the sorted ``out[:known]`` the places of the sorted ``slots[start:end]`` it lacks; return the size."""
    k = 0
    size = known
    for i in range(start, end):
        place = np.int64(slots[i] >> shift)
        if size > known and out[size - 1] == place:
            continue
        while k < known and out[k] < place:
            k += 1
        if k < known and out[k] == place:
            continue
        out[size] = place
        size += 1
    return size


@njit(cache=True)
def predict(
    indptr: NDArray[np.int32],
    slots: NDArray[np.uint32],
    shift: np.uint32,
    cells: NDArray[np.float64],
    q: NDArray[np.float64],
    rank: NDArray[np.float64],
) -> None:
    """Fill the logits as shown ``q`` [n, K] and without position ``rank`` [n, K]."""
    many = q.shape[1]
    blocks = (many + LANES - 1) // LANES
    bias = cells.size - blocks * CELL
    places = np.empty(slots.size + 1, np.int64)
    shown, free = np.empty(blocks * LANES), np.empty(blocks * LANES)
    for row in range(q.shape[0]):
        first, second = indptr[3 * row], indptr[3 * row + 1]
        third, fourth = indptr[3 * row + 2], indptr[3 * row + 3]
        common = _gather(slots, first, second, shift, 0, places)
        shown[:] = 0.0
        _add_weights(cells, places, 0, common, blocks, shown)
        free[:] = shown
        size = _gather(slots, second, third, shift, common, places)
        _add_weights(cells, places, common, size, blocks, shown)
        # Both scores take the length of the row as shown, so that they differ by position alone.
        x = 1.0 / sqrt(max(size, 1.0))
        size = _gather(slots, third, fourth, shift, common, places)
        _add_weights(cells, places, common, size, blocks, free)
        for k in range(many):
            base = cells[bias + k // LANES * CELL + _WEIGHT + k % LANES]
            q[row, k] = shown[k] * x + base
            rank[row, k] = free[k] * x + base


@njit(cache=True)
def _add_weights(
    cells: NDArray[np.float64],
    places: NDArray[np.int64],
    start: int,
    end: int,
    blocks: int,
    out: NDArray[np.float64],
) -> None:
    for e in range(start, end):
        for block in range(blocks):
            cell = (places[e] * blocks + block) * CELL + _WEIGHT
            lane = block * LANES
            for k in range(LANES):
                out[lane + k] += cells[cell + k]


@njit(cache=True)
def learn(
    shift: np.uint32,
    cells: NDArray[np.float64],
    touched: NDArray[np.bool_],
    hyper: NDArray[np.float64],
    inputs: NDArray[Any],
    indptr: NDArray[np.int32],
    slots: NDArray[np.uint32],
    samples: NDArray[Any],
    numbers: NDArray[np.float64],
) -> int:
    """Update every active arm on every row in turn; return -1, or ``row * K + arm`` of a weight that is none.

    Nothing is changed when a weight is refused. An arm takes in the first ``learned`` of the teacher's numbers beside
    its slots. One that is ``stacked`` adds them to the logit of the first arm as it is, and moves nothing else.

    Parameters
    ----------
    shift
        A slot lies at the place ``slot >> shift``.
    cells
        z, root of n and weight by slot and arm, as the module says.
    touched
        Which places were ever updated [slots + 1].
    hyper
        Hyper-parameters by arm [5, lanes]; lanes without an arm have 1.
    inputs
        `INPUT` [K].
    indptr, slots
        As in `Vectors`.
    samples
        `SAMPLE` [n, K].
    numbers
        The teacher's numbers [n, 4]; empty where no arm reads any.
    """
    rows, many = samples.shape
    for row in range(rows):
        for k in range(many):
            sample = samples[row, k]
            if not (0.0 <= sample.importance <= MAX_STEPS and 0.0 <= sample.structural < np.inf):
                return int(row * many + k)
    lanes = hyper.shape[1]
    blocks = lanes // LANES
    none = np.zeros(lanes)
    rates = Rates(hyper[INVERSE_ALPHA], hyper[BETA], hyper[L1], hyper[L2])
    bias_rates = Rates(hyper[INVERSE_ALPHA], hyper[BETA], none, none)  # the bias is not regularised
    bias = touched.size - 1
    places = np.empty(slots.size + 1, np.int64)
    margin, share, slope = np.empty(lanes), np.zeros(lanes), np.zeros(lanes)
    push, grow = np.zeros(lanes), np.zeros(lanes)
    steps = np.empty(many, np.int64)
    for row in range(rows):
        most = 0
        for k in range(many):
            sample = samples[row, k]
            steps[k] = 0
            if sample.active and sample.structural > 0.0:
                steps[k] = np.int64(np.ceil(sample.importance))
            share[k] = sample.importance / steps[k] if steps[k] > 0 else 0.0
            most = max(most, steps[k])
        if most == 0:
            continue
        size = _gather(slots, indptr[3 * row], indptr[3 * row + 1], shift, 0, places)
        size = _gather(slots, indptr[3 * row + 1], indptr[3 * row + 2], shift, size, places)
        x = 1.0 / sqrt(max(size, 1.0))
        places[size] = bias
        for e in range(size + 1):
            touched[places[e]] = True
        for step in range(most):
            margin[:] = 0.0
            _add_weights(cells, places, 0, size, blocks, margin)
            fades = False
            for k in range(many):
                sample, stacked = samples[row, k], inputs[k].stacked
                if step >= steps[k]:
                    share[k] = 0.0
                fades |= share[k] > 0.0 and hyper[KEEP, k] < 1.0
                base = cells[(bias * blocks + k // LANES) * CELL + _WEIGHT + k % LANES]
                q = margin[k] * x + base + sample.offset
                if stacked:
                    q = margin[0] * x + cells[bias * blocks * CELL + _WEIGHT] + sample.offset
                for j in range(inputs[k].learned):
                    q += inputs[k].cells[j, 2] * numbers[row, j]
                slope[k] = (sigmoid(q) - sample.target) * sample.structural if share[k] > 0.0 else 0.0
                push[k] = 0.0 if stacked else share[k] * (slope[k] * x)
                grow[k] = push[k] * (slope[k] * x)
            if fades:
                _fade(cells, places, size, share, hyper)
            _move(cells, places, 0, size, push, grow, rates)
            for k in range(many):
                push[k] = 0.0 if inputs[k].stacked else share[k] * slope[k]
                grow[k] = push[k] * slope[k]
            _move(cells, places, size, size + 1, push, grow, bias_rates)
            for k in range(many):
                if share[k] > 0.0:
                    for j in range(inputs[k].learned):
                        gradient = slope[k] * numbers[row, j]
                        _move_one(inputs[k].cells[j], share[k], gradient, hyper[INVERSE_ALPHA, k], hyper[BETA, k])
    return -1


@njit(cache=True, error_model="numpy")
def _move_one(cell: NDArray[np.float64], share: float, gradient: float, inverse_alpha: float, beta: float) -> None:
    """Add a gradient to z, root of n and weight ``cell`` [3] of one number, not regularised."""
    before = cell[1]
    cell[1] = sqrt(before * before + share * gradient * gradient)
    cell[0] += share * gradient - (cell[1] - before) * inverse_alpha * cell[2]
    pull = (beta + cell[1]) * inverse_alpha
    cell[2] = -cell[0] / pull if pull > 0.0 else 0.0  # beta is 0, and nothing but zeros came yet


@njit(cache=True)
def numbers_of(
    logits: NDArray[np.float32], rows: int, without_query: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the numbers that arms which read the teacher take in [rows, 4], and where they are missing [rows].

    The teacher's logit; the logit again, but 0 where the slate has a query; and likewise twice the number 1. A reader
    of query and item says something else where there is no query, so that is weighed apart. All four are 0 where the
    logit is missing: where it is NaN, or everywhere if ``logits`` is empty.
    """
    numbers, missing = np.zeros((rows, 4)), np.ones(rows, np.bool_)
    for row in range(logits.size):
        if not np.isnan(logits[row]):
            missing[row] = False
            numbers[row, 0], numbers[row, 2] = logits[row], 1.0
            if without_query:
                numbers[row, 1], numbers[row, 3] = logits[row], 1.0
    return numbers, missing


@njit(cache=True)
def add_teacher_input(
    q: NDArray[np.float64],
    rank: NDArray[np.float64],
    inputs: NDArray[np.float64],
    input_missing: NDArray[np.bool_],
    slopes: NDArray[np.float64],
    reads: NDArray[np.bool_],
    stacked: NDArray[np.bool_],
) -> None:
    """Add ``slopes`` [K, J] times ``inputs`` [n, J] to both logits [n, K] of the arms that ``reads`` [K].

    Those that are ``stacked`` [K] add it to the first arm's logits. On rows where the input is missing
    (``input_missing`` [n]), all say what the first arm says.
    """
    for k in range(reads.size):
        if reads[k]:
            for row in range(input_missing.size):
                if input_missing[row]:
                    q[row, k], rank[row, k] = q[row, 0], rank[row, 0]
                    continue
                if stacked[k]:
                    q[row, k], rank[row, k] = q[row, 0], rank[row, 0]
                moved = 0.0
                for j in range(inputs.shape[1]):
                    moved += slopes[k, j] * inputs[row, j]
                q[row, k] += moved
                rank[row, k] += moved


@njit(cache=True, error_model="numpy")
def adopt(cells: NDArray[np.float64], places: NDArray[np.int64], k: int, hyper: NDArray[np.float64]) -> None:
    """Give arm ``k`` the accumulators and weights of the first at some places, the bias last among them."""
    blocks = hyper.shape[1] // LANES
    for e in range(places.size):
        first = places[e] * blocks * CELL
        cell = (places[e] * blocks + k // LANES) * CELL + k % LANES
        root, w = cells[first + _ROOT], cells[first + _WEIGHT]
        l1, l2 = (hyper[L1, k], hyper[L2, k]) if e < places.size - 1 else (0.0, 0.0)
        cells[cell + _ROOT], cells[cell + _WEIGHT] = root, w
        cells[cell] = 0.0
        if w != 0.0:
            cells[cell] = -w * ((hyper[BETA, k] + root) * hyper[INVERSE_ALPHA, k] + l2) - np.copysign(l1, w)


@njit(cache=True, error_model="numpy")
def _move(
    cells: NDArray[np.float64],
    places: NDArray[np.int64],
    start: int,
    end: int,
    push: NDArray[np.float64],
    grow: NDArray[np.float64],
    rates: Rates,
) -> None:
    """Add ``push`` [lanes] to the gradients and ``grow`` [lanes] to their squares at some places."""
    blocks = push.size // LANES
    inverse_alpha, beta, l1, l2 = rates.inverse_alpha, rates.beta, rates.l1, rates.l2
    for e in range(start, end):
        for block in range(blocks):
            cell = (places[e] * blocks + block) * CELL
            lane = block * LANES
            for k in range(LANES):
                before = cells[cell + _ROOT + k]
                root = sqrt(before * before + grow[lane + k])
                z = cells[cell + k] + (
                    push[lane + k] - (root - before) * inverse_alpha[lane + k] * cells[cell + _WEIGHT + k]
                )
                cells[cell + k] = z
                cells[cell + _ROOT + k] = root
                size = abs(z) - l1[lane + k]
                w = size / ((beta[lane + k] + root) * inverse_alpha[lane + k] + l2[lane + k])
                w = w if size > 0.0 else 0.0
                cells[cell + _WEIGHT + k] = -w if z > 0.0 else w


@njit(cache=True)
def collect(cells: NDArray[np.float64], places: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Fill z and n ``out`` [places, 2, K] of some places."""
    blocks = (out.shape[2] + LANES - 1) // LANES
    for e in range(places.size):
        for k in range(out.shape[2]):
            cell = (places[e] * blocks + k // LANES) * CELL + k % LANES
            out[e, 0, k] = cells[cell]
            # The root of a square is the number itself, to the last bit.
            out[e, 1, k] = cells[cell + _ROOT] * cells[cell + _ROOT]


@njit(cache=True)
def derive(cells: NDArray[np.float64], places: NDArray[np.int64], hyper: NDArray[np.float64]) -> None:
    """Derive the weights at some places, the bias last among them, from z and n."""
    none = np.zeros(hyper.shape[1])
    rates = Rates(hyper[INVERSE_ALPHA], hyper[BETA], hyper[L1], hyper[L2])
    bias_rates = Rates(hyper[INVERSE_ALPHA], hyper[BETA], none, none)
    last = places.size - 1
    _move(cells, places, 0, last, none, none, rates)
    _move(cells, places, last, last + 1, none, none, bias_rates)


@njit(cache=True)
def _fade(
    cells: NDArray[np.float64],
    places: NDArray[np.int64],
    size: int,
    share: NDArray[np.float64],
    hyper: NDArray[np.float64],
) -> None:
    """Let the past of the accumulators fade; the weights stay: z becomes what gives the same w under a smaller n."""
    blocks = share.size // LANES
    for k in range(share.size):
        if share[k] == 0.0 or hyper[KEEP, k] == 1.0:
            continue
        left = sqrt(hyper[KEEP, k] ** share[k])
        for e in range(size + 1):
            l1, l2 = (hyper[L1, k], hyper[L2, k]) if e < size else (0.0, 0.0)
            cell = (places[e] * blocks + k // LANES) * CELL + k % LANES
            root = cells[cell + _ROOT] * left
            cells[cell + _ROOT] = root
            w = cells[cell + _WEIGHT]
            if w != 0.0:
                cells[cell] = -w * ((hyper[BETA, k] + root) * hyper[INVERSE_ALPHA, k] + l2) - np.copysign(l1, w)
