"""The mixture that is served: close to the best arm, never much worse than `uniform`, however late labels come."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heft.models.evaluate import formulas
from heft.models.rankers.mixture import Hedge

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
    return formulas.logloss(labels.ravel(), p.ravel())


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
    assert loss(labels[settled], served[settled]) <= loss(labels[settled], p[settled, :, 1]) * 1.0002
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


@pytest.mark.parametrize("flight", [10, 1_000])
def test_an_arm_that_was_ahead_early_and_is_worse_later_costs_less_than_a_thousandth(flight: int) -> None:
    p, labels = world(12_000, seed=17, switch=6_000)
    late = slice(6_000, None)
    noise = np.exp(np.random.default_rng(18).normal(0, 0.3, p[late, :, 0].shape))
    p[late, :, 1] = 1 / (1 + noise * (1 / p[late, :, 0] - 1))  # from much better than uniform to a little worse
    hedge = Hedge(ARMS)
    served = serve(p, labels, hedge, flight)
    uniform = loss(labels[late], p[late, :, 0])
    blind = flight / len(p[late]) * (loss(labels[late], p[late, :, 1]) / uniform - 1)  # until the first late label
    assert blind > 0
    assert loss(labels[:6_000], served[:6_000]) < loss(labels[:6_000], p[:6_000, :, 0])
    assert loss(labels[late], served[late]) <= uniform * (1.001 + blind)
    assert hedge.benched[3]


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([1e-4, 1e-2, 0.3]))
def test_if_each_label_came_at_once_any_stretch_would_cost_what_uniform_has_to_make_up_for_and_half_the_share(
    seed: int, begin: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.001, 0.999, (80, 1, 4))
    labels = (rng.random((80, 1)) < p[..., rng.integers(4)]).astype(np.uint8)
    hedge = Hedge(ARMS, probation=0, share=share)
    serve(p[:begin], labels[:begin], hedge, flight=0)
    owed = -np.log(hedge.weights[0])
    served = serve(p[begin:], labels[begin:], hedge, flight=0)
    lost, by_uniform = (loss(labels[begin:], each) * labels[begin:].size for each in (served, p[begin:, :, 0]))
    assert lost <= by_uniform * (1 + share / 2) + owed + 1e-9


def test_an_arm_that_shows_what_uniform_does_neither_gains_nor_loses_against_it() -> None:
    p, labels = world(2_000, seed=5)
    hedge = Hedge(ARMS, probation=0, share=0.0)
    p[..., 1] = p[..., 0]
    for s in range(200):
        hedge.learn(p[s], labels[s])
    assert hedge.weights[1] / hedge.weights[0] == pytest.approx(1 / 3, rel=1e-12)


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


def test_an_empty_slate_changes_nothing_and_a_single_arm_is_served_as_it_is() -> None:
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


def test_after_each_slate_a_share_for_each_nat_that_uniform_lost_flows_back_to_the_prior() -> None:
    p, labels = world(30, seed=8)
    hedge = Hedge(ARMS, probation=0, share=0.01)
    prior = hedge.weights.copy()
    want = prior
    for s in range(30):
        hedge.learn(p[s], labels[s])
        likelihood = np.where(labels[s][:, None] == 1, p[s], 1 - p[s].astype(np.float64)).prod(axis=0, dtype=np.float64)
        kept = likelihood[0] ** 0.01
        want = kept * want * likelihood / (want @ likelihood) + (1 - kept) * prior
        assert hedge.weights == pytest.approx(want, rel=1e-6)


# -------------------------------------------------------------------- who is believed


def test_an_arm_that_never_is_to_be_served_has_no_weight_however_good_it_is() -> None:
    p, labels = world(3_000, seed=9)
    hedge = Hedge(ARMS, served=np.array([True, False, True, True]))
    served = serve(p, labels, hedge, flight=0)
    assert hedge.weights[1] == 0.0
    assert hedge.weights.sum() == pytest.approx(1.0, abs=1e-12)
    others = Hedge(("uniform", "worse", "noisy"))
    assert served == pytest.approx(serve(p[..., [0, 2, 3]], labels, others, flight=0), rel=1e-9)


def test_what_is_proven_worse_is_benched_and_uniform_never_is() -> None:
    p, labels = world(4_000, seed=10)
    hedge = Hedge(ARMS)
    serve(p, labels, hedge, flight=0)
    assert hedge.benched.tolist() == [False, False, True, True]
    assert (hedge.weights[[2, 3]] == 0.0).all()
    assert hedge.sequence.below[1]


def test_what_was_benched_and_has_become_better_returns() -> None:
    p, labels = world(16_000, seed=11, switch=3_000)
    hedge = Hedge(ARMS)
    serve(p[:3_000], labels[:3_000], hedge, flight=0)
    assert hedge.benched[2]
    serve(p[3_000:], labels[3_000:], hedge, flight=0)
    assert hedge.benched.tolist() == [False, True, False, True]
    assert hedge.weights[2] > 0.9


def test_what_was_benched_for_long_and_has_become_better_returns_before_it_has_made_up_for_its_past() -> None:
    p, labels = world(7_000, seed=18, switch=6_000)
    late = slice(6_000, None)
    p[late, :, 2] = 0.9 * p[late, :, 0] + 0.1 * p[late, :, 2]  # by far less than it was worse
    hedge = Hedge(ARMS)
    serve(p[:6_000], labels[:6_000], hedge, flight=0)
    assert hedge.benched[2]
    serve(p[late], labels[late], hedge, flight=0)
    assert not hedge.benched[2]
    assert hedge.weights[2] > 0.5


def test_while_somebody_is_benched_belief_in_the_others_still_moves_and_is_what_a_cut_would_give() -> None:
    p, labels = world(3_000, seed=19, switch=1_500)
    hedge, believed = Hedge(ARMS), set()
    for s in range(3_000):
        hedge.learn(p[s], labels[s])
        if hedge.benched.any() and s % 10 == 0:
            again = Hedge(ARMS)
            again.restore(hedge.state())
            assert np.array_equal(again.weights, hedge.weights)
            believed.add(hedge.weights[0])
    assert len(believed) > 50


def test_what_was_benched_and_is_worse_no_more_returns_in_the_end() -> None:
    p, labels = world(3_000, seed=12)
    hedge = Hedge(ARMS)
    serve(p, labels, hedge, flight=0)
    assert hedge.benched[2]
    same = p.copy()
    same[..., 2] = same[..., 0]
    for _ in range(7):
        serve(same, labels, hedge, flight=0)
    assert not hedge.benched[2]


def test_what_happens_on_probation_benches_nobody() -> None:
    p, labels = world(2_000, seed=13)
    hedge = Hedge(ARMS, probation=2_000 * SIZE + 1)
    serve(p, labels, hedge, flight=0)
    assert not hedge.benched.any()
    hedge.learn(p[0], labels[0])
    assert hedge.sequence.slates[1:4].tolist() == [0, 0, 0]


def test_a_newborn_arm_waits_is_charged_nothing_and_enters_with_its_prior() -> None:
    p, labels = world(3_000, seed=14)
    hedge = Hedge(ARMS, probation=10_000)
    serve(p[:1_000], labels[:1_000], hedge, flight=0)
    hedge.reset_arms(np.array([False, False, False, True]))
    terrible = p.copy()
    terrible[..., 3] = 0.999
    for s in range(1_000, 1_400):
        assert hedge.weights[3] == 0.0
        assert hedge.weights.sum() == pytest.approx(1.0, abs=1e-9)
        hedge.learn(terrible[s], labels[s])
    assert hedge.weights[3] == pytest.approx((1 / 6) / (1 + 1 / 6), rel=0.01)
    assert not hedge.benched[3]


def test_what_was_shown_before_an_arm_was_born_is_no_part_of_its_probation() -> None:
    p, labels = world(3_000, seed=14)
    hedge = Hedge(ARMS, probation=2_000)
    serve(p[:1_000], labels[:1_000], hedge, flight=0)
    before = hedge.changes
    hedge.reset_arms(np.array([False, False, False, True]))
    for s in range(1_000, 2_000):  # ten times its probation is in flight
        hedge.learn(p[s], labels[s], changes=before)
    assert hedge.weights[3] == 0.0
    for s in range(2_000, 2_201):
        assert hedge.weights[3] == 0.0 or s >= 2_000 + 2_000 // SIZE
        hedge.learn(p[s], labels[s], changes=hedge.changes)
    assert hedge.weights[3] > 0.0


def convicted(flight: int, slates: int, born_at: int = -1) -> list[int]:
    """How often a mixture is put on probation that served badly until it first was; by the slate shown then."""
    rng = np.random.default_rng(1)
    hedge = Hedge(("uniform", "other", "young"), probation=20_000)
    p, in_flight = np.full((10, 3), 0.05, np.float32), deque[tuple[float, int]]()
    when: list[int] = []
    for shown in range(slates):
        in_flight.append((0.10 if shown >= 3_000 and not when else 0.05, hedge.changes))
        if len(in_flight) > flight:
            served, changes = in_flight.popleft()
            before = hedge.decisions[-1]
            labels = (rng.random(10) < 0.05).astype(np.uint8)
            hedge.learn(p, labels, mixture=np.full(10, served, np.float32), at_ms=shown, changes=changes)
            if hedge.decisions[-1] != before:
                when.append(shown)
        if when and shown == when[0] + born_at:
            hedge.reset_arms(np.array([False, False, True]))
    return when


@pytest.mark.parametrize("flight", [0, 1_000, 10_000])
def test_one_bad_stretch_convicts_a_mixture_once_however_much_is_in_flight(flight: int) -> None:
    assert len(convicted(flight, 30_000)) == 1


def test_an_arm_born_while_the_mixture_is_on_probation_does_not_have_it_convicted_again() -> None:
    assert len(convicted(0, 12_000, born_at=1_000)) == 1


def test_a_mixture_that_is_proven_worse_than_uniform_begins_anew() -> None:
    p, labels = world(6_000, seed=15)
    hedge = Hedge(ARMS)
    for s in range(1_000):
        hedge.learn(p[s], labels[s])
    assert hedge.weights[1] > 0.5
    for s in range(1_000, 6_000):
        hedge.learn(p[s], labels[s], mixture=p[s, :, 2])  # served by mistake: what is far from the truth
        if hedge.weights[0] == 1.0:
            break
    assert hedge.weights.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_evidence_is_forgotten_on_demand_and_the_benched_stay() -> None:
    p, labels = world(4_000, seed=10)
    hedge = Hedge(ARMS)
    serve(p, labels, hedge, flight=0)
    hedge.restart()
    assert (hedge.sequence.slates == 0).all()
    assert hedge.benched.tolist() == [False, False, True, True]


def test_benched_and_newborn_are_the_same_after_a_cut() -> None:
    p, labels = world(2_000, seed=16)
    straight, first, second = (Hedge(ARMS, probation=5_000) for _ in range(3))
    for hedge, until in ((straight, 2_000), (first, 1_200)):
        for s in range(until):
            if s == 1_100:
                hedge.reset_arms(np.array([False, False, True, False]))
            hedge.learn(p[s], labels[s])
    second.restore(first.state())
    for s in range(1_200, 2_000):
        second.learn(p[s], labels[s])
    assert np.array_equal(second.weights, straight.weights)
    assert second.benched.tolist() == straight.benched.tolist()
    assert second.sequence.mean.tolist() == straight.sequence.mean.tolist()
