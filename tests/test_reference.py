"""The teacher as one head sees it: which scores may be used, and what its logit is worth once it is calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.features import item_hash
from models.reference import SETTLED_POSITIVES, SETTLED_SAMPLES, Missing, Reference, Scores
from models.sample import ReferenceScore, data_ends_ms
from tests.builders import T0

VERSION = f"abc@{T0}"
AFTER = T0 + 1
ITEMS = np.array([item_hash(item) for item in "abcd"], np.uint64)
PLACES = np.arange(4, dtype=np.uint16)
SEEN = np.ones(4, np.bool_)


def score(item: str, logit: float = 1.0, version: str = VERSION, on_time: bool = True) -> ReferenceScore:
    return ReferenceScore(item, round(256 * logit), version, on_time, 512)


def scores(version: str = VERSION, logit: float = 1.0) -> Scores:
    return Scores.shown(ITEMS, [score(item, logit, version) for item in "abcd"])


def teach(
    reference: Reference,
    slates: int,
    slope: float = 1.0,
    shift: float = -1.0,
    version: str = VERSION,
    seed: int = 1,
) -> int:
    """Slates whose clicks follow sigmoid(slope z + shift - place); return how many births there were."""
    rng = np.random.default_rng(seed)
    births = 0
    for _ in range(slates):
        z = rng.normal(-1.0, 1.5, 4)
        said = Scores(version, z, z, np.full(4, Missing.PRESENT, np.uint8))
        labels = (rng.random(4) < 1 / (1 + np.exp(-(slope * z + shift - 0.5 * PLACES)))).astype(np.uint8)
        births += reference.learn(said, z, labels, SEEN, PLACES, "search", AFTER)
    return births


def test_a_score_stands_in_the_row_of_its_item_and_the_others_are_missing() -> None:
    known = Scores.shown(ITEMS, [score("c", 0.5), score("a", -2.0), score("stranger")])
    assert known.version == VERSION
    assert known.click.tolist()[::2] == [-2.0, 0.5]
    assert known.order.tolist()[::2] == [2.0, 2.0]
    assert np.isnan(known.click[1::2]).all()
    assert known.missing.tolist() == [Missing.PRESENT, Missing.ABSENT, Missing.PRESENT, Missing.ABSENT]


def test_what_was_not_there_in_time_is_late_and_what_never_came_is_absent() -> None:
    shown = Scores.shown(ITEMS, [score("a"), score("b", on_time=False)])
    closed = shown.with_later(ITEMS, [score("a", 9.0), score("c", 3.0)])
    assert shown.missing.tolist() == [Missing.PRESENT, Missing.ABSENT, Missing.ABSENT, Missing.ABSENT]
    assert closed.missing.tolist() == [Missing.PRESENT, Missing.ABSENT, Missing.LATE, Missing.ABSENT]
    assert closed.click[[0, 2]].tolist() == [1.0, 3.0]  # what was served stands


def test_a_slate_scored_by_two_versions_has_the_scores_of_the_last_one() -> None:
    both = Scores.shown(ITEMS, [score("a")]).with_later(ITEMS, [score("b", 2.0, "new@5")])
    assert both.version == "new@5"
    assert both.missing.tolist() == [Missing.OTHER_VERSION, Missing.LATE, Missing.ABSENT, Missing.ABSENT]
    assert np.isnan(both.click[0])


def test_a_version_says_when_its_data_ends() -> None:
    assert data_ends_ms(VERSION) == T0
    assert data_ends_ms("judged@0") == 0
    assert data_ends_ms("no time at all") == 0


def test_a_score_of_what_the_teacher_may_have_learned_is_neither_used_nor_learned_from() -> None:
    reference = Reference()
    teach(reference, SETTLED_SAMPLES)
    assert reference.version == VERSION
    assert reference.why(scores(), T0).tolist() == [Missing.IN_SAMPLE] * 4
    assert reference.why(scores(), AFTER).tolist() == [Missing.PRESENT] * 4
    before = reference.state()["current"][1]
    z = scores().click
    assert not reference.learn(scores(), z, np.ones(4, np.uint8), SEEN, PLACES, "search", T0)
    assert np.array_equal(reference.state()["current"][1], before)


def test_a_version_is_used_once_it_has_seen_enough_and_not_before() -> None:
    reference = Reference()
    assert teach(reference, SETTLED_SAMPLES // 4 - 1) == 0
    assert reference.why(scores(), AFTER).tolist() == [Missing.OTHER_VERSION] * 4
    assert np.isnan(reference.inputs(scores().click, reference.why(scores(), AFTER))).all()
    assert teach(reference, 1) == 1
    assert (reference.births, reference.version) == (1, VERSION)
    assert not np.isnan(reference.inputs(scores().click, reference.why(scores(), AFTER))).any()
    assert teach(reference, 100) == 0


def test_samples_without_clicks_settle_nothing() -> None:
    reference = Reference()
    assert teach(reference, SETTLED_SAMPLES, shift=-12.0) == 0
    assert reference.state()["next"][3][1] < SETTLED_POSITIVES


@pytest.mark.parametrize(("slope", "shift"), [(1.0, -1.0), (0.4, -2.0), (2.0, 0.5)])
def test_the_calibration_finds_slope_and_places_from_clicks(slope: float, shift: float) -> None:
    reference = Reference()
    teach(reference, 15_000, slope, shift)
    assert reference.slope == pytest.approx(slope, abs=0.06)
    for z in (-2.0, 0.0, 1.0):
        truth = 1 / (1 + np.exp(-(slope * z + shift - 0.5 * PLACES)))
        r = reference.probability(np.full(4, z), PLACES, "search")
        assert np.log(r / (1 - r)) == pytest.approx(np.log(truth / (1 - truth)), abs=0.2)


def test_a_teacher_that_knows_nothing_is_brought_to_the_rate_of_each_place() -> None:
    reference = Reference()
    teach(reference, 10_000, slope=0.0)
    assert abs(reference.slope) < 0.05
    assert abs(reference.offset) < 0.15
    low, high = (reference.probability(np.full(4, z), PLACES, "search") for z in (-3.0, 3.0))
    assert low == pytest.approx(high, abs=0.05)


def test_what_arms_take_in_is_centred_and_scaled_as_at_the_birth() -> None:
    reference = Reference()
    teach(reference, SETTLED_SAMPLES // 4)
    z = np.random.default_rng(9).normal(-1.0, 1.5, 10_000)
    inputs = reference.inputs(z, np.zeros(len(z), np.uint8))
    assert abs(inputs.mean()) < 0.05
    assert inputs.std() == pytest.approx(1.0, abs=0.05)
    frozen = reference.inputs(z[:4], np.zeros(4, np.uint8)), reference.offset
    teach(reference, 2_000, slope=0.2)
    assert np.array_equal(reference.inputs(z[:4], np.zeros(4, np.uint8)), frozen[0])
    assert reference.offset == frozen[1]


def test_a_new_version_is_calibrated_beside_the_old_one_and_then_takes_over() -> None:
    reference = Reference()
    teach(reference, SETTLED_SAMPLES // 4)
    new = f"def@{T0}"
    assert teach(reference, 100, version=new) == 0
    assert reference.version == VERSION
    assert reference.why(scores(new), AFTER).tolist() == [Missing.OTHER_VERSION] * 4
    assert reference.why(scores(), AFTER).tolist() == [Missing.PRESENT] * 4
    assert teach(reference, SETTLED_SAMPLES // 4, version=new) == 1
    assert (reference.births, reference.version) == (2, new)
    assert reference.why(scores(), AFTER).tolist() == [Missing.OTHER_VERSION] * 4


def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit() -> None:
    straight, first, second = Reference(), Reference(), Reference()
    for reference in (straight, first):
        teach(reference, 2_400)
    second.restore(first.state())
    teach(first, 5, seed=3)  # what was taken is a copy
    births = [teach(reference, 200, seed=2) for reference in (straight, second)]
    assert births == [1, 1]
    z, why = np.linspace(-3, 3, 4), np.zeros(4, np.uint8)
    assert np.array_equal(straight.inputs(z, why), second.inputs(z, why))
    assert np.array_equal(straight.probability(z, PLACES, "search"), second.probability(z, PLACES, "search"))
    flat: list[NDArray[np.float64]] = [reference.state()["current"][2] for reference in (straight, second)]
    assert np.array_equal(flat[0], flat[1])
