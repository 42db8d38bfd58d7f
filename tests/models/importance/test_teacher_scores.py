"""The teacher as one head sees it: which scores may be used, and what its logit is worth once it is calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from heft.models.features.vectors import item_hash
from heft.models.importance.teacher_scores import (
    SETTLED_POSITIVES,
    SETTLED_SAMPLES,
    VERSIONS,
    Missing,
    Takeover,
    TeacherCalibration,
    TeacherScores,
    VersionScores,
    scores_at_close,
    scores_on_time,
)
from heft.models.records import ReferenceScore, data_ends_ms
from tests.support.builders import T0

VERSION = f"abc@{T0}"
AFTER = T0 + 1
ITEMS = np.array([item_hash(item) for item in "abcd"], np.uint64)
PLACES = np.arange(4, dtype=np.uint16)
SEEN = np.ones(4, np.bool_)
SETTLED = SETTLED_SAMPLES["click"]
NEW = f"def@{T0}"


def score(item: str, logit: float = 1.0, version: str = VERSION, on_time: bool = True) -> ReferenceScore:
    return ReferenceScore(item, round(256 * logit), version, on_time, 512)


def scores(version: str = VERSION, logit: float = 1.0) -> VersionScores:
    return scores_on_time(ITEMS, [score(item, logit, version) for item in "abcd"])[0]


def teach(
    reference: TeacherCalibration,
    slates: int,
    slope: float = 1.0,
    shift: float = -1.0,
    versions: tuple[str, ...] = (VERSION,),
    seed: int = 1,
) -> list[Takeover]:
    """Slates whose clicks follow sigmoid(slope z + shift - place), z said by each version; return what took over."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(slates):
        z = rng.normal(-1.0, 1.5, 4)
        known = tuple(VersionScores(version, z, z, np.full(4, Missing.PRESENT, np.uint8)) for version in versions)
        labels = (rng.random(4) < 1 / (1 + np.exp(-(slope * z + shift - 0.5 * PLACES)))).astype(np.uint8)
        found.append(reference.learn(known, labels, SEEN, PLACES, "search", AFTER))
    return [takeover for takeover in found if takeover is not Takeover.NONE]


def versions_of(slate: TeacherScores) -> list[str]:
    return [each.version for each in slate]


def test_a_score_stands_in_the_row_of_its_item_and_the_others_are_missing() -> None:
    (known,) = scores_on_time(ITEMS, [score("c", 0.5), score("a", -2.0), score("stranger")])
    assert known.version == VERSION
    assert known.click.tolist()[::2] == [-2.0, 0.5]
    assert known.order.tolist()[::2] == [2.0, 2.0]
    assert np.isnan(known.click[1::2]).all()
    assert known.missing.tolist() == [Missing.PRESENT, Missing.ABSENT, Missing.PRESENT, Missing.ABSENT]


def test_what_was_not_there_in_time_is_late_and_what_never_came_is_absent() -> None:
    shown = scores_on_time(ITEMS, [score("a"), score("b", on_time=False)])
    closed = scores_at_close(shown, ITEMS, [score("a", 9.0), score("c", 3.0)])
    assert shown[0].missing.tolist() == [Missing.PRESENT, Missing.ABSENT, Missing.ABSENT, Missing.ABSENT]
    assert closed[0].missing.tolist() == [Missing.PRESENT, Missing.ABSENT, Missing.LATE, Missing.ABSENT]
    assert closed[0].click[[0, 2]].tolist() == [1.0, 3.0]  # what was served stands


def test_two_versions_in_one_slate_are_kept_apart() -> None:
    known = scores_at_close(scores_on_time(ITEMS, [score("a")]), ITEMS, [score("b", 2.0, NEW)])
    assert versions_of(known) == [VERSION, NEW]
    reference = TeacherCalibration()
    teach(reference, SETTLED)
    mine = reference.of(known)
    assert mine.version == VERSION
    assert mine.missing.tolist() == [Missing.PRESENT, Missing.OTHER_VERSION, Missing.ABSENT, Missing.ABSENT]
    teach(reference, SETTLED, versions=(NEW,))
    mine = reference.of(known)
    assert mine.version == NEW
    assert mine.missing.tolist() == [Missing.OTHER_VERSION, Missing.LATE, Missing.ABSENT, Missing.ABSENT]


