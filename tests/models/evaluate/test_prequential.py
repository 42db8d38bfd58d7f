"""Metrics against scikit-learn and brute force; whole logs in bounded memory, merged, cut and resumed."""

from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from heft.models.evaluate import formulas
from heft.models.evaluate.cohorts import Cohorts
from heft.models.evaluate.formulas import ECE_BINS
from heft.models.evaluate.prequential import Observation, Prequential, merge

HOUR = 3_600_000
NAMES = ("uniform", "shifted", "mixture")


class Log:
    """Random slates of known truth: each arm's raw logit, its probability, position-free score and the labels."""

    def __init__(self, slates: int, seed: int, base: float = -3.0, n: int = 20, users: int = 200) -> None:
        rng = np.random.default_rng(seed)
        shape = (slates, n, len(NAMES))
        truth = rng.normal(base, 1.2, (slates, n, 1))
        self.labels = (rng.random((slates, n)) < 1 / (1 + np.exp(-truth[..., 0]))).astype(np.uint8)
        self.raw = (truth + rng.normal(0, 0.4, shape) + np.array([0.0, 1.0, 0.0])).astype(np.float32)
        self.p = (1 / (1 + np.exp(-(self.raw - np.array([0.0, 1.0, 0.0]))))).astype(np.float32)
        self.rank = (np.round(4 * self.raw) / 4).astype(np.float32)  # many ties
        self.users = rng.integers(0, users, slates)
        self.new = rng.random((slates, n)) < 0.3
        self.seen = np.ones(n, np.bool_)
        self.positions = np.arange(n, dtype=np.uint16)

    def __len__(self) -> int:
        return len(self.labels)

    def into(self, metrics: Prequential, first: int = 0, last: int | None = None) -> Prequential:
        for s in range(first, len(self) if last is None else last):
            metrics.add(
                Observation(
                    int(self.users[s]), self.labels[s], self.raw[s], self.p[s], self.rank[s],
                    self.seen, self.positions, self.new[s], f"surface{s % 2}",
                )
            )  # fmt: skip
        return metrics

    def flat(self, k: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        return self.labels.ravel(), self.raw[..., k].ravel(), self.p[..., k].ravel(), self.rank[..., k].ravel()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b) or (a != a and b != b)


