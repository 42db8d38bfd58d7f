"""Metrics over counts equal those of the samples one by one; calibration finds the scale and shift that made them."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from heft.models.teacher.data.examples import FEWEST_QUERIES, examples_of
from heft.models.teacher.train import measure


def counted(seed: int, n: int = 300) -> tuple[measure.Floats, measure.Floats, measure.Floats]:
    rng = np.random.default_rng(seed)
    z = np.round(rng.normal(-1.0, 1.5, n), 1)  # with ties
    trials = rng.integers(0, 6, n).astype(float)
    return z, trials, rng.binomial(trials.astype(int), measure.sigmoid(z)).astype(float)


def test_metrics_of_counts_are_those_of_the_samples_one_by_one() -> None:
    z, trials, positives = counted(1)
    found = measure.metrics(z, trials, positives)
    one_by_one = np.repeat(z, trials.astype(int))
    labels = np.concatenate([[1] * int(k) + [0] * int(n - k) for n, k in zip(trials, positives, strict=True)])
    p = measure.sigmoid(one_by_one)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, one_by_one))
    assert found["logloss"] == pytest.approx(log_loss(labels, p))
    assert found["ne"] == pytest.approx(log_loss(labels, p) / log_loss(labels, np.full(len(p), labels.mean())))
    assert found["calibration"] == pytest.approx(p.sum() / labels.sum())
    some = trials > 0
    assert found["spearman"] == pytest.approx(stats.spearmanr(z[some], (positives / np.maximum(trials, 1))[some])[0])


def test_grades_are_told_apart_by_the_highest() -> None:
    z, trials = np.array([3.0, 2.0, 1.0]), np.ones(3)
    assert measure.metrics(z, trials, np.array([1.0, 2 / 3, 0.0]), graded=True)["auc"] == 1.0
    assert measure.metrics(z, trials, np.array([2 / 3, 1.0, 0.0]), graded=True)["auc"] == 0.5


def test_nothing_to_measure_is_not_a_number() -> None:
    found = measure.metrics(np.zeros(2), np.zeros(2), np.zeros(2))
    assert found["examples"] == 0
    assert np.isnan(found["auc"])


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, -1.0), (2.0, 0.7)])
def test_calibration_finds_the_scale_and_shift_that_made_the_labels(scale: float, shift: float) -> None:
    rng = np.random.default_rng(3)
    z, offset, trials = rng.normal(-1, 1, 20_000), rng.normal(0, 0.5, 20_000), np.full(20_000, 4.0)
    positives = rng.binomial(4, measure.sigmoid(scale * z + shift + offset)).astype(float)
    assert measure.fit_platt(z, offset, trials, positives) == pytest.approx((scale, shift), abs=0.05)


def test_labels_that_separate_still_give_finite_numbers() -> None:
    z = np.array([-2.0, -1.0, 1.0, 2.0])
    scale, shift = measure.fit_platt(z, np.zeros(4), np.ones(4), (z > 0).astype(float))
    assert 1.0 < scale < 10.0
    assert abs(shift) < 1e-6


def test_too_few_queries_do_not_calibrate() -> None:
    for queries, wanted in ((FEWEST_QUERIES - 1, True), (FEWEST_QUERIES, False)):
        pairs = [(f"q{n % queries}", f"t{n}") for n in range(500)]
        labels = np.zeros((500, 3))
        labels[::4] = 1.0
        examples = examples_of(pairs, np.ones((500, 3)), labels, np.zeros(500))
        identity = measure.calibrate(np.zeros(500), np.zeros(500), examples, 0) == (1.0, 0.0)
        assert identity == wanted


def test_where_nobody_asks_anything_the_items_must_not_be_too_few() -> None:
    for items, wanted in ((FEWEST_QUERIES - 1, True), (FEWEST_QUERIES, False)):
        pairs = [("", f"t{n % items}") for n in range(500)]
        labels = np.zeros((500, 3))
        labels[::4] = 1.0
        examples = examples_of(pairs, np.ones((500, 3)), labels, np.zeros(500))
        identity = measure.calibrate(np.zeros(len(examples)), np.zeros(len(examples)), examples, 0) == (1.0, 0.0)
        assert identity == wanted


def test_the_calibration_table_holds_every_label_once() -> None:
    z, trials, positives = counted(2)
    table = measure.calibration_table(z, trials, positives)
    assert sum(row["labels"] for row in table) == trials.sum()
    assert sum(row["labels"] * row["actual"] for row in table) == pytest.approx(positives.sum())
    assert [row["predicted"] for row in table] == sorted(row["predicted"] for row in table)
