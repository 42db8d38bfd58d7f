"""The mixture that is served: close to the best policy, never much worse than `uniform`, however late labels come."""

from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray

from models import exact
from models.mixture import Hedge

SIZE = 25
ARMS = ("uniform", "better", "worse", "noisy")


def world(slates: int, seed: int, switch: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """What each arm says [slates, SIZE, arms], and labels. At ``switch`` the better and the worse change places."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-4, 1.0, (slates, SIZE))
    noise = rng.normal(0, 1, (slates, SIZE, len(ARMS))) * np.array([0.5, 0.1, 1.5, 0.7])
    if switch is not None:
        noise[switch:] = noise[switch:][..., [0, 2, 1, 3]]
    p = 1 / (1 + np.exp(-(truth[..., None] + noise)))
    return p, (rng.random((slates, SIZE)) < 1 / (1 + np.exp(-truth))).astype(np.uint8)


def serve(p: NDArray[np.float64], labels: NDArray[np.uint8], hedge: Hedge, flight: int) -> NDArray[np.float64]:
    """The mixture [slates, SIZE] when labels come ``flight`` slates late."""
    waiting: deque[int] = deque()
    served = np.empty(labels.shape)
    for s in range(len(p)):
        served[s] = hedge.mix(p[s])
        waiting.append(s)
        if len(waiting) > flight:
            due = waiting.popleft()
            hedge.learn(p[due], labels[due])
    return served


def loss(labels: NDArray[np.uint8], p: NDArray[np.float64]) -> float:
    return exact.logloss(labels.ravel(), p.ravel())


def test_half_the_prior_is_on_uniform_and_weights_sum_to_one() -> None:
    hedge = Hedge(ARMS, probation=0)
    assert hedge.weights.tolist() == [0.5, 1 / 6, 1 / 6, 1 / 6]


def test_on_probation_the_mixture_is_uniform_bit_for_bit() -> None:
    p, labels = world(50, seed=1)
    hedge = Hedge(ARMS, probation=50 * SIZE)
    served = serve(p[:50], labels[:50], hedge, flight=0)
    assert np.array_equal(served, p[..., 0])
    assert hedge.weights[1] > 0.0


@pytest.mark.parametrize("flight", [0, 10, 1_000])
def test_it_is_as_good_as_the_best_arm_but_for_the_time_it_takes_to_know(flight: int) -> None:
    p, labels = world(12_000, seed=2)
    served = serve(p, labels, Hedge(ARMS), flight)
    best = loss(labels, p[..., 1])
    uniform = loss(labels, p[..., 0])
    settled = slice(4_000, None)
    assert loss(labels[settled], served[settled]) <= loss(labels[settled], p[settled, :, 1]) * 1.0001
    assert best < loss(labels, served) < uniform


@pytest.mark.parametrize("flight", [0, 10, 1_000])
def test_where_uniform_is_best_it_costs_less_than_a_hundredth_of_a_percent_and_the_regret(flight: int) -> None:
    p, labels = world(12_000, seed=3)
    p = p[..., [1, 0, 2, 3]]  # the first arm is now the best one
    hedge = Hedge(ARMS)
    served = serve(p, labels, hedge, flight)
    regret = (loss(labels, served) - loss(labels, p[..., 0])) * labels.size
    # log 2 nats is what the prior owes in all; a delay repeats at most what one window of labels would have taught.
    assert regret <= np.log(2) + 1e-4 * loss(labels, p[..., 0]) * labels.size + 0.02 * flight
    settled = slice(6_000, None)
    assert loss(labels[settled], served[settled]) <= loss(labels[settled], p[settled, :, 0]) * 1.0001


@pytest.mark.parametrize("flight", [10, 1_000])
def test_it_follows_when_the_best_arm_changes(flight: int) -> None:
    p, labels = world(12_000, seed=4, switch=6_000)
    served = serve(p, labels, Hedge(ARMS), flight)
    late = slice(10_000, None)
    assert loss(labels[late], served[late]) <= loss(labels[late], p[late, :, 2]) * 1.001


def test_a_sleeping_arm_neither_gains_nor_loses_against_uniform() -> None:
    p, labels = world(2_000, seed=5)
    hedge, asleep = Hedge(ARMS, probation=0, share=0.0), np.array([True, False, True, True])
    for s in range(200):
        hedge.learn(p[s], labels[s], asleep)
    weights = hedge.weights
    assert weights[1] / weights[0] == pytest.approx(1 / 3, rel=1e-12)
    stood_in = p[0].copy()
    stood_in[:, 1] = stood_in[:, 0]
    assert np.array_equal(hedge.mix(p[0], asleep), hedge.mix(stood_in))
    rows = np.ones((SIZE, len(ARMS)), np.bool_)
    rows[:, 1] = False
    assert np.array_equal(hedge.mix(p[0], rows), hedge.mix(stood_in))


def test_one_update_a_slate_is_bayes_rule() -> None:
    p, labels = world(30, seed=6)
    hedge = Hedge(ARMS, probation=0, share=0.0)
    log_weights = np.log(hedge.weights)
    for s in range(30):
        hedge.learn(p[s], labels[s])
        log_weights += np.where(labels[s][:, None] == 1, np.log(p[s]), np.log1p(-p[s])).sum(axis=0)
    want = np.exp(log_weights - log_weights.max())
    assert hedge.weights == pytest.approx(want / want.sum(), rel=1e-9)


def test_a_million_slates_leave_the_weights_sound() -> None:
    hedge = Hedge(ARMS)
    p = np.array([[0.01, 0.02, 0.5, 1.0]], np.float32)
    for label in (0, 1):
        labels = np.array([label], np.uint8)
        for _ in range(500_000):
            hedge.learn(p, labels)
    weights = hedge.weights
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert weights[3] > 0.99  # the arm that was right of late, after half a million times wrong


def test_an_empty_slate_changes_nothing_and_a_single_policy_is_served_as_it_is() -> None:
    hedge = Hedge(("uniform",))
    p = np.array([[0.3], [0.2]])
    hedge.learn(p[:0], np.zeros(0, np.uint8))
    hedge.learn(p, np.array([0, 1], np.uint8))
    assert np.array_equal(hedge.mix(p), p[:, 0])


def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit() -> None:
    p, labels = world(300, seed=7)
    straight, first, second = (Hedge(ARMS, probation=1_000) for _ in range(3))
    serve(p, labels, straight, 0)
    serve(p[:100], labels[:100], first, 0)
    second.restore(first.state())
    serve(p[:5], labels[:5], first, 0)  # what was taken is a copy
    serve(p[100:], labels[100:], second, 0)
    assert np.array_equal(second.weights, straight.weights)


def test_after_each_slate_a_share_for_each_sample_flows_back_to_the_prior() -> None:
    p, labels = world(30, seed=8)
    hedge = Hedge(ARMS, probation=0, share=0.01)
    prior = hedge.weights.copy()
    want = prior
    for s in range(30):
        hedge.learn(p[s], labels[s])
        likelihood = np.where(labels[s][:, None] == 1, p[s], 1 - p[s].astype(np.float64)).prod(axis=0, dtype=np.float64)
        kept = 0.99 ** len(labels[s])
        want = kept * want * likelihood / (want @ likelihood) + (1 - kept) * prior
        assert hedge.weights == pytest.approx(want, rel=1e-6)