@pytest.mark.parametrize("base", [-3.0, -6.0])
def test_the_whole_log_agrees_with_scikit_learn_also_at_half_a_percent_of_positives(base: float) -> None:
    log = Log(8_000, seed=1, base=base)
    report = log.into(Prequential(NAMES)).report()
    assert report["samples"] == log.labels.size
    assert report["positives"] == int(log.labels.sum())
    assert base > -4 or report["positives"] / report["samples"] < 0.006
    for k, name in enumerate(NAMES):
        labels, raw, p, rank = log.flat(k)
        got = report["arms"][name]
        entropy = formulas.entropy(labels.mean())
        raw_p = 1 / (1 + np.exp(-raw.astype(np.float64)))
        assert got["auc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-4)
        assert got["auc_rank"] == pytest.approx(roc_auc_score(labels, rank), abs=1e-4)
        assert got["pr_auc"] == pytest.approx(average_precision_score(labels, p), abs=1e-3)
        assert got["logloss"] == pytest.approx(log_loss(labels, p.astype(np.float64)), rel=1e-7)
        assert got["ne"] == pytest.approx(log_loss(labels, p.astype(np.float64)) / entropy, rel=1e-7)
        assert got["ne_raw"] == pytest.approx(log_loss(labels, raw_p) / entropy, rel=1e-7)
        assert got["calibration"] == pytest.approx(p.sum(dtype=np.float64) / labels.sum(), rel=1e-7)
        assert got["ece"] == pytest.approx(formulas.ece(labels, p), abs=2e-4)


def test_a_window_agrees_with_scikit_learn_and_holds_the_last_samples_only() -> None:
    log = Log(400, seed=2)
    window = log.into(Prequential(NAMES, window=2_000)).window()
    assert window["samples"] == 2_000
    labels, raw, p, rank = (each[-2_000:] for each in log.flat(0))
    got = window["arms"]["uniform"]
    assert got["auc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-12)
    assert got["auc_rank"] == pytest.approx(roc_auc_score(labels, rank), abs=1e-12)
    assert got["pr_auc"] == pytest.approx(average_precision_score(labels, p), abs=1e-12)
    assert got["logloss"] == pytest.approx(log_loss(labels, p.astype(np.float64)), rel=1e-12)
    assert got["ne_raw"] > window["arms"]["uniform"]["ne"] - 1e-9
    assert raw.size == 2_000


def test_a_window_as_long_as_the_log_tells_what_the_whole_log_tells() -> None:
    log = Log(300, seed=3)
    metrics = log.into(Prequential(NAMES))
    whole, window = metrics.report()["arms"], metrics.window()["arms"]
    for name in NAMES:
        for metric, value in window[name].items():
            tolerance = {"auc": 1e-4, "auc_rank": 1e-4, "pr_auc": 1e-2, "ece": 1e-3, "gauc": 0.05}.get(metric, 1e-6)
            assert whole[name][metric] == pytest.approx(value, abs=tolerance), metric


def brute_gauc(labels: NDArray[Any], scores: NDArray[Any], users: NDArray[Any]) -> float:
    weight = total = 0.0
    for user in np.unique(users):
        mine, said = labels[users == user].ravel(), scores[users == user].ravel()
        if 0 < mine.sum() < mine.size:
            weight += mine.size
            total += mine.size * roc_auc_score(mine, said)
    return total / weight


def test_gauc_is_the_mean_of_the_users_aucs_weighted_by_their_samples() -> None:
    log = Log(600, seed=4, users=50)
    window = log.into(Prequential(NAMES)).window()
    for k, name in enumerate(NAMES):
        want = brute_gauc(log.labels, log.rank[..., k], log.users)
        assert window["arms"][name]["gauc"] == pytest.approx(want, abs=1e-12)


def brute_ranking(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[float, float]:
    """The mean of NDCG and reciprocal rank over every order that is sorted by score."""
    ndcg, reciprocal, orders = 0.0, 0.0, 0
    for order in permutations(range(len(labels))):
        if all(scores[a] >= scores[b] for a, b in pairwise(order)):
            hits = [place for place, row in enumerate(order) if labels[row]]
            ideal = sum(1 / np.log2(place + 2) for place in range(min(len(hits), formulas.CUT)))
            ndcg += sum(1 / np.log2(place + 2) for place in hits if place < formulas.CUT) / ideal
            reciprocal += 1 / (hits[0] + 1)
            orders += 1
    return ndcg / orders, reciprocal / orders


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=7).filter(
        lambda r: any(y for y, _ in r)
    )
)
def test_ties_take_their_expected_value_over_every_order(rows: list[tuple[int, int]]) -> None:
    labels = np.array([y for y, _ in rows], np.uint8)
    scores = np.array([[s] for _, s in rows], np.float32)
    got = formulas.slate_ranking(labels, scores, 0, len(rows), 0)
    assert got == pytest.approx(brute_ranking(labels, scores[:, 0]), abs=1e-12)


def test_ndcg_sees_ten_places_and_is_one_for_the_ideal_order() -> None:
    labels = np.array([1] * 12 + [0] * 8, np.uint8)
    scores = np.arange(20, 0, -1, dtype=np.float32)[:, None]
    assert formulas.slate_ranking(labels, scores, 0, 20, 0)[0] == pytest.approx(1.0, abs=1e-12)
    late = np.array([0] * 10 + [1] + [0] * 9, np.uint8)
    ndcg, reciprocal = formulas.slate_ranking(late, scores, 0, 20, 0)
    assert ndcg == 0.0
    assert reciprocal == pytest.approx(1 / 11)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5)), min_size=2, max_size=60))
