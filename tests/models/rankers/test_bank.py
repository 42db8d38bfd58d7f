"""The bank: against the textbook and river, and what each kind of weight means, bit for bit."""

from __future__ import annotations

from math import exp, log, log1p, sqrt
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from river import linear_model, optim

from heft.models.features.config import FeatureConfig
from heft.models.features.featurizer import Featurizer
from heft.models.features.vectors import Vectors
from heft.models.importance.weightings import Input, Measure, Weighting
from heft.models.rankers.arms import CLICK_ARMS, Arm, RankerConfig
from heft.models.rankers.bank import Bank
from heft.models.rankers.protocol import Samples
from heft.models.rankers.thinning import Thinning
from heft.models.records import Item, Slate

BITS = 12
UNIFORM = Arm("uniform", alpha=0.6, beta=0.4)


def slate(rows: list[list[int]], shown: list[list[int]] | None = None, request: int = 1) -> Vectors:
    """Vectors whose rows have exactly these slots (0 to 2^BITS), and these that derive from position."""
    n = len(rows)
    parts = [part for r in range(n) for part in (sorted(rows[r]), sorted(shown[r]) if shown else [], [0])]
    slots = np.array([slot << (32 - BITS) for part in parts for slot in part], np.uint32)
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return Vectors(
        1_600_000_000_000, request, 1, 1, np.arange(1, n + 1, dtype=np.uint64), np.arange(n, dtype=np.uint16),
        np.ones(n, np.bool_), np.zeros(n, np.bool_), indptr, slots,
    )  # fmt: skip


def labels(*values: int) -> NDArray[np.uint8]:
    return np.array(values, np.uint8)


def stream(seed: int, slates: int = 60, rows: int = 5) -> list[tuple[Vectors, NDArray[np.uint8]]]:
    rng = np.random.default_rng(seed)
    return [
        (
            slate([rng.choice(np.arange(1, 40), 4, replace=False).tolist() for _ in range(rows)], request=request),
            (rng.random(rows) < 0.3).astype(np.uint8),
        )
        for request in range(slates)
    ]


def same(a: Bank, b: Bank) -> bool:
    left, right = a.state(), b.state()
    return all(np.array_equal(left[name], right[name]) for name in left)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


