"""Normalising by the past: effective sample sizes, tempering, the schedule, and what freezes it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.models.importance.normaliser import COUNT, EPOCH, SQUARES, STRENGTH, SUM, Normaliser, effective, tempered
from heft.models.importance.weightings import Measure, Pipeline, Weighting


def masses(weights: list[float]) -> float:
    w = np.array(weights)
    return float(effective(np.array([float(len(w)), w.sum(), (w * w).sum()])))


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=50), st.floats(0.01, 100.0))
def test_effective_share_is_in_0_to_1_and_does_not_change_with_scale(weights: list[float], scale: float) -> None:
    share = masses(weights)
    assert 0.0 < share <= 1.0 + 1e-12
    assert masses([w * scale for w in weights]) == pytest.approx(share, rel=1e-9)


@given(st.floats(0.01, 100.0), st.integers(1, 50))
def test_effective_share_is_1_if_and_only_if_weights_are_equal(weight: float, many: int) -> None:
    assert masses([weight] * many) == pytest.approx(1.0, rel=1e-12)
    assert masses([weight] * many + [2 * weight]) < 1.0 - 1e-4


@given(st.floats(0.1, 3.0), st.floats(0.1, 0.95))
def test_tempered_log_normal_weights_keep_their_target(spread: float, target: float) -> None:
    strength = tempered(10.0, spread, target)
    assert strength <= 10.0
    # The exact share of log-normal weights of this deviation: E[w]^2 / E[w^2].
    assert np.exp(-((strength * spread) ** 2)) >= target - 1e-12


def feed(normaliser: Normaliser, spread: float = 1.0, samples: int = EPOCH, weight_spread: float = 0.0) -> None:
    """An epoch of normal F, half of it positives, and of applied weights, as the compiled weighing would add them."""
    half, draw = samples // 2, np.random.default_rng(1).normal(0, 1, samples // 2)
    values, weights = draw * spread, np.exp(draw * weight_spread)
    for label in (0, 1):
        normaliser.statistics.values[:, label] += half, values.sum(), (values**2).sum()
        normaliser.statistics.masses[:, label] += half, weights.sum(), (weights**2).sum()
    raw = np.exp(normaliser.statistics.planned[:, STRENGTH, None] * values[None])
    normaliser.statistics.counted[:, COUNT] += half
    normaliser.statistics.counted[:, SUM] += raw.sum(axis=1)
    normaliser.statistics.counted[:, SQUARES] = 0.0
    normaliser.turn(samples)


RHO = Weighting("p", Measure.RHO, 0.4, gated=True)


def test_strength_is_0_when_quiet_then_rises_in_a_line_to_its_height() -> None:
    normaliser = Normaliser((RHO,))
    strengths = []
    for _ in range(6):
        strengths.append(float(normaliser.statistics.now[0, STRENGTH]))  # during the samples from 0, 10,000, ...
        feed(normaliser)
    assert strengths == pytest.approx([0.0, 0.0, 0.0, 0.2, 0.4, 0.4])


def test_a_wide_measure_is_tempered_to_the_target() -> None:
    normaliser = Normaliser((RHO,))
    for _ in range(8):
        feed(normaliser, spread=4.0)
    assert normaliser.statistics.now[0, STRENGTH] == pytest.approx(np.sqrt(np.log(2)) / 4.0, rel=0.05)


def test_a_forgotten_measure_weighs_nothing_for_an_epoch_and_goes_on_where_the_schedule_was() -> None:
    normaliser = Normaliser((RHO,))
    for _ in range(6):
        feed(normaliser, spread=4.0)
    before = float(normaliser.statistics.now[0, STRENGTH])
    normaliser.forget(np.array([True]))
    strengths = [float(normaliser.statistics.now[0, STRENGTH])]
    for _ in range(3):
        feed(normaliser, spread=4.0)
        strengths.append(float(normaliser.statistics.now[0, STRENGTH]))
    assert strengths == pytest.approx([0.0, 0.0, before, before], rel=0.05)


def test_weights_that_leave_too_little_in_effect_are_switched_off_until_warm_again() -> None:
    normaliser = Normaliser((RHO,))
    for _ in range(6):
        feed(normaliser)
    feed(normaliser, weight_spread=1.5)
    assert normaliser.ess[0].min() < 0.25
    assert normaliser.statistics.now[0].tolist() == [0.0, 0.0, 1.0, 1.0]
    strengths = []
    for _ in range(5):
        feed(normaliser)
        strengths.append(float(normaliser.statistics.now[0, STRENGTH]))
    assert strengths == pytest.approx([0.0, 0.0, 0.2, 0.4, 0.4])


def test_a_weighting_that_nothing_was_measured_for_waits() -> None:
    normaliser = Normaliser((RHO,))
    for _ in range(6):
        normaliser.turn(EPOCH)
    assert normaliser.statistics.now[0].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_measure_that_never_varies_weighs_nothing() -> None:
    pipeline = Pipeline(quiet=0, ramp=0)
    normaliser = Normaliser((Weighting("p", Measure.NOVELTY, pipeline=pipeline),))
    for _ in range(4):
        normaliser.statistics.values[:, 0] += EPOCH, -0.7 * EPOCH, 0.49 * EPOCH
        normaliser.statistics.counted[:] += EPOCH, EPOCH, 0.0
        normaliser.turn(EPOCH)
    assert normaliser.statistics.now[0, 2] == 0.0  # the scale: every value is its own middle