def test_of_many_versions_in_one_slate_the_last_ones_are_kept() -> None:
    known = scores_on_time(ITEMS, [score("a", version=f"{n}@0") for n in range(VERSIONS + 2)])
    assert versions_of(known) == [f"{n}@0" for n in range(2, VERSIONS + 2)]


def test_a_version_says_when_its_data_ends() -> None:
    assert data_ends_ms(VERSION) == T0
    assert data_ends_ms("judged@0") == 0
    assert data_ends_ms("no time at all") == 0


def test_a_score_of_what_the_teacher_may_have_learned_is_neither_used_nor_learned_from() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED)
    assert reference.version == VERSION
    assert reference.why(scores(), T0).tolist() == [Missing.IN_SAMPLE] * 4
    assert reference.why(scores(), AFTER).tolist() == [Missing.PRESENT] * 4
    before = reference.state()["current"][1]
    assert not reference.learn((scores(),), np.ones(4, np.uint8), SEEN, PLACES, "search", T0)
    assert np.array_equal(reference.state()["current"][1], before)


def test_a_version_is_used_once_it_has_seen_enough_and_not_before() -> None:
    reference = TeacherCalibration()
    assert teach(reference, SETTLED // 4 - 1) == []
    assert reference.why(scores(), AFTER).tolist() == [Missing.OTHER_VERSION] * 4
    assert np.isnan(reference.inputs(scores().click, reference.why(scores(), AFTER))).all()
    assert teach(reference, 1) == [Takeover.RESET]
    assert (reference.takeovers, reference.version) == (1, VERSION)
    assert not np.isnan(reference.inputs(scores().click, reference.why(scores(), AFTER))).any()
    assert teach(reference, 100) == []


def test_samples_without_clicks_settle_nothing() -> None:
    reference = TeacherCalibration()
    assert teach(reference, SETTLED, shift=-12.0) == []
    assert reference.state()["coming"][0][3][1] < SETTLED_POSITIVES


@pytest.mark.parametrize(("slope", "shift"), [(1.0, -1.0), (0.4, -2.0), (2.0, 0.5)])
def test_the_calibration_finds_slope_and_places_from_clicks(slope: float, shift: float) -> None:
    reference = TeacherCalibration()
    teach(reference, 15_000, slope, shift)
    assert reference.slope == pytest.approx(slope, abs=0.06)
    for z in (-2.0, 0.0, 1.0):
        truth = 1 / (1 + np.exp(-(slope * z + shift - 0.5 * PLACES)))
        r = reference.probability(np.full(4, z), PLACES, "search")
        assert np.log(r / (1 - r)) == pytest.approx(np.log(truth / (1 - truth)), abs=0.2)


def test_a_teacher_that_knows_nothing_is_brought_to_the_rate_of_each_place() -> None:
    reference = TeacherCalibration()
    teach(reference, 10_000, slope=0.0)
    assert abs(reference.slope) < 0.05
    assert reference.unit < 0.15
    low, high = (reference.probability(np.full(4, z), PLACES, "search") for z in (-3.0, 3.0))
    assert low == pytest.approx(high, abs=0.05)


def test_what_arms_take_in_is_centred_and_scaled_as_at_the_birth() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED // 4)
    z = np.random.default_rng(9).normal(-1.0, 1.5, 10_000)
    inputs = reference.inputs(z, np.zeros(len(z), np.uint8))
    assert abs(inputs.mean()) < 0.05
    assert inputs.std() == pytest.approx(1.0, abs=0.05)
    frozen = reference.inputs(z[:4], np.zeros(4, np.uint8)), reference.unit
    teach(reference, 2_000, slope=0.2)
    assert np.array_equal(reference.inputs(z[:4], np.zeros(4, np.uint8)), frozen[0])
    assert reference.unit == frozen[1]


def test_a_new_version_is_calibrated_in_shadow_while_the_old_one_is_used_and_then_takes_over() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED // 4)
    assert teach(reference, SETTLED // 4 - 1, versions=(VERSION, NEW)) == []
    assert reference.version == VERSION
    assert reference.why(scores(NEW), AFTER).tolist() == [Missing.OTHER_VERSION] * 4
    assert reference.why(scores(), AFTER).tolist() == [Missing.PRESENT] * 4
    assert teach(reference, 1, versions=(VERSION, NEW)) == [Takeover.CONTINUE]
    assert (reference.takeovers, reference.version) == (2, NEW)
    assert reference.why(scores(), AFTER).tolist() == [Missing.OTHER_VERSION] * 4


def test_what_a_new_version_says_means_the_same_in_its_own_logits() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED // 4, slope=1.0)
    before = reference.unit * reference.inputs(np.array([0.0, 1.0]), np.zeros(2, np.uint8))
    assert teach(reference, SETTLED // 4, slope=0.5, versions=(NEW,)) == [Takeover.CONTINUE]
    after = reference.unit * reference.inputs(np.array([0.0, 1.0]), np.zeros(2, np.uint8))
    assert np.diff(before) == pytest.approx(1.0, abs=0.1)
    assert np.diff(after) == pytest.approx(0.5, abs=0.1)


def test_a_new_version_that_tells_much_less_or_much_more_lets_arms_begin_anew() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED // 4)
    assert teach(reference, SETTLED, slope=0.0, versions=(NEW,)) == [Takeover.RESET]
    assert teach(reference, SETTLED, versions=(f"best@{T0}",)) == [Takeover.RESET]


def test_two_versions_that_come_and_go_do_not_take_over_from_each_other_for_ever() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED // 4)
    taken = []
    for n in range(SETTLED // 2):
        taken += teach(reference, 1, versions=(NEW,), seed=n) + teach(reference, 1, seed=n)
    assert (taken, reference.version) == ([Takeover.CONTINUE], NEW)


def test_two_versions_from_the_beginning_settle_together_and_the_newer_one_stays() -> None:
    reference = TeacherCalibration()
    assert teach(reference, SETTLED, versions=(VERSION, NEW)) == [Takeover.RESET]
    assert reference.version == NEW


def test_a_version_that_comes_before_the_first_has_settled_does_not_undo_what_was_learned_of_it() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED // 4 - 100)
    assert teach(reference, 101, versions=(VERSION, NEW)) == [Takeover.RESET]
    assert reference.version == VERSION
    assert teach(reference, SETTLED // 4, versions=(VERSION, NEW)) == [Takeover.CONTINUE]
    assert reference.version == NEW


def test_of_versions_that_come_and_go_no_more_than_a_few_are_remembered() -> None:
    reference = TeacherCalibration()
    for n in range(50):
        teach(reference, 2, versions=(f"{n}@0",))
    assert len(reference.state()["coming"]) <= VERSIONS


def test_one_absurd_logit_bends_nothing() -> None:
    reference = TeacherCalibration()
    teach(reference, 12_000)
    before = reference.slope
    known = scores_on_time(ITEMS, [score("a", 1_000.0)])
    reference.learn(known, np.zeros(4, np.uint8), SEEN, PLACES, "search", AFTER)
    assert reference.slope == pytest.approx(before, rel=0.05)


def test_a_version_that_was_there_before_comes_back_when_the_one_after_it_is_gone() -> None:
    reference = TeacherCalibration()
    teach(reference, SETTLED // 4)
    teach(reference, SETTLED // 4, versions=(NEW,))
    assert teach(reference, SETTLED // 4) == [Takeover.CONTINUE]
    assert reference.version == VERSION


def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit() -> None:
    straight, first, second = TeacherCalibration(), TeacherCalibration(), TeacherCalibration()
    for reference in (straight, first):
        teach(reference, 2_400)
    second.restore(first.state())
    teach(first, 5, seed=3)  # what was taken is a copy
    taken = [teach(reference, 200, seed=2) for reference in (straight, second)]
    assert taken == [[Takeover.RESET], [Takeover.RESET]]
    z, why = np.linspace(-3, 3, 4), np.zeros(4, np.uint8)
    assert np.array_equal(straight.inputs(z, why), second.inputs(z, why))
    assert np.array_equal(straight.probability(z, PLACES, "search"), second.probability(z, PLACES, "search"))
    flat: list[NDArray[np.float64]] = [reference.state()["current"][2] for reference in (straight, second)]
    assert np.array_equal(flat[0], flat[1])
