"""The calibration layer: no change until labels ask for it, then the right one, and no faster than it must."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from heft.models.evaluate import formulas
from heft.models.rankers.calibration import Platt

DELAY = 40  # slates in flight: their labels are not known yet
SIZE = 25


def sigmoid(z: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-z)))


def stream(
    a: float, b: float, slates: int, seed: int, mean: float = -4.0
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Raw logits [slates, SIZE, 1], and labels drawn with probability sigmoid(a q + b)."""
    rng = np.random.default_rng(seed)
    q = rng.normal(mean, 1.2, (slates, SIZE, 1)).astype(np.float32)
    return q, (rng.random((slates, SIZE)) < sigmoid(a * q[..., 0] + b)).astype(np.uint8)


def probability(platt: Platt, q: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(sigmoid(platt.a * q + platt.b))


def run(q: NDArray[np.float32], labels: NDArray[np.uint8], platt: Platt) -> NDArray[np.float64]:
    """What was served for each sample, labels DELAY slates late."""
    rows = np.ones(SIZE, np.bool_)
    served = []
    for s in range(len(q)):
        served.append(probability(platt, q[s]))
        if s >= DELAY:
            platt.learn(q[s - DELAY], labels[s - DELAY], rows)
    return np.concatenate(served)[:, 0]


def test_it_begins_at_identity_and_rows_that_are_not_learned_leave_it_there_bit_for_bit() -> None:
    q = np.random.default_rng(1).normal(-3, 3, (100, 4)).astype(np.float32)
    platt = Platt(4)
    platt.learn(q, np.ones(100, np.uint8), np.zeros(100, np.bool_))
    assert platt.a.tolist() == [1.0] * 4
    assert platt.b.tolist() == [0.0] * 4


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.7, -0.5), (1.3, 0.8), (1.0, -1.0)])
def test_it_converges_to_the_scale_and_shift_that_made_the_labels(a: float, b: float) -> None:
    q, labels = stream(a, b, 12_000, seed=2, mean=-2.5)
    platt = Platt(1)
    run(q, labels, platt)
    assert platt.a[0] == pytest.approx(a, abs=0.05)
    assert platt.b[0] == pytest.approx(b, abs=0.12)


@pytest.mark.parametrize(("mean", "seed"), [(-3.0, 3), (-5.0, 4), (-5.9, 5)])
def test_what_is_calibrated_already_loses_less_than_a_twentieth_of_a_percent(mean: float, seed: int) -> None:
    q, labels = stream(1.0, 0.0, 24_000, seed, mean)
    after, before = run(q, labels, Platt(1)), sigmoid(q.reshape(-1).astype(np.float64))
    flat = labels.ravel()
    assert formulas.logloss(flat, after) <= formulas.logloss(flat, before) * 1.0005


def test_a_shift_of_the_truth_is_followed() -> None:
    before, labels_before = stream(1.0, 0.0, 8_000, seed=6)
    after, labels_after = stream(1.0, 0.7, 16_000, seed=7)
    platt = Platt(1)
    run(before, labels_before, platt)
    p = run(after, labels_after, platt)[-100_000:]
    assert p.sum() / labels_after.ravel()[-100_000:].sum() == pytest.approx(1.0, abs=0.05)


def test_a_few_hundred_positives_are_enough_to_be_within_a_quarter() -> None:
    q, labels = stream(1.0, -0.9, 6_000, seed=8)
    positives = np.cumsum(labels.sum(axis=1))
    p = run(q, labels, Platt(1)).reshape(labels.shape)
    rows = (positives > 300) & (positives < 900)
    assert 0.8 < p[rows].sum() / labels[rows].sum() < 1.25


