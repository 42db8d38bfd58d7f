"""The published recipe's readings on the real student: which of them delete what a good reference knows."""

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from heft.models.features.vectors import Vectors
from heft.models.importance.weigh import Evidence, Importance
from heft.models.importance.weightings import AS_WRITTEN, Measure, PublishedRecipe, Weighting, as_written
from heft.models.rankers.arms import Arm
from heft.models.rankers.bank import Bank
from heft.models.rankers.protocol import Samples

CELLS = 24
TRUTH = np.linspace(-5.0, -0.5, CELLS)
RATE = 1 / (1 + np.exp(-TRUTH))
CORRECTED = msgspec.structs.replace(AS_WRITTEN, low=1e-9)
WEIGHTINGS = (
    Weighting("uniform"),
    *(as_written(reading) for reading in PublishedRecipe),
    Weighting("rho", Measure.RHO, 1.0, diagnostic=True, pipeline=AS_WRITTEN),
    Weighting("s6, offset", Measure.REFERENCE_GRADIENT, 1.0, offset=True, pipeline=CORRECTED),
    Weighting("s7, offset", Measure.GRADIENT, 1.0, offset=True, pipeline=CORRECTED),
)
NAMES = [weighting.name for weighting in WEIGHTINGS]


def one_item_a_cell() -> Vectors:
    """Every item has one slot of its own: the student can say of each what it likes."""
    indptr = np.array([row + (part > 0) for row in range(CELLS) for part in range(3)] + [CELLS], np.int32)
    slots = (np.arange(1, CELLS + 1, dtype=np.uint32) << np.uint32(20)).astype(np.uint32)
    ids, places = np.arange(1, CELLS + 1, dtype=np.uint64), np.arange(CELLS, dtype=np.uint16)
    seen, new = np.ones(CELLS, np.bool_), np.zeros(CELLS, np.bool_)
    return Vectors(1_600_000_000_000, 1, 1, 1, ids, places, seen, new, indptr, slots)


@pytest.fixture(scope="module")
def learned() -> NDArray[np.float64]:
    """Logits [CELLS, weightings] after 6,000 slates, with a reference that knows the truth."""
    rng = np.random.default_rng(1)
    vectors, importance = one_item_a_cell(), Importance(WEIGHTINGS, seed=1)
    bank = Bank([Arm(name) for name in NAMES], bits=12)
    nothing, all_of_them = np.zeros(CELLS, np.uint8), np.ones(CELLS, np.bool_)
    for request in range(6_000):
        y = (rng.random(CELLS) < RATE).astype(np.uint8)
        q = 1 / (1 + np.exp(-bank.predict(vectors)[0]))
        w = importance.weigh(
            Evidence(
                labels=y, q=q, shown=q.astype(np.float32), reference=RATE, missing=nothing, counts=np.zeros(CELLS),
                learned=all_of_them, items=vectors.items, request=request, surface="search",
            )
        )  # fmt: skip
        bank.learn(Samples(vectors, y, w.importance, w.structural, w.offsets, w.kept))
    return bank.predict(vectors)[0]


def auc(logits: NDArray[np.float64]) -> float:
    """The probability that a positive stands above a negative, both drawn from the cells by the truth."""
    above = (logits[:, None] > logits[None]) + 0.5 * (logits[:, None] == logits[None])
    return float(RATE / RATE.sum() @ above @ ((1 - RATE) / (1 - RATE).sum()))


def ne(logits: NDArray[np.float64]) -> float:
    """The expected log loss over that of the base rate."""
    loss = np.logaddexp(0, logits) - RATE * logits
    base = RATE.mean()
    return float(loss.mean() / -(base * np.log(base) + (1 - base) * np.log(1 - base)))


def calibration(logits: NDArray[np.float64]) -> float:
    return float((1 / (1 + np.exp(-logits))).sum() / RATE.sum())


def test_a_perfect_reference_weighting_by_its_gradient_or_loss_leaves_no_ranking(
    learned: NDArray[np.float64],
) -> None:
    # What is left between cells is chance; how chance ranks them says nothing, so spread is measured, not AUC.
    assert learned[:, 0].std() > 1.3
    # The weights 1 / r_y are as high as 150: more chance.
    for name, left in (("s4", 0.4), ("s6", 0.15)):
        assert learned[:, NAMES.index(name)].std() < left * learned[:, 0].std()
        assert calibration(learned[:, NAMES.index(name)]) > 3.0
        assert ne(learned[:, NAMES.index(name)]) > 2.0 * ne(learned[:, 0])


def test_what_trusts_the_reference_over_sharpens_and_the_own_gradient_flattens(learned: NDArray[np.float64]) -> None:
    uniform = ne(learned[:, 0])
    assert calibration(learned[:, NAMES.index("s5")]) < 0.5
    assert calibration(learned[:, NAMES.index("s7")]) > 1.8
    assert ne(learned[:, NAMES.index("s5")]) > 1.2 * uniform
    assert ne(learned[:, NAMES.index("s7")]) > 1.15 * uniform
    # The ranking stays: a calibration layer after the student would mend most of it.
    assert auc(learned[:, NAMES.index("s7")]) > 0.79


@pytest.mark.parametrize("name", ["s1", "s2", "s3", "s8", "rho", "s6, offset", "s7, offset"])
def test_all_others_end_where_uniform_does_when_the_student_can_say_all(
    learned: NDArray[np.float64], name: str
) -> None:
    assert ne(learned[:, NAMES.index(name)]) == pytest.approx(ne(learned[:, 0]), rel=0.015)


def test_each_reading_ends_near_its_fixed_point(learned: NDArray[np.float64]) -> None:
    for name, expected in (("s6", 0 * TRUTH), ("s7", TRUTH / 2), ("rho", TRUTH), ("uniform", TRUTH)):
        assert np.sqrt(((learned[:, NAMES.index(name)] - expected) ** 2).mean()) < 0.2
