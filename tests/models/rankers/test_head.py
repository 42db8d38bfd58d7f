"""A head: what is served, when it abstains, and that labels are set against what was said when the slate was shown."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from heft.models.features.config import FeatureConfig
from heft.models.features.featurizer import Featurizer
from heft.models.features.vectors import Vectors
from heft.models.importance.teacher_scores import Missing, VersionScores
from heft.models.rankers.arms import Arm, RankerConfig
from heft.models.rankers.bank import Bank
from heft.models.rankers.head import PROBATION, Head, LabelledSlate, Prediction
from tests.support.builders import SECOND, T0, impression

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


def plain_head(arms: tuple[Arm, ...] = ARMS, abstain_below: int = 0) -> Head:
    return Head(arms, Bank(arms, bits=10), seed=1, abstain_below=abstain_below)


def learned(many: int, abstain_below: int = 0) -> Head:
    head = plain_head(abstain_below=abstain_below)
    for vectors, labels in slates(many):
        head.observe(LabelledSlate(vectors, head.predict(vectors), labels, "search", measured=True))
    return head


def test_what_is_served_is_the_mean_of_the_calibrated_arms_by_the_weights_of_the_mixture() -> None:
    head = learned(6_000)  # past the probation of the mixture
    vectors, _ = slates(1, seed=2)[0]
    q, rank = head.models.predict(vectors)
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
    head = plain_head(abstain_below=50)
    measured = 0
    for vectors, labels in slates(200):
        shown = head.predict(vectors)
        assert bool(np.isnan(shown.p).all()) is (head.positives < 50)
        assert not np.isnan(shown.rank).any()
        measured += 4 * (head.positives >= 50)
        head.observe(LabelledSlate(vectors, shown, labels, "search", measured=True))
    assert 0 < head.metrics.samples == measured < 800


def test_metrics_calibration_and_mixture_see_what_was_shown_and_not_what_would_be_said_now() -> None:
    log = slates(400)
    then, later = plain_head(), plain_head()
    shown = [then.predict(vectors) for vectors, _ in log]  # before anything was learned: labels come a window late
    for (vectors, labels), as_shown in zip(log, shown, strict=True):
        then.observe(LabelledSlate(vectors, as_shown, labels, "search", measured=True))
        later.observe(LabelledSlate(vectors, later.predict(vectors), labels, "search", measured=True))
    assert all(np.array_equal(then.models.state()[name], later.models.state()[name]) for name in then.models.state())
    before, after = (head.metrics.report()["arms"]["uniform"]["logloss"] for head in (then, later))
    assert before == pytest.approx(np.log(2), rel=1e-6)  # all said one half
    assert after < 0.6
    assert then.hedge.weights == pytest.approx(plain_head().hedge.weights)
    assert (then.platt.a == 1.0).all()  # one half whatever the label: no scale to learn, only a shift
    assert (then.platt.b < -0.5).all()


IN_FLIGHT = 2_000  # clicks of the last day: whether an order follows is not known yet


def test_when_orders_become_twice_as_frequent_the_probability_served_rises_once_and_not_twice() -> None:
    head, chance = Head(ARMS[:1], Bank(ARMS[:1], 10), 1, 100, label="order"), np.random.default_rng(1)
    waiting: deque[tuple[Vectors, Prediction, NDArray[np.uint8]]] = deque()
    served = []
    for n in range(8_000):
        vectors = FEATURIZER.shown(impression(f"r{n}", at=n * SECOND, items=[str(chance.integers(6))]), [])
        shown = head.predict(vectors)
        served.append(float(shown.p[0, -1]))
        waiting.append((vectors, shown, (chance.random(1) < (0.1 if n < 4_000 else 0.2)).astype(np.uint8)))
        if len(waiting) > IN_FLIGHT:
            vectors, shown, labels = waiting.popleft()
            head.observe(LabelledSlate(vectors, shown, labels, "search", measured=True))
    assert np.mean(served[4_000:6_000]) == pytest.approx(0.1, abs=0.02)  # no label of the new rate has come
    assert 0.18 < max(np.mean(served[6_000:7_000]), np.mean(served[7_000:])) < 0.25


def test_order_logits_of_a_wrong_scale_and_shift_are_put_right_in_the_end_though_labels_are_late() -> None:
    head, chance = Head(ARMS[:1], Bank(ARMS[:1], 10), 1, label="order"), np.random.default_rng(1)
    truth = np.repeat([-2.5, -0.5], 100)
    wrong = (0.8 * truth + 0.5)[:, None].repeat(2, axis=1).astype(np.float32)
    vectors = FEATURIZER.shown(impression(items=[str(n) for n in range(200)]), [])
    waiting: deque[Prediction] = deque()
    for _ in range(2_000):
        waiting.append(msgspec.structs.replace(head.predict(vectors), raw=wrong))
        if len(waiting) > IN_FLIGHT // 200:
            labels = (chance.random(200) < 1 / (1 + np.exp(-truth))).astype(np.uint8)
            head.observe(LabelledSlate(vectors, waiting.popleft(), labels, "search", measured=True))
    assert head.platt.a[0] * wrong[:, 0] + head.platt.b[0] == pytest.approx(truth, abs=0.1)


def test_who_is_benched_and_when_and_why_is_told() -> None:
    head = learned(8_000)
    told = head.report()["mixture"]
    assert told["benched"] == ["quick"]
    decision = told["decisions"]["quick"]
    assert decision["out"]
    assert T0 < decision["at_ms"] < T0 + 8_000 * SECOND
    assert decision["mean"] > decision["half_width"] > 0
    assert decision["slates"] >= 500
    again = plain_head()
    again.restore(head.state())
    assert again.report()["mixture"] == told


# -------------------------------------------------------------------- with a teacher

VERSION, NEW = "abc@0", "def@0"
TAUGHT = (
    Arm("uniform", alpha=0.2),
    Arm("feature", alpha=0.2, weighting="feature"),
    Arm("offset", alpha=0.2, weighting="offset"),
    Arm("distill", alpha=0.2, weighting="distill"),
    Arm("rho_gate", alpha=0.2, weighting="rho_gate"),
    Arm("random", alpha=0.2, weighting="random"),
    Arm("stacked", alpha=0.05, weighting="stacked"),
)
READING = [1, 2, 6]


def head() -> Head:
    weightings = RankerConfig().weightings_of(TAUGHT)
    return Head(TAUGHT, Bank(TAUGHT, 10, [each.input for each in weightings]), 1, weightings=weightings)


class World:
    """Slates of six items, and a teacher that knows what no feature says: how the mood of each slate is."""

    def __init__(self, seed: int, knows: float = 1.0) -> None:
        self.chance, self.knows, self.many = np.random.default_rng(seed), knows, 0

    def slate(self) -> tuple[Vectors, NDArray[np.uint8], VersionScores]:
        self.many += 1
        items = self.chance.permutation(list("abcdef"))[:4].tolist()
        vectors = FEATURIZER.shown(impression(f"w{self.many}", at=self.many * SECOND, items=items), [])
        mood = self.chance.normal(0, 1.5, 4)
        base = np.array([0.5 if item == "a" else -1.5 for item in items])
        labels = (self.chance.random(4) < 1 / (1 + np.exp(-(base + mood)))).astype(np.uint8)
        z = self.knows * mood + (1 - self.knows) * self.chance.normal(0, 1.5, 4)
        return vectors, labels, VersionScores(VERSION, z, z, np.zeros(4, np.uint8))

    def teach(self, head: Head, slates: int, versions: tuple[str, ...] = (VERSION,), late: bool = False) -> None:
        for _ in range(slates):
            vectors, labels, scores = self.slate()
            if late:
                scores = VersionScores(VERSION, scores.click, scores.order, np.full(4, Missing.LATE, np.uint8))
            told = tuple(msgspec.structs.replace(scores, version=version) for version in versions)
            shown = head.predict(vectors, told)
            head.observe(LabelledSlate(vectors, shown, labels, "search", True, told, np.full(4, 50.0)))


def losses(head: Head) -> dict[str, float]:
    return {name: arm["logloss"] for name, arm in head.metrics.report()["arms"].items()}


def column(head: Head, k: int) -> NDArray[np.float64]:
    return np.asarray(head.models.state()["table"][:, :, k])


def test_without_a_score_every_arm_of_the_teacher_is_uniform_bit_for_bit() -> None:
    silent, plain = head(), plain_head((Arm("uniform", alpha=0.2),))
    World(1).teach(silent, 500, versions=())
    World(1).teach(plain, 500, versions=())
    for k in (0, 3, 4):
        assert np.array_equal(column(silent, k), column(plain, 0))
    vectors, _, _ = World(2).slate()
    shown, alone = silent.predict(vectors), plain.predict(vectors)
    for k in range(5):
        assert np.array_equal(shown.p[:, k], alone.p[:, 0])
        assert np.array_equal(shown.rank[:, k], alone.rank[:, 0])


def test_an_arm_whose_input_is_missing_learns_nothing_and_stands_in_with_uniform() -> None:
    taught, world = head(), World(1)
    world.teach(taught, 2_600)  # past the birth
    assert taught.teacher is not None
    assert taught.teacher.takeovers == 1
    before = [column(taught, k) for k in READING], taught.platt.a[READING].copy()
    world.teach(taught, 100, late=True)
    assert all(np.array_equal(column(taught, k)[: len(old)], old) for k, old in zip(READING, before[0], strict=True))
    assert np.array_equal(taught.platt.a[READING], before[1])
    vectors, _, scores = world.slate()
    half = VersionScores(VERSION, scores.click, scores.order, np.array([0, 0, Missing.ABSENT, Missing.LATE], np.uint8))
    shown = taught.predict(vectors, (half,))
    assert shown.raw[:, 6] != pytest.approx(shown.raw[:, 0])
    for k in READING:
        assert np.array_equal(shown.p[2:, k], shown.p[2:, 0])
        assert (shown.p[:2, k] != shown.p[:2, 0]).all()


def test_at_its_birth_the_arm_with_the_feature_is_uniform_and_the_one_with_the_offset_knows_nothing() -> None:
    taught, world = head(), World(1)
    while taught.teacher is None or taught.teacher.takeovers == 0:
        world.teach(taught, 1)
    vectors, _, scores = world.slate()
    shown = taught.predict(vectors, (scores,))
    assert shown.raw[:, 1] == pytest.approx(shown.raw[:, 0], abs=1e-6)
    assert np.array_equal(shown.raw[:, 6], shown.raw[:, 0])
    assert taught.platt.a[1] == taught.platt.a[0]
    inputs = taught.teacher.inputs(scores.click, scores.missing)
    assert shown.raw[:, 2] == pytest.approx(taught.teacher.unit * inputs, abs=1e-6)


def test_a_teacher_that_knows_more_is_worth_something_as_an_input_and_the_mixture_finds_that_out() -> None:
    taught, world = head(), World(1)
    world.teach(taught, 12_000)  # the birth and 20,000 samples of probation
    weights = taught.hedge.weights
    assert weights[READING].sum() > 0.99
    assert weights[5] == 0.0  # a placebo is never served
    before = taught.metrics.report()["arms"]
    assert before["feature"]["ne"] < before["uniform"]["ne"] - 0.05
    assert before["stacked"]["ne"] < before["uniform"]["ne"] - 0.05
    assert taught.hedge.sequence.below[[1, 6]].all()


def test_a_teacher_that_knows_nothing_costs_the_mixture_next_to_nothing() -> None:
    taught, world = head(), World(1, knows=0.0)
    world.teach(taught, 12_000)
    loss = losses(taught)
    assert loss["mixture"] <= loss["uniform"] * 1.001


def test_the_reasons_for_missing_scores_are_counted() -> None:
    taught, world = head(), World(1)
    world.teach(taught, 10, versions=())
    world.teach(taught, 10)  # not settled yet
    assert taught.importance is not None
    missing = taught.importance.missing
    assert missing[:, Missing.ABSENT].tolist() == [0, 40, 40, 40, 40, 0, 40]
    assert missing[:, Missing.OTHER_VERSION].tolist() == [0, 40, 40, 40, 40, 0, 40]


def test_a_new_version_that_says_the_like_is_calibrated_in_shadow_and_its_arms_go_on() -> None:
    taught, world = head(), World(1)
    world.teach(taught, 12_000)
    assert taught.teacher is not None
    world.teach(taught, 2_600, (VERSION, NEW))
    assert (taught.teacher.takeovers, taught.teacher.version) == (2, NEW)
    assert taught.hedge.weights[[1, 6]].sum() > 0.9  # nothing was lost while it was getting known, nor when it was
    assert taught.hedge.weights[2] == 0.0  # a fixed offset belongs to its version
    before = losses(taught)
    world.teach(taught, 2_000, (NEW,))
    samples = taught.metrics.samples
    gained = {
        name: losses(taught)[name] * samples - before[name] * (samples - 8_000) for name in ("uniform", "mixture")
    }
    assert gained["mixture"] < 0.95 * gained["uniform"]


def test_labels_of_what_was_shown_before_a_birth_are_no_part_of_the_probation_after_it() -> None:
    taught, world = head(), World(1)
    early = [world.slate() for _ in range(50)]
    shown = [taught.predict(vectors) for vectors, *_ in early]
    while taught.teacher is None or taught.teacher.takeovers == 0:
        world.teach(taught, 1)
    for (vectors, labels, scores), said in zip(early, shown, strict=True):
        taught.observe(LabelledSlate(vectors, said, labels, "search", True, (scores,), np.full(4, 50.0)))
    assert (taught.hedge._belief.probation_left[READING] == PROBATION["click"]).all()
    world.teach(taught, 1)
    assert (taught.hedge._belief.probation_left[READING] == PROBATION["click"] - 4).all()


def test_gates_that_one_version_opened_are_closed_for_the_next() -> None:
    taught, world = head(), World(1)
    world.teach(taught, 12_000)
    assert taught.importance is not None
    assert taught.importance.gate.open.any()
    world.knows = 0.0
    while taught.teacher is not None and taught.teacher.takeovers == 1:
        world.teach(taught, 1, (NEW,))
    assert not taught.importance.gate.open.any()
    world.teach(taught, 12_000, (NEW,))
    assert not taught.importance.gate.open.any()


def test_a_taught_head_cut_and_resumed_is_as_if_never_cut_bit_for_bit() -> None:
    straight, first, second = head(), head(), head()
    worlds = World(1), World(1)
    worlds[0].teach(straight, 2_700)
    worlds[1].teach(first, 2_450)
    second.restore(first.state())
    worlds[1].teach(second, 250)  # with the birth in it
    vectors, _, scores = worlds[0].slate()
    shown, again = (each.predict(vectors, (scores,)) for each in (straight, second))
    assert np.array_equal(shown.raw, again.raw)
    assert np.array_equal(shown.p, again.p)
    assert all(np.array_equal(column(straight, k), column(second, k)) for k in range(len(TAUGHT)))