def test_it_agrees_with_the_mode_of_the_posterior_of_all_labels() -> None:
    # Without fading, one pass of small steps ends near the maximum a posteriori fit of everything at once.
    q, labels = stream(0.8, 0.4, 3_000, seed=9, mean=-2.0)
    platt = Platt(1, half_life=1e12)
    rows = np.ones(SIZE, np.bool_)
    for s in range(len(q)):
        platt.learn(q[s], labels[s], rows)
    x, y = q.reshape(-1).astype(np.float64), labels.ravel()
    theta, prior = np.array([1.0, 0.0]), np.diag([100.0, 10.0])
    for _ in range(30):
        p = sigmoid(theta[0] * x + theta[1])
        design = np.column_stack((x, np.ones_like(x)))
        gradient = design.T @ (p - y) + prior @ (theta - [1.0, 0.0])
        theta = theta - np.linalg.solve(design.T @ (design * (p * (1 - p))[:, None]) + prior, gradient)
    assert [platt.a[0], platt.b[0]] == pytest.approx(theta, abs=0.01)


def test_arms_do_not_see_each_other_and_rows_that_are_not_learned_do_not_count() -> None:
    q, labels = stream(0.7, 0.5, 500, seed=10)
    both = np.concatenate((q, q - 1), axis=2)
    alone, pair = Platt(1), Platt(2)
    half = np.arange(SIZE) < 12
    for s in range(500):
        alone.learn(q[s, :12], labels[s, :12], np.ones(12, np.bool_))
        pair.learn(both[s], labels[s], half)
    assert (alone.a[0], alone.b[0]) == (pair.a[0], pair.b[0])
    assert pair.b[1] > pair.b[0]


def test_extreme_logits_and_a_burst_of_clicks_leave_it_finite() -> None:
    platt = Platt(1)
    rows = np.ones(SIZE, np.bool_)
    rng = np.random.default_rng(11)
    for _ in range(500):
        platt.learn((rng.normal(0, 30, (SIZE, 1))).astype(np.float32), np.ones(SIZE, np.uint8), rows)
    p = probability(platt, np.array([[-40.0], [0.0], [40.0]]))
    assert np.isfinite(p).all()
    assert p[0, 0] <= p[1, 0] <= p[2, 0]


def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit() -> None:
    q, labels = stream(0.7, 0.5, 400, seed=12)
    straight, first, second = Platt(1), Platt(1), Platt(1)
    run(q, labels, straight)
    rows = np.ones(SIZE, np.bool_)
    for s in range(150):
        first.learn(q[s], labels[s], rows)
    second.restore(first.state())
    first.learn(q[0], labels[0], rows)  # what was taken is a copy
    for s in range(150, 400 - DELAY):
        second.learn(q[s], labels[s], rows)
    assert (second.a[0], second.b[0]) == (straight.a[0], straight.b[0])


def test_one_update_is_a_newton_step_from_numeric_derivatives_and_information_fades() -> None:
    q, labels = stream(0.7, -0.5, 40, seed=12)
    platt = Platt(1, half_life=100.0)
    information, kept, step = np.diag([100.0, 10.0]), 0.5 ** (SIZE / 100.0), 1e-4
    prior = np.diag([100.0, 10.0])
    for s in range(len(q)):
        theta = np.array([platt.a[0], platt.b[0]])
        x, y = q[s, :, 0].astype(np.float64), labels[s]

        def loss(at: NDArray[np.float64], x: NDArray[np.float64] = x, y: NDArray[np.uint8] = y) -> float:
            z = at[0] * x + at[1]
            return float((np.log1p(np.exp(z)) - y * z).sum())

        axes = step * np.eye(2)
        gradient = np.array([loss(theta + d) - loss(theta - d) for d in axes]) / (2 * step)
        hessian = np.array(
            [
                [loss(theta + d + e) - loss(theta + d - e) - loss(theta - d + e) + loss(theta - d - e) for e in axes]
                for d in axes
            ]
        ) / (4 * step**2)
        information = prior + kept * (information - prior) + hessian
        platt.learn(q[s], y, np.ones(SIZE, np.bool_))
        assert np.array([platt.a[0], platt.b[0]]) == pytest.approx(
            theta - np.linalg.solve(information, gradient), abs=1e-6
        )
