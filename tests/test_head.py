"""A head: what is served, when it abstains, and that labels are set against what was said when the slate was shown."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.features import FeatureConfig, Featurizer, Vectors
from models.head import Head
from models.ranker import Arm
from tests.builders import SECOND, impression

ARMS = (Arm("uniform", alpha=0.2), Arm("quick", alpha=2.0), Arm("thinned", alpha=0.2, keep=0.3))
FEATURIZER = Featurizer(FeatureConfig(features=("item_id", "position"), history_bits=3))


def slates(many: int, seed: int = 1) -> list[tuple[Vectors, NDArray[np.uint8]]]:
    chance = np.random.default_rng(seed)
    out = []
    for n in range(many):
        shown = impression(f"r{n}", at=n * SECOND, items=chance.permutation(list("abcdef"))[:4].tolist())
        rates = np.array([0.5 if item.item_id == "a" else 0.1 for item in shown.items])
        out.append((FEATURIZER.shown(shown, []), (chance.random(4) < rates).astype(np.uint8)))
    return out


def learned(many: int, abstain_below: int = 0) -> Head:
    head = Head(ARMS, bits=10, seed=1, abstain_below=abstain_below)
    for vectors, labels in slates(many):
        head.observe(vectors, head.predict(vectors), labels, "search", measured=True)
    return head


def test_what_is_served_is_the_mean_of_the_calibrated_policies_by_the_weights_of_the_mixture() -> None:
    head = learned(6_000)  # past the probation of the mixture
    vectors, _ = slates(1, seed=2)[0]
    q, rank = head.bank.predict(vectors)
    weights = head.hedge.weights
    assert weights.min() > 0
    prediction = head.predict(vectors)
    for raw, served in ((q, prediction.raw), (rank, prediction.rank)):
        said = 1 / (1 + np.exp(-(head.platt.a * raw + head.platt.b)))
        mixed = said @ weights
        assert served == pytest.approx(np.column_stack([raw, np.log(mixed / (1 - mixed))]), abs=1e-6)
        if raw is q:
            assert prediction.p == pytest.approx(np.column_stack([said, mixed]), rel=1e-6)


def test_a_head_says_nothing_before_it_has_seen_enough_positives_and_is_not_measured_until_then() -> None:
    head = Head(ARMS, bits=10, seed=1, abstain_below=50)
    measured = 0
    for vectors, labels in slates(200):
        shown = head.predict(vectors)
        assert bool(np.isnan(shown.p).all()) is (head.positives < 50)
        assert not np.isnan(shown.rank).any()
        measured += 4 * (head.positives >= 50)
        head.observe(vectors, shown, labels, "search", measured=True)
    assert 0 < head.metrics.samples == measured < 800


def test_metrics_calibration_and_mixture_see_what_was_shown_and_not_what_would_be_said_now() -> None:
    log = slates(400)
    then, later = Head(ARMS, 10, 1), Head(ARMS, 10, 1)
    shown = [then.predict(vectors) for vectors, _ in log]  # before anything was learned: labels come a window late
    for (vectors, labels), as_shown in zip(log, shown, strict=True):
        then.observe(vectors, as_shown, labels, "search", measured=True)
        later.observe(vectors, later.predict(vectors), labels, "search", measured=True)
    assert all(np.array_equal(then.bank.state()[name], later.bank.state()[name]) for name in then.bank.state())
    before, after = (head.metrics.report()["policies"]["uniform"]["logloss"] for head in (then, later))
    assert before == pytest.approx(np.log(2), rel=1e-6)  # all said one half
    assert after < 0.6
    assert then.hedge.weights == pytest.approx(Head(ARMS, 10, 1).hedge.weights)
    assert (then.platt.a == 1.0).all()  # one half whatever the label: no scale to learn, only a shift
    assert (then.platt.b < -0.5).all()
