"""The confidence sequence: it may be looked at after each slate, and is seldom wrong."""

from math import log, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from heft.models.evaluate.confidence import ConfidenceSequence

START = 500


def skewed(streams: int, slates: int, seed: int) -> NDArray[np.float64]:
    """Differences of mean 0 [slates, streams], skewed as those of a log loss: mostly little, seldom much."""
    rng = np.random.default_rng(seed)
    clicked = rng.random((slates, streams)) < 0.05
    return np.where(clicked, rng.normal(0.95, 0.5, clicked.shape), rng.normal(-0.05, 0.02, clicked.shape))


def test_under_the_null_it_is_seldom_wrong_however_often_one_looks() -> None:
    sims, slates = 500, 8_000
    sequence = ConfidenceSequence(sims, alpha=0.05, tightest_at=slates, start=START)
    ever, fixed = np.zeros(sims, np.bool_), np.zeros(sims, np.bool_)
    differences = skewed(sims, slates, seed=1)
    for t in range(slates):
        sequence.add(differences[t])
        ever |= sequence.below | sequence.above
        if t >= START:
            deviation = np.sqrt(sequence.state()["squares"] / sequence.slates[0])
            fixed |= np.abs(sequence.mean) > 1.96 * deviation / sqrt(sequence.slates[0])
    assert ever.mean() <= 0.05 + 3 * sqrt(0.05 * 0.95 / sims)
    assert fixed.mean() > 0.25  # what looking at a fixed interval each time does


def test_an_arm_against_itself_differs_by_exactly_nothing() -> None:
    sequence = ConfidenceSequence(1)
    for _ in range(1_000):
        sequence.add(np.zeros(1))
    assert (sequence.mean[0], sequence.half_width[0]) == (0.0, 0.0)
    assert not sequence.below[0]
    assert not sequence.above[0]


def test_it_contains_the_fixed_interval_at_all_times() -> None:
    sequence = ConfidenceSequence(3, tightest_at=2_000, start=2)
    for differences in skewed(3, 5_000, seed=2):
        sequence.add(differences)
        if sequence.slates[0] >= 2:
            deviation = np.sqrt(sequence.state()["squares"] / sequence.slates[0])
            assert (sequence.half_width >= 1.96 * deviation / sqrt(sequence.slates[0])).all()


def test_the_width_is_that_of_the_formula() -> None:
    sequence = ConfidenceSequence(1, alpha=0.1, tightest_at=3_000)
    drawn = np.random.default_rng(3).normal(0.3, 2.0, 700)
    for x in drawn:
        sequence.add(np.array([x]))
    t, rho = 700, sqrt((-2 * log(0.1) + log(-2 * log(0.1) + 1)) / 3_000)
    expected = drawn.std() * sqrt(2 * (t * rho**2 + 1) / (t**2 * rho**2) * log(sqrt(t * rho**2 + 1) / 0.1))
    assert sequence.half_width[0] == pytest.approx(expected, rel=1e-12)
    assert sequence.mean[0] == pytest.approx(drawn.mean(), rel=1e-12)


def test_a_real_difference_is_found_and_its_sign_is_right() -> None:
    sequence = ConfidenceSequence(2)
    for differences in skewed(2, 6_000, seed=4):
        sequence.add(differences + np.array([-0.05, 0.05]))
    assert sequence.below.tolist() == [True, False]
    assert sequence.above.tolist() == [False, True]


def test_before_its_start_and_after_a_restart_it_says_nothing() -> None:
    sequence = ConfidenceSequence(1, start=10)
    for _ in range(9):
        sequence.add(np.ones(1))
    assert sequence.half_width[0] == np.inf
    sequence.add(np.ones(1))
    assert sequence.above[0]
    sequence.restart()
    assert (sequence.slates.tolist(), sequence.mean.tolist()) == ([0], [0.0])
    assert not sequence.above[0]


def test_what_is_not_finite_is_refused_and_nothing_is_added() -> None:
    sequence = ConfidenceSequence(2)
    with pytest.raises(ValueError, match="expected finite numbers"):
        sequence.add(np.array([0.0, np.nan]))
    assert sequence.slates.tolist() == [0, 0]
    with pytest.raises(ValueError, match="expected alpha in"):
        ConfidenceSequence(1, alpha=1.0)


def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit() -> None:
    differences = skewed(2, 1_000, seed=5)
    straight, first, second = (ConfidenceSequence(2) for _ in range(3))
    for row in differences:
        straight.add(row)
    for row in differences[:400]:
        first.add(row)
    second.restore(first.state())
    first.add(differences[0])  # what was taken is a copy
    for row in differences[400:]:
        second.add(row)
    assert second.mean.tolist() == straight.mean.tolist()
    assert second.half_width.tolist() == straight.half_width.tolist()