def test_auc_is_antisymmetric_invariant_to_monotone_maps_and_sklearns(rows: list[tuple[int, int]]) -> None:
    labels = np.array([y for y, _ in rows], np.uint8)
    scores = np.array([s for _, s in rows], np.float64)
    auc = formulas.auc(labels, scores)
    if labels.min() == labels.max():
        assert np.isnan(auc)
        return
    assert auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auc == pytest.approx(1 - formulas.auc(labels, -scores), abs=1e-12)
    assert auc == formulas.auc(labels, np.exp(scores))


def test_a_constant_base_rate_has_entropy_one_and_no_calibration_error() -> None:
    labels = np.zeros(1_000, np.uint8)
    labels[:20] = 1
    p = np.full(1_000, 0.02)
    assert formulas.logloss(labels, p) / formulas.entropy(0.02) == pytest.approx(1.0, abs=1e-12)
    assert formulas.ece_of_groups(np.array([1000.0]), np.array([20.0]), np.array([0.02])) == 0.0


def test_the_calibration_error_is_that_of_twenty_bins_of_equal_mass_less_what_chance_alone_makes() -> None:
    chance = np.random.default_rng(13)
    p = chance.permutation(np.linspace(0.01, 0.6, ECE_BINS * 40)).astype(np.float32)
    labels = (chance.random(len(p)) < p**1.5).astype(np.uint8)
    want = 0.0
    ranked = sorted(zip(p.tolist(), labels.tolist(), strict=True))
    for first in range(0, len(ranked), 40):
        rows = ranked[first : first + 40]
        gap = sum(said - label for said, label in rows) / 40
        by_chance = sum(said * (1 - said) for said, _ in rows) / 40**2
        want += max(gap**2 - by_chance, 0.0) ** 0.5 / ECE_BINS
    assert formulas.ece(labels, p) == pytest.approx(want, rel=1e-9)


def test_the_calibration_error_of_a_calibrated_model_is_mostly_debiased_away_and_a_real_one_stays() -> None:
    rng = np.random.default_rng(5)
    p = rng.beta(1, 30, 40_000)
    labels = (rng.random(p.size) < p).astype(np.uint8)
    order = np.argsort(p)
    naive = sum(abs(float(part.sum())) for part in np.array_split((p - labels)[order], formulas.ECE_BINS)) / p.size
    assert formulas.ece(labels, p) < 0.7 * naive
    assert formulas.ece(labels, 2 * p) == pytest.approx(p.mean(), rel=0.1)


def test_the_second_half_is_the_samples_after_the_first_half_whatever_the_length() -> None:
    log = Log(9_000, seed=6)
    metrics = Prequential(NAMES)
    done = 0
    for size in (40, 700, 2_300, 9_000):
        log.into(metrics, done, size)
        done = size
        half = metrics.second_half()
        assert half.samples == pytest.approx(size * 10, rel=0.04 if size > 700 else 1.0)
        labels, p = log.labels[:size].ravel()[-half.samples :], log.p[:size, :, 0].ravel()[-half.samples :]
        assert half.metrics(0)["logloss"] == pytest.approx(formulas.logloss(labels, p), rel=1e-8)
        assert half.metrics(0)["auc"] == pytest.approx(formulas.auc(labels, p), abs=1e-4)


def test_memory_does_not_grow_with_the_log() -> None:
    log = Log(2_000, seed=7)
    metrics = Prequential(("uniform", "shifted", "mixture"), window=5_000)

    for _ in range(12):
        log.into(metrics)
        state = metrics.state()
        assert len(state["blocks"]) < 32
        assert len(state["tail"]["labels"]) < 16_384 + 5_000 + 20  # not yet grouped by user, the window, a slate
        assert metrics._labels.nbytes < 4 * (16_384 + 5_000)