class Textbook:
    """Algorithm 1 of McMahan et al. (2013) over sets of names, as vectors of unit length."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.z: dict[Any, float] = {}
        self.n: dict[Any, float] = {}

    def weight(self, name: Any) -> float:
        z, n, arm = self.z.get(name, 0.0), self.n.get(name, 0.0), self.arm
        l1, l2 = (0.0, 0.0) if name == "bias" else (arm.l1, arm.l2)
        if abs(z) <= l1:
            return 0.0
        return -(z - (l1 if z > 0 else -l1)) / ((arm.beta + sqrt(n)) / arm.alpha + l2)

    def logit(self, names: list[Any]) -> float:
        return self.weight("bias") + sum(self.weight(name) for name in names) / sqrt(len(names))

    def learn(self, names: list[Any], label: int) -> None:
        whole = sigmoid(self.logit(names)) - label
        for name in ["bias", *names]:
            g = whole if name == "bias" else whole / sqrt(len(names))
            n = self.n.get(name, 0.0)
            sigma = (sqrt(n + g * g) - sqrt(n)) / self.arm.alpha
            self.z[name] = self.z.get(name, 0.0) + g - sigma * self.weight(name)
            self.n[name] = n + g * g


@pytest.mark.parametrize("arm", [UNIFORM, Arm("uniform", alpha=0.1, beta=1.0, l1=0.4, l2=0.5)])
def test_an_arm_is_the_textbooks_ftrl(arm: Arm) -> None:
    bank, book = Bank([arm], BITS), Textbook(arm)
    for vectors, y in stream(seed=1):
        rows = [
            (vectors.slots[vectors.indptr[3 * r] : vectors.indptr[3 * r + 1]] >> (32 - BITS)).tolist() for r in range(5)
        ]
        q, _ = bank.predict(vectors)
        assert q[:, 0] == pytest.approx([book.logit(row) for row in rows], abs=1e-12)
        bank.learn(Samples(vectors, y))
        for row, label in zip(rows, y.tolist(), strict=True):
            book.learn(row, label)


def test_an_arm_is_rivers_ftrl_without_its_lag() -> None:
    # river derives its weights before it adds a gradient: it is a step behind until a sample of weight 0 comes.
    arm = Arm("uniform", alpha=0.3, beta=0.7, l1=0.0, l2=0.0)
    bank = Bank([arm], BITS)
    river: Any = linear_model.LogisticRegression(
        optimizer=optim.FTRLProximal(alpha=arm.alpha, beta=arm.beta, l1=0.0, l2=0.0),
        intercept_lr=0.0,
        clip_gradient=1e12,
    )
    for vectors, y in stream(seed=2, slates=150, rows=1):
        start, end = vectors.indptr[:2]
        names = [str(slot) for slot in (vectors.slots[start:end] >> (32 - BITS)).tolist()]
        x = dict.fromkeys(names, 0.5) | {"bias": 1.0}
        river.learn_one(x, bool(y[0]), w=0.0)
        p = river.predict_proba_one(x)[True]
        assert sigmoid(bank.predict(vectors)[0][0, 0]) == pytest.approx(p, abs=1e-12)
        bank.learn(Samples(vectors, y))
        river.learn_one(x, bool(y[0]))


def test_without_regularisation_it_is_gradient_descent_with_a_rate_for_each_coordinate() -> None:
    bank = Bank([UNIFORM], BITS)
    w: dict[int, float] = {}
    n: dict[int, float] = {}
    for vectors, y in stream(seed=3, rows=1):
        slots = [*(vectors.slots[: vectors.indptr[1]] >> (32 - BITS)).tolist(), -1]
        logit = sum(w.get(slot, 0.0) * (1.0 if slot < 0 else 0.5) for slot in slots)
        assert bank.predict(vectors)[0][0, 0] == pytest.approx(logit, abs=1e-10)
        for slot in slots:
            g = (sigmoid(logit) - int(y[0])) * (1.0 if slot < 0 else 0.5)
            n[slot] = n.get(slot, 0.0) + g * g
            w[slot] = w.get(slot, 0.0) - UNIFORM.alpha / (UNIFORM.beta + sqrt(n[slot])) * g
        bank.learn(Samples(vectors, y))


@given(st.floats(-3, 3), st.integers(0, 1), st.floats(0.1, 4.0), st.lists(st.integers(1, 30), max_size=5, unique=True))
def test_the_gradient_is_that_of_the_log_loss(offset: float, label: int, factor: float, slots: list[int]) -> None:
    bank = Bank([UNIFORM], BITS)
    for vectors, y in stream(seed=4, slates=10):
        bank.learn(Samples(vectors, y))
    one = slate([slots])
    logit = float(bank.predict(one)[0][0, 0]) + offset

    def loss(s: float) -> float:
        return factor * (log1p(exp(s)) - label * s)

    numeric = (loss(logit + 1e-6) - loss(logit - 1e-6)) / 2e-6
    bias = 1 << BITS
    before = bank.state()["table"][-1, :, 0], bank.state()["places"][-1]
    bank.learn(Samples(one, labels(label), structural=np.array([[factor]]), offsets=np.array([[offset]])))
    after = bank.state()["table"][-1, :, 0]
    assert before[1] == bias
    assert after[1] - before[0][1] == pytest.approx(numeric**2, rel=1e-4, abs=1e-9)


def test_weight_one_is_the_unweighted_model_bit_for_bit() -> None:
    plain, weighted = Bank(CLICK_ARMS, BITS), Bank(CLICK_ARMS, BITS)
    for vectors, y in stream(seed=5):
        plain.learn(Samples(vectors, y))
        ones = np.ones((len(vectors), len(CLICK_ARMS)))
        weighted.learn(Samples(vectors, y, importance=ones, structural=ones))
    assert same(plain, weighted)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 9))
def test_an_integer_weight_is_so_many_repeats_bit_for_bit(weights: list[int], seed: int) -> None:
    arms = [UNIFORM, Arm("regular", alpha=0.1, l1=0.2, l2=0.3), Arm("fading", alpha=0.2, half_life=10)]
    once, repeated = Bank(arms, BITS), Bank(arms, BITS)
    for (vectors, y), weight in zip(stream(seed, slates=6, rows=1), weights, strict=False):
        once.learn(Samples(vectors, y, importance=np.full((1, 3), float(weight))))
        for _ in range(weight):
            repeated.learn(Samples(vectors, y))
    assert same(once, repeated)


def test_weight_zero_is_nothing_bit_for_bit() -> None:
    for structural in (False, True):
        bank, untouched = Bank(CLICK_ARMS, BITS), Bank(CLICK_ARMS, BITS)
        for vectors, y in stream(seed=6):
            bank.learn(Samples(vectors, y))
            untouched.learn(Samples(vectors, y))
            zeros = np.zeros((len(vectors), len(CLICK_ARMS)))
            bank.learn(Samples(vectors, y, None if structural else zeros, zeros if structural else None))
        assert same(bank, untouched)


def test_an_arm_beside_others_is_what_it_is_alone_bit_for_bit() -> None:
    alone, bank = Bank([UNIFORM], BITS), Bank([UNIFORM, Arm("b", alpha=1.0), Arm("c", keep=0.5), Arm("d")], BITS)
    rng = np.random.default_rng(7)
    for vectors, y in stream(seed=7):
        weights = np.ones((len(vectors), 4))
        weights[:, 1:] = rng.random((len(vectors), 3)) * 4
        alone.learn(Samples(vectors, y))
        bank.learn(Samples(vectors, y, importance=weights))
        assert np.array_equal(alone.predict(vectors)[0][:, 0], bank.predict(vectors)[0][:, 0])


def test_a_fractional_weight_lies_between_its_neighbours() -> None:
    moved = []
    for weight in (1.0, 1.5, 2.0, 2.5, 3.0):
        bank = Bank([UNIFORM], BITS)
        bank.learn(Samples(slate([[3, 4]]), labels(1), importance=np.array([[weight]])))
        moved.append(float(bank.predict(slate([[3, 4]]))[0][0, 0]))
    assert moved == sorted(moved)
    assert len(set(moved)) == len(moved)


def test_structural_weights_are_linear_in_the_gradient_and_importance_weights_are_not() -> None:
    linear, stepped = Bank([Arm("uniform", beta=1e6)], BITS), Bank([Arm("uniform", beta=1e-3)], BITS)
    one = np.array([[1.0]])
    linear.learn(Samples(slate([[3]]), labels(0), structural=10 * one))
    once = Bank([Arm("uniform", beta=1e6)], BITS)
    once.learn(Samples(slate([[3]]), labels(0)))
    # With the accumulator out of the way, rho * move(1 / rho) = move(1).
    assert 0.1 * linear.predict(slate([[3]]))[0][0, 0] == pytest.approx(once.predict(slate([[3]]))[0][0, 0], rel=1e-4)
    naive = Bank([Arm("uniform", beta=1e-3)], BITS)
    naive.learn(Samples(slate([[3]]), labels(0), structural=10 * one))
    stepped.learn(Samples(slate([[3]]), labels(0), importance=10 * one))
    assert abs(naive.predict(slate([[3]]))[0][0, 0] - stepped.predict(slate([[3]]))[0][0, 0]) > 1e-3


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_a_factor_on_all_structural_weights_changes_no_prediction(factor: float, seed: int) -> None:
    # The accumulator grows by (h g)^2 then; beta and the regularisation have a scale of their own, so they are 0.
    arm = Arm("uniform", beta=0.0)
    bank, scaled = Bank([arm], BITS), Bank([arm], BITS)
    rng = np.random.default_rng(seed)
    for vectors, y in stream(seed, slates=20):
        h = rng.uniform(0.1, 5.0, (len(vectors), 1))
        bank.learn(Samples(vectors, y, structural=h))
        scaled.learn(Samples(vectors, y, structural=factor * h))
        np.testing.assert_allclose(scaled.predict(vectors)[0], bank.predict(vectors)[0], rtol=1e-9, atol=1e-9)
    z, n = (scaled.state()["table"][:, part] / bank.state()["table"][:, part] for part in (0, 1))
    np.testing.assert_allclose(z, factor, rtol=1e-6)
    np.testing.assert_allclose(n, factor**2, rtol=1e-6)


def stepped(arm: Arm, past: float, label: int, importance: float = 1.0, structural: float = 1.0) -> float:
    """How far a sample moves the logit of a bank that has learned, ``past`` being a factor on its accumulators."""
    bank = Bank([arm], BITS)
    for vectors, y in stream(seed=13, slates=400):
        bank.learn(Samples(vectors, y))
    state = bank.state()
    z, n = state["table"][:, 0], state["table"][:, 1]
    z *= (arm.beta + np.sqrt(past * n)) / (arm.beta + np.sqrt(n))  # the weights are as they were
    n *= past
    bank.restore(state)
    one = slate([[3, 4, 5, 6]])
    before = float(bank.predict(one)[0][0, 0])
    bank.learn(Samples(one, labels(label), np.array([[importance]]), np.array([[structural]])))
    return float(bank.predict(one)[0][0, 0]) - before


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("factor", [0.9, 0.25, 0.01])
def test_a_factor_on_all_importance_weights_multiplies_the_steps_of_a_warm_model_by_its_root(
    factor: float, label: int
) -> None:
    # n grows by h g^2: a past of weights that are all `factor` leaves factor n. Structural ones leave factor^2 n.
    free, damped = Arm("uniform", beta=0.0), Arm("uniform")
    one = stepped(free, 1.0, label)
    assert stepped(free, factor, label, importance=factor) / one == pytest.approx(sqrt(factor), rel=1e-9)
    assert stepped(free, factor**2, label, structural=factor) / one == pytest.approx(1.0, rel=1e-9)
    # One light sample among samples of weight 1: in proportion, but for what it adds itself to the accumulator.
    for step in (stepped(free, 1.0, label, importance=factor), stepped(free, 1.0, label, structural=factor)):
        assert step / one == pytest.approx(factor, rel=0.01)
    # And so nearly with the default's beta, which the accumulator outweighs unless it is a hundredth.
    if factor > 0.1:
        ratio = stepped(damped, factor, label, importance=factor) / stepped(damped, 1.0, label)
        assert ratio == pytest.approx(sqrt(factor), rel=0.05)


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, float("inf"), 1e6])
def test_a_weight_that_is_none_is_refused_by_row_and_arm_and_nothing_is_learned(wrong: float) -> None:
    bank, untouched = Bank(CLICK_ARMS, BITS), Bank(CLICK_ARMS, BITS)
    weights = np.ones((2, len(CLICK_ARMS)))
    weights[1, 2] = wrong
    with pytest.raises(ValueError, match=rf"row 1, arm '{CLICK_ARMS[2].name}'.*{wrong}"):
        bank.learn(Samples(slate([[1], [2]]), labels(1, 0), importance=weights))
    assert same(bank, untouched)


def test_predicting_changes_nothing_and_unknown_slots_draw_towards_the_base_rate() -> None:
    bank, untouched = Bank(CLICK_ARMS, BITS), Bank(CLICK_ARMS, BITS)
    for vectors, y in stream(seed=8):
        bank.learn(Samples(vectors, y))
        untouched.learn(Samples(vectors, y))
        bank.predict(vectors)
    assert same(bank, untouched)
    known, partly, base = bank.predict(slate([[3, 4], [3, 4, 999, 1000], []]))[0]
    assert np.allclose(partly - base, (known - base) / sqrt(2))
    assert np.array_equal(bank.predict(slate([[999, 1000]]))[0][0], base)


def test_positions_count_as_shown_and_not_in_the_position_free_score() -> None:
    bank = Bank([UNIFORM], BITS)
    for _ in range(50):
        bank.learn(Samples(slate([[3], [3]], shown=[[100], [200]]), labels(1, 0)))
    q, rank = bank.predict(slate([[3], [3]], shown=[[100], [200]]))
    assert q[0, 0] > q[1, 0] + 1
    assert rank[0, 0] == rank[1, 0]


def test_two_slots_of_a_row_that_share_a_place_count_once() -> None:
    arm = Arm("uniform", alpha=0.3)
    small, expected = Bank([arm], 8), Bank([arm], 8)
    twice = slate([[16, 17]], shown=[[18]])  # 2^12 slots fold onto 2^8 places: all three are place 1
    once = slate([[16]])
    for y in (1, 0, 1):
        small.learn(Samples(twice, labels(y)))
        expected.learn(Samples(once, labels(y)))
    assert same(small, expected)


def test_thinning_depends_on_seed_request_and_item_alone_and_keeps_every_positive() -> None:
    arms = (UNIFORM, Arm("thin", keep=0.3))
    thinning = Thinning(arms, seed=5)
    wide = slate([[1]] * 200, request=9)
    none = np.zeros(200, np.uint8)
    active, offsets = thinning.of(wide, none)
    assert active[:, 0].all()
    assert 0.2 < active[:, 1].mean() < 0.4
    assert offsets[0].tolist() == [0.0, log(1 / 0.3)]
    assert thinning.of(wide, none + 1)[0].all()
    assert np.array_equal(thinning.of(wide.one(7), none[:1])[0][0], active[7])
    assert not np.array_equal(thinning.of(slate([[1]] * 200, request=10), none)[0], active)
    assert not np.array_equal(Thinning(arms, seed=6).of(wide, none)[0], active)


@settings(deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-3, 1.0), st.floats(1e-3, 1.0))
def test_the_offset_of_thinning_is_the_inverse_of_thinning(p: float, keep: float, other: float) -> None:
    less, more = sorted((keep, other))
    thinning = Thinning((UNIFORM, Arm("less", keep=less), Arm("more", keep=more), Arm("all", keep=1.0)), seed=1)
    wide = slate([[1]] * 50, request=3)
    active, offsets = thinning.of(wide, np.zeros(50, np.uint8))
    assert (offsets == offsets[0]).all()
    _, by_less, by_more, by_all = offsets[0].tolist()
    # All positives are left, and of negatives a share: a model of what is left has the odds p / (less (1 - p)).
    thinned = p / (p + less * (1 - p))
    logit = log(thinned / (1 - thinned))
    assert -by_less == pytest.approx(log(less), abs=1e-12)
    assert sigmoid(logit - by_less) == pytest.approx(p, rel=1e-9)
    assert sigmoid(logit - by_less) == pytest.approx(thinned / (thinned + (1 - thinned) / less), rel=1e-9)
    # Keeping all is the identity; keeping less shifts more, and never keeps a row that keeping more would not.
    assert by_all == 0.0
    assert active[:, 3].all()
    assert by_less >= by_more >= 0.0
    assert (by_less > by_more) == (log(1 / less) > log(1 / more))
    assert (active[:, 1] <= active[:, 2]).all()


RATES = [0.9, 0.5, 0.1, 0.02]


@pytest.mark.parametrize("keep", RATES)
def test_a_constant_offset_is_a_shift_of_the_intercept(keep: float) -> None:
    # Without regularisation a step does not depend on where the intercept stands: begun log(keep) lower, the thinned
    # arm stays so much below one that learns the same samples without an offset.
    arm = Arm("thinned", alpha=0.5, beta=1.0, keep=keep)
    shifted, plain, thinning = Bank([arm], BITS), Bank([arm], BITS), Thinning((arm,), seed=2)
    state = shifted.state()
    start = {
        "places": np.array([1 << BITS], np.uint32),
        "table": np.array([[[-log(keep) * arm.beta / arm.alpha], [0]]]),
    }
    shifted.restore(state | start)
    for vectors, y in stream(seed=14, slates=200):
        active, offsets = thinning.of(vectors, y)
        shifted.learn(Samples(vectors, y, offsets=offsets, active=active))
        plain.learn(Samples(vectors, y, active=active))
        difference = shifted.predict(vectors)[0] - plain.predict(vectors)[0]
        assert difference == pytest.approx(np.full((5, 1), log(keep)), abs=1e-10)


@pytest.mark.parametrize("keep", RATES)
def test_wherever_it_begins_the_offset_ends_at_that_shift(keep: float) -> None:
    # Soft labels that are the rates among what thinning leaves: no chance, so that both come to rest.
    bank = Bank([Arm("uniform", alpha=1.0), Arm("thinned", alpha=1.0, keep=keep)], BITS)
    truth = np.array([[0.3], [0.05], [0.004]])
    thinned = np.repeat(truth / (truth + keep * (1 - truth)), 2, axis=1)
    cells, y = slate([[1], [2], [3]]), np.zeros(3, np.uint8)
    for _ in range(4_000):
        bank.learn(Samples(cells, y, offsets=np.array([[0.0, log(1 / keep)]] * 3), targets=thinned))
    plain, offset = bank.predict(cells)[0].T
    assert offset - plain == pytest.approx(np.full(3, log(keep)), abs=1e-6)
    assert offset == pytest.approx(np.log(truth / (1 - truth))[:, 0], abs=1e-6)


def test_a_thinned_arm_ends_where_all_samples_would() -> None:
    rng = np.random.default_rng(10)
    arms = (Arm("uniform", alpha=0.05), Arm("thin", alpha=0.05, keep=0.2))
    bank, thinning = Bank(arms, BITS), Thinning(arms, seed=1)
    for request in range(3_000):
        vectors, y = slate([[1]] * 20, request=request), (rng.random(20) < 0.04).astype(np.uint8)
        active, offsets = thinning.of(vectors, y)
        bank.learn(Samples(vectors, y, offsets=offsets, active=active))
    full, thinned = bank.predict(slate([[1]]))[0][0]
    truth = log(0.04 / 0.96)
    assert full == pytest.approx(truth, abs=0.1)
    assert thinned == pytest.approx(truth, abs=0.15)


def test_what_was_never_on_screen_is_learned_by_no_arm_unless_it_was_clicked() -> None:
    rows = msgspec.structs.replace(slate([[1], [2], [3]]), seen=np.array([True, False, False]))
    active, _ = Thinning((UNIFORM, Arm("b")), seed=1).of(rows, labels(0, 0, 1))
    assert active.tolist() == [[True, True], [False, False], [True, True]]


def test_rows_that_are_not_active_are_not_learned() -> None:
    bank, expected = Bank([UNIFORM], BITS), Bank([UNIFORM], BITS)
    rows = slate([[3], [4]])
    bank.learn(Samples(rows, labels(0, 0), active=np.array([[True], [False]]), offsets=np.zeros((2, 1))))
    expected.learn(Samples(slate([[3]]), labels(0)))
    assert same(bank, expected)


@given(st.integers(0, 60))
def test_cut_and_resume_equals_straight_on_bit_for_bit(cut: int) -> None:
    events = stream(seed=11)
    straight, first, resumed = (Bank(CLICK_ARMS, BITS) for _ in range(3))
    for vectors, y in events:
        straight.learn(Samples(vectors, y))
    for vectors, y in events[:cut]:
        first.learn(Samples(vectors, y))
    resumed.restore(first.state())
    for vectors, y in events[cut:]:
        resumed.learn(Samples(vectors, y))
    assert same(straight, resumed)


def test_a_state_is_a_copy_holds_touched_slots_only_and_fits_no_other_bank() -> None:
    bank = Bank([UNIFORM], BITS)
    bank.learn(Samples(slate([[3, 4]]), labels(1)))
    state = bank.state()
    assert state["places"].tolist() == [3, 4, 1 << BITS]
    before = state["table"].copy()
    bank.learn(Samples(slate([[3, 4]]), labels(1)))
    assert np.array_equal(state["table"], before)
    with pytest.raises(ValueError, match="expected a state of 2 arms"):
        Bank([UNIFORM, Arm("b")], BITS).restore(state)


def test_a_bank_takes_192_bytes_for_each_slot_and_eight_arms() -> None:
    one, eight, nine = (Bank([Arm(f"arm {k}") for k in range(many)], bits=16).memory_bytes for many in (1, 8, 9))
    assert one == pytest.approx(192 * 2**16, rel=0.01)
    assert eight == pytest.approx(one, rel=0.01)
    assert nine == pytest.approx(2 * 192 * 2**16, rel=0.01)


def test_fading_halves_the_accumulator_and_leaves_the_weight() -> None:
    bank = Bank([Arm("uniform", alpha=0.3, l1=0.01, l2=0.1, half_life=10)], BITS)
    for _ in range(20):
        bank.learn(Samples(slate([[3]]), labels(1)))
    before, old = bank.predict(slate([[3]]))[0][0, 0], bank.state()["table"][0, 1, 0]
    for _ in range(10):
        bank.learn(Samples(slate([[3]]), labels(1), offsets=np.array([[60.0]])))  # certain: the gradient is nothing
    assert bank.state()["table"][0, 1, 0] == pytest.approx(old / 2, rel=1e-9)
    assert bank.predict(slate([[3]]))[0][0, 0] == pytest.approx(before, abs=1e-9)


def test_after_five_million_samples_a_fading_arm_follows_drift_and_a_plain_one_lags() -> None:
    rng = np.random.default_rng(12)
    bank = Bank([Arm("uniform", alpha=0.05), Arm("fading", alpha=0.05, half_life=20_000)], BITS)
    rows = 1_000
    wide = slate([[row % 2 + 1] for row in range(rows)])
    rates = np.where(np.arange(rows) % 2, 0.02, 0.08)
    for _ in range(5_000):
        bank.learn(Samples(wide, (rng.random(rows) < rates).astype(np.uint8)))
    settled = bank.predict(wide.one(0))[0][0]
    assert settled == pytest.approx([log(0.08 / 0.92)] * 2, abs=0.15)
    for _ in range(100):  # the first item's rate halves
        bank.learn(Samples(wide, (rng.random(rows) < np.where(np.arange(rows) % 2, 0.02, 0.04)).astype(np.uint8)))
    plain, fading = bank.predict(wide.one(0))[0][0] - log(0.04 / 0.96)
    assert abs(fading) < 0.15
    assert plain > 0.3


def test_arms_and_configs_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="keep = 0"):
        Arm("thin", keep=0)
    with pytest.raises(ValueError, match="expected 'uniform'"):
        RankerConfig(click_arms=(Arm("other"),))
    with pytest.raises(ValueError, match="name of its own"):
        RankerConfig(click_arms=(Arm("uniform"), Arm("uniform")))
    with pytest.raises(ValueError, match="click_bits is 40"):
        RankerConfig(click_bits=40)


# -------------------------------------------------------------------- soft labels, and what the reference says


def test_soft_labels_that_are_the_labels_change_nothing_and_others_end_where_they_say() -> None:
    plain, soft, both = (Bank([UNIFORM, Arm("b", alpha=0.2)], BITS) for _ in range(3))
    for vectors, y in stream(seed=31):
        plain.learn(Samples(vectors, y))
        soft.learn(Samples(vectors, y, targets=np.repeat(y[:, None].astype(np.float64), 2, axis=1)))
    assert same(plain, soft)
    for _ in range(3_000):
        both.learn(Samples(slate([[3]]), labels(0), targets=np.array([[0.3, 0.0]])))
    assert sigmoid(both.predict(slate([[3]]))[0][0, 0]) == pytest.approx(0.3, abs=0.01)
    assert sigmoid(both.predict(slate([[3]]))[0][0, 1]) < 0.01


def reading() -> Bank:
    arms = [UNIFORM, Arm("feature", alpha=0.6, beta=0.4), Arm("offset", alpha=0.6, beta=0.4)]
    return Bank(arms, BITS, inputs=[Input.NONE, Input.FEATURE, Input.OFFSET])


def test_the_feature_is_learned_by_the_textbooks_rule_beside_the_slots() -> None:
    bank, book = reading(), Textbook(Arm("feature", alpha=0.6, beta=0.4))
    rng = np.random.default_rng(32)
    z = n = 0.0
    for vectors, y in stream(seed=33, slates=80, rows=1):
        said = np.float32(rng.normal())
        names = (vectors.slots[: vectors.indptr[1]] >> (32 - BITS)).tolist()
        w = -z / ((0.4 + sqrt(n)) / 0.6)
        logit = book.logit(names) + w * float(said)
        assert bank.predict(vectors, np.array([said]))[0][0, 1] == pytest.approx(logit, abs=1e-9)
        bank.learn(Samples(vectors, y, teacher_inputs=np.array([said])))
        whole = sigmoid(logit) - y[0]
        for name in ["bias", *names]:
            g = whole if name == "bias" else whole / sqrt(len(names))
            before = book.n.get(name, 0.0)
            moved = (sqrt(before + g * g) - sqrt(before)) / 0.6 * book.weight(name)
            book.z[name], book.n[name] = book.z.get(name, 0.0) + g - moved, before + g * g
        g = whole * float(said)
        z, n = z + g - (sqrt(n + g * g) - sqrt(n)) / 0.6 * w, n + g * g


def test_an_input_of_zero_moves_nothing_when_nothing_damps_the_first_steps() -> None:
    # Its accumulator is 0, and so is beta: the rate is no number. What is said without a query is 0 wherever there is.
    arms = [UNIFORM, Arm("feature", beta=0.0), Arm("stacked", beta=0.0)]
    bank = Bank(arms, BITS, inputs=[Input.NONE, Input.FEATURE, Input.STACKED])
    for said in (0.0, 0.5):
        bank.learn(Samples(slate([[3]]), labels(1), teacher_inputs=np.array([said], np.float32)))
        assert np.isfinite(bank.predict(slate([[3]]), np.array([0.5], np.float32))[0]).all()


def test_where_the_input_is_missing_those_that_read_it_learn_nothing_and_say_what_the_first_says() -> None:
    bank, plain = reading(), Bank([UNIFORM], BITS)
    for vectors, y in stream(seed=34):
        bank.learn(Samples(vectors, y))
        plain.learn(Samples(vectors, y))
    state = bank.state()["table"]
    assert np.array_equal(state[:, :, 0], plain.state()["table"][:, :, 0])
    assert not state[:, :, 1:].any()
    vectors, _ = stream(seed=35)[0]
    q, rank = bank.predict(vectors)
    assert np.array_equal(q, np.repeat(plain.predict(vectors)[0], 3, axis=1))
    assert np.array_equal(rank, np.repeat(plain.predict(vectors)[1], 3, axis=1))


def test_when_a_teacher_takes_over_the_feature_goes_on_from_uniform_and_the_offset_from_nothing() -> None:
    bank = Bank(
        [UNIFORM, Arm("feature", alpha=0.1, beta=2.0, l1=0.01, l2=0.3), Arm("offset", alpha=0.6)],
        BITS, inputs=[Input.NONE, Input.FEATURE, Input.OFFSET],
    )  # fmt: skip
    for vectors, y in stream(seed=36):
        bank.learn(Samples(vectors, y, teacher_inputs=np.ones(5, np.float32)))
    bank.reset_arms(0.7, np.ones(3, np.bool_))
    said = np.linspace(-2, 2, 5).astype(np.float32)
    for vectors, _ in stream(seed=37)[:5]:
        q, _ = bank.predict(vectors, said)
        assert np.array_equal(q[:, 1], q[:, 0])
        assert q[:, 2] == pytest.approx(0.7 * said.astype(np.float64), abs=1e-12)
    again = Bank(bank.arms, BITS, inputs=[Input.NONE, Input.FEATURE, Input.OFFSET])
    again.restore(bank.state())
    for vectors, y in stream(seed=38)[:20]:
        for each in (bank, again):
            each.learn(Samples(vectors, y, teacher_inputs=said))
    vectors, _ = stream(seed=39)[0]
    assert again.predict(vectors, said)[0] == pytest.approx(bank.predict(vectors, said)[0], abs=1e-9)


def test_an_arm_names_a_weighting_and_one_that_is_none_is_refused_with_those_there_are() -> None:
    own = Weighting("mine", measure=Measure.NOVELTY, strength=0.1)
    config = RankerConfig(click_arms=(Arm("uniform"), Arm("n", weighting="mine")), weightings=(own,))
    assert config.weightings_of(config.click_arms)[1] == Weighting("n", measure=Measure.NOVELTY, strength=0.1)
    assert RankerConfig().weightings_of((Arm("x", weighting="s6"),))[0].diagnostic
    with pytest.raises(ValueError, match=r"arm 'n' has weighting 'mien'; there are .*rho_gate"):
        RankerConfig(click_arms=(Arm("uniform"), Arm("n", weighting="mien")))
    with pytest.raises(ValueError, match="expected 'uniform', the control"):
        RankerConfig(click_arms=(Arm("uniform", weighting="rho_gate"),))


def test_what_is_stacked_adds_to_the_first_arms_logit_and_learns_only_what_it_adds() -> None:
    bank, plain = Bank([UNIFORM, Arm("s", alpha=0.3)], BITS, inputs=[Input.NONE, Input.STACKED]), Bank([UNIFORM], BITS)
    rng = np.random.default_rng(40)
    added = np.zeros(2)
    z, n = np.zeros(2), np.zeros(2)
    for vectors, y in stream(seed=41, slates=80, rows=1):
        said = np.array([rng.normal()], np.float32)
        x = np.array([said[0], 1.0])  # and the same without a query, but there is one
        added = -z / ((0.18 + np.sqrt(n)) / 0.3)
        q, rank = bank.predict(vectors, said)
        base, place_free = plain.predict(vectors)
        assert q[0, 1] == pytest.approx(base[0, 0] + added @ x, abs=1e-9)
        assert rank[0, 1] == pytest.approx(place_free[0, 0] + added @ x, abs=1e-9)
        bank.learn(Samples(vectors, y, teacher_inputs=said))
        g = (sigmoid(base[0, 0] + added @ x) - y[0]) * x
        z, n = z + g - (np.sqrt(n + g * g) - np.sqrt(n)) / 0.3 * added, n + g * g
        plain.learn(Samples(vectors, y))
    assert (added != 0).all()
    assert not bank.state()["table"][:, :, 1].any()
    assert np.array_equal(bank.state()["table"][:, :, 0], plain.state()["table"][:, :, 0])


def test_what_the_reference_is_worth_without_a_query_is_learned_apart() -> None:
    arms = [UNIFORM, Arm("f", alpha=0.3), Arm("s", alpha=0.3)]
    bank = Bank(arms, BITS, inputs=[Input.NONE, Input.FEATURE, Input.STACKED])
    rng = np.random.default_rng(42)
    nothing = Slate(request_id="r", user_id="u", at_ms=1_600_000_000_000, items=[Item("a")], query=" ")
    unasked = Featurizer(FeatureConfig(features=("item_id",))).shown(nothing, []).query
    for vectors, _ in stream(seed=43, slates=2_000, rows=1):
        # What it says holds where there is a query, and is the other way round where there is none.
        said, asked = np.array([rng.normal()], np.float32), rng.random() < 0.5
        y = np.array([rng.random() < sigmoid(2.0 * float(said[0]) * (1 if asked else -1))], np.uint8)
        shown = vectors if asked else msgspec.structs.replace(vectors, query=unasked)
        bank.learn(Samples(shown, y, teacher_inputs=said))
    vectors, _ = stream(seed=44, slates=1, rows=1)[0]
    for query, sign in ((vectors.query, 1), (unasked, -1)):
        shown = msgspec.structs.replace(vectors, query=query)
        high, low = (bank.predict(shown, np.array([said], np.float32))[0][0] for said in (1.0, -1.0))
        assert (sign * (high - low)[1:] > 1.5).all()