def test_slices_add_up_and_tell_what_their_samples_tell() -> None:
    log = Log(500, seed=8)
    report = log.into(Prequential(NAMES)).report()
    slices = report["slices"]
    for group in (("surface surface0", "surface surface1"), ("known items", "new items")):
        assert sum(slices[name]["samples"] for name in group) == report["samples"]
    new = slices["new items"]["arms"]["shifted"]
    labels, p = log.labels[log.new], log.p[..., 1][log.new]
    assert slices["new items"]["positives"] == int(labels.sum())
    assert new["logloss"] == pytest.approx(formulas.logloss(labels, p), rel=1e-7)
    assert new["calibration"] == pytest.approx(p.sum(dtype=np.float64) / labels.sum(), rel=1e-6)
    assert new["auc"] == pytest.approx(formulas.auc(labels, p), abs=2e-3)
    third = log.labels[:, 2]
    assert slices["position 2"]["samples"] == third.size
    assert slices["position 3-5"]["positives"] == int(log.labels[:, 3:6].sum())
    assert slices["position 11+"]["samples"] == 500 * 9


def test_merging_is_exact_and_does_not_depend_on_order() -> None:
    one, two = Log(700, seed=9, users=7), Log(400, seed=10, users=7)
    first, second = one.into(Prequential(NAMES)), two.into(Prequential(NAMES))
    both = two.into(one.into(Prequential(NAMES)))
    merged = merge(first, second)
    assert same(merged.state(), merge(second, first).state())
    for k in range(len(NAMES)):
        want, got = both.total().metrics(k), merged.metrics(k)
        for metric in want:
            if metric != "gauc":  # users are grouped within each log
                assert same(want[metric], got[metric]), metric


def test_the_order_of_slates_leaves_whole_log_sums_unchanged_bit_for_bit() -> None:
    log = Log(300, seed=11)
    forwards = log.into(Prequential(NAMES)).total()
    backwards = Prequential(NAMES)
    for s in reversed(range(len(log))):
        log.into(backwards, s, s + 1)
    assert same(forwards.metrics(1) | {"gauc": 0}, backwards.total().metrics(1) | {"gauc": 0})


@pytest.mark.parametrize("cut", [0, 1, 333, 1_499])
def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit(cut: int) -> None:
    log = Log(1_500, seed=12)
    straight = log.into(Prequential(NAMES, window=3_000))
    before = log.into(Prequential(NAMES, window=3_000), 0, cut)
    resumed = Prequential(NAMES, window=3_000)
    resumed.restore(before.state())
    log.into(before, cut)  # what was taken is a copy
    log.into(resumed, cut)
    assert same(resumed.state(), straight.state())
    assert same(resumed.report(), straight.report())
    assert same(resumed.window(), straight.window())


def test_items_never_on_screen_are_not_measured() -> None:
    log = Log(200, seed=13)
    log.seen[5:] = False
    got = log.into(Prequential(NAMES)).report()
    assert got["samples"] == 200 * 5
    want = formulas.logloss(log.labels[:, :5].ravel(), log.p[:, :5, 0].ravel())
    assert got["arms"]["uniform"]["logloss"] == pytest.approx(want, rel=1e-7)


def test_effective_sample_size_is_all_for_equal_weights_and_less_for_others() -> None:
    rng = np.random.default_rng(14)
    metrics = Prequential(NAMES)
    labels = (rng.random(500) < 0.3).astype(np.uint8)
    weights = np.column_stack((np.full(500, 2.0), rng.lognormal(0, 1, 500)))
    for rows in np.array_split(np.arange(500), 10):
        metrics.weigh(labels[rows], weights[rows])
    even, uneven, mixture = (metrics.total().metrics(k) for k in range(3))
    assert even["ess"] == even["ess_positive"] == even["ess_negative"] == 1.0
    positive = weights[labels == 1, 1]
    assert uneven["ess_positive"] == pytest.approx(positive.sum() ** 2 / (positive**2).sum() / positive.size, rel=1e-5)
    assert uneven["ess"] == min(uneven["ess_positive"], uneven["ess_negative"]) < 1
    assert np.isnan(mixture["ess"])


def test_nothing_measured_is_not_a_number_and_never_an_error() -> None:
    metrics = Prequential(NAMES)
    assert np.isnan(metrics.report()["arms"]["uniform"]["auc"])
    assert metrics.window()["samples"] == 0
    one = np.array([[0.5]] * 1, np.float32).repeat(3, axis=1)
    yes, position = np.ones(1, bool), np.zeros(1, np.uint16)
    metrics.add(Observation(1, np.array([1], np.uint8), one * 0, one, one, yes, position, yes))
    got = metrics.report()["arms"]["uniform"]
    assert got["logloss"] == pytest.approx(np.log(2))
    assert np.isnan(got["auc"])
    assert np.isnan(got["mrr"])  # one matured click is no list to rank
    assert metrics.window()["arms"]["uniform"]["logloss"] == pytest.approx(np.log(2))


def test_a_state_of_other_arms_is_refused_by_name() -> None:
    state = Prequential(("uniform",)).state()
    with pytest.raises(ValueError, match="uniform, shifted, mixture"):
        Prequential(NAMES).restore(state)


def test_only_hours_whose_every_click_has_matured_count_in_the_product() -> None:
    cohorts = Cohorts()
    cohorts.shown(0, 0.5, 1)
    cohorts.shown(HOUR - 1, 0.5, 0)
    cohorts.shown(HOUR, 3.0, 1)
    cohorts.shown(5 * HOUR, 1.0, 0)
    assert cohorts.report()["orders"] == 0
    cohorts.matured(0, True)
    assert cohorts.report() == {"expected_orders": 1.0, "orders": 1.0, "calibration": 1.0}
    cohorts.matured(HOUR, True)
    resumed = Cohorts()
    resumed.restore(cohorts.state())
    assert resumed.report() == cohorts.report() == {"expected_orders": 4.0, "orders": 2.0, "calibration": 2.0}


def test_an_hour_whose_click_never_matures_counts_in_proportion_once_clicks_of_two_hours_later_have() -> None:
    cohorts = Cohorts()
    cohorts.shown(0, 2.0, 4)
    cohorts.shown(2 * HOUR - 1, 1.0, 1)
    cohorts.shown(2 * HOUR, 1.0, 1)
    cohorts.shown(9 * HOUR, 1.0, 0)
    for _ in range(3):
        cohorts.matured(0, True)
    cohorts.matured(2 * HOUR - 1, True)
    assert cohorts.report()["orders"] == 0, "the fourth click may still come"
    cohorts.matured(2 * HOUR, True)
    assert cohorts.report() == {"expected_orders": 3.5, "orders": 5.0, "calibration": 0.7}
    resumed = Cohorts()
    resumed.restore(cohorts.state())
    assert resumed.report() == cohorts.report()


def test_an_hour_of_which_no_click_matures_counts_for_nothing() -> None:
    cohorts = Cohorts()
    cohorts.shown(0, 2.0, 1)
    cohorts.shown(5 * HOUR, 1.0, 1)
    cohorts.shown(9 * HOUR, 1.0, 0)
    cohorts.matured(5 * HOUR, True)
    assert cohorts.report() == {"expected_orders": 1.0, "orders": 1.0, "calibration": 1.0}


def test_hours_of_a_snapshot_that_did_not_count_what_matured_wait_for_the_rest_of_their_clicks() -> None:
    cohorts = Cohorts()
    cohorts.restore([[0, 2.0, 1.0, 1.0], [5, 1.0, 0.0, 0.0]])
    assert cohorts.report()["orders"] == 0
    cohorts.matured(0, True)
    assert cohorts.report() == {"expected_orders": 2.0, "orders": 2.0, "calibration": 1.0}


def test_the_cohorts_are_bounded_in_number() -> None:
    cohorts = Cohorts()
    for hour in range(2_000):
        cohorts.shown(hour * HOUR, 0.1, 0)
    assert len(cohorts.state()) <= 24 * 14
