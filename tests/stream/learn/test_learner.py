"""The learner: labels act when they could have been known, and every way to the same log gives the same model."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heft.models.features.config import FeatureConfig
from heft.models.rankers.arms import Arm, RankerConfig
from heft.models.records import Clicked, Closed, Matured, Record, ReferenceScore, Shown
from heft.stream.events.wire import Event
from heft.stream.join.config import JoinConfig
from heft.stream.learn.learner import LearnConfig, Learner, LearnerConfig
from heft.stream.state import codec
from tests.support.builders import DAY, MINUTE, SECOND, T0, click, crowd, impression, joined, order
from tests.support.logs import traffic
from tests.support.places import GOLDEN, ROOT

ARMS = (Arm("uniform", alpha=0.1), Arm("thinned", alpha=0.1, keep=0.5))
SMALL = LearnerConfig(
    learn=LearnConfig(serve_delay_ms=70_000),
    features=FeatureConfig(history_bits=8),
    ranker=RankerConfig(click_bits=12, conversion_bits=10, click_arms=ARMS, conversion_arms=ARMS[:1]),
)
BOUNDED = msgspec.structs.replace(SMALL, learn=LearnConfig(max_open_slates=32, max_clicked_items=10))
Taken = tuple[codec.State, list[tuple[str, Callable[[], codec.State]]]]


RECORDS, _ = joined([*traffic(150), *crowd(2 * DAY)])


def learned(records: Sequence[Record], config: LearnerConfig = SMALL) -> Learner:
    learner = Learner(config)
    for record in records:
        learner.apply(0, record)
    return learner


def written(taken: Taken) -> tuple[bytes, dict[str, bytes]]:
    state, segments = taken
    return codec.encode(state), {name: codec.encode(content()) for name, content in segments}


def restored(learner: Learner) -> Learner:
    raw, files = written(learner.state())
    segments = {name: codec.decode(content) for name, content in files.items()}
    return Learner.restore(learner.config, codec.decode(raw), segments)


def test_a_label_acts_once_the_serve_delay_has_passed_and_not_before() -> None:
    learner = Learner(SMALL)
    records, _ = joined([impression(), click(), *crowd(DAY)])
    closed = next(record for record in records if isinstance(record, Closed))
    for record in records:
        learner.apply(0, record)
    assert learner.samples == 0
    learner.apply(0, Clicked(closed.due_ms + 69_999, "other", "x"))
    assert learner.samples == 0
    learner.apply(0, Clicked(closed.due_ms + 70_000, "other", "x"))
    assert learner.samples == 3


def test_a_prediction_is_that_of_the_model_when_the_slate_was_shown() -> None:
    learner = learned(RECORDS)
    before = learner.click.predict(learner.featurizer.shown(impression("new", at=3 * DAY), []))
    records, _ = joined([impression("new", at=3 * DAY), click("new", at=3 * DAY + SECOND), *crowd(4 * DAY)])
    for record in records:
        learner.apply(0, record)
    shown = learner._open.get("new")
    assert shown is not None
    assert shown.click is not None
    assert shown.click.p.tolist() == before.p.tolist()


def test_it_learns_which_item_is_clicked() -> None:
    learner = learned(RECORDS)
    learner.flush()
    shown = learner.click.predict(learner.featurizer.shown(impression("new", at=3 * DAY, items="ab"), []))
    assert shown.p[0, -1] > 2 * shown.p[1, -1]


def test_everything_that_a_learner_skips_is_counted_from_0() -> None:
    named = set(re.findall(r'self\.counts\["(\w+)"\] \+= ', inspect.getsource(Learner)))
    assert dict(Learner(SMALL).counts) == dict.fromkeys(named, 0)


def test_a_slate_far_behind_the_newest_is_learned_and_not_measured() -> None:
    learner = learned([record for record in RECORDS if isinstance(record, Shown)])
    late, _ = joined([impression("late"), *crowd(DAY)])
    for record in late:
        learner.apply(1, record)
    assert learner.counts["shown_out_of_order"] == 1
    learner.flush()
    assert learner.samples == 3
    assert learner.click.metrics.samples == 0


def test_orders_are_learned_from_clicked_items_when_they_mature() -> None:
    learner = learned(RECORDS)
    learner.flush()
    matured = [record for record in RECORDS if isinstance(record, Matured)]
    assert matured
    assert learner.order.positives == sum(record.converted for record in matured)
    assert learner.open_clicks == 0


@pytest.mark.parametrize("config", [SMALL, BOUNDED], ids=["small", "bounded"])
@settings(max_examples=25)
@given(st.integers(0, len(RECORDS)), st.integers(0, len(RECORDS)))
def test_a_learner_restored_anywhere_goes_on_to_the_same_digest(config: LearnerConfig, first: int, second: int) -> None:
    cuts = sorted((first, second))
    learner = learned(RECORDS[: cuts[0]], config)
    learner = restored(learner)
    for record in RECORDS[cuts[0] : cuts[1]]:
        learner.apply(0, record)
    learner = restored(learner)
    for record in RECORDS[cuts[1] :]:
        learner.apply(0, record)
    assert learner.digest() == learned(RECORDS, config).digest()


def test_what_was_taken_does_not_change_while_the_learner_goes_on() -> None:
    learner, taken = Learner(SMALL), []
    for number, record in enumerate(RECORDS):
        learner.apply(0, record)
        if number % 40 == 0:
            state = learner.state()
            taken.append((state, written(state)))
    assert any(content["clicks"]["segments"] for (content, _), _ in taken)
    for later, at_once in taken:
        assert written(later) == at_once


def test_clicked_items_beyond_the_bound_go_oldest_first_and_are_counted() -> None:
    learner = learned(RECORDS, BOUNDED)
    assert learner.open_clicks <= 10
    assert learner.counts["dropped_clicks"] > 0
    assert learner.counts["dropped_slates"] > 0


def bought(slates: int, since: int) -> list[Event]:
    """A slate every three minutes, its first item clicked and bought."""
    events: list[Event] = []
    for n in range(slates):
        request, at = f"r{since}-{n:03d}", since + n * 3 * MINUTE
        events += [impression(request, at=at), click(request, at=at + SECOND)]
        events += [order(f"o{since}-{n}", at=at + MINUTE, request_id=request)]
    return events


@pytest.mark.parametrize(
    ("join", "learn"),
    [
        (JoinConfig(max_open_clicks=112), LearnConfig()),
        (JoinConfig(), LearnConfig(max_clicked_items=112)),
    ],
    ids=["by the join", "by the learner"],
)
def test_a_click_that_was_dropped_keeps_no_hour_waiting(join: JoinConfig, learn: LearnConfig) -> None:
    events = [*bought(105, 0), *bought(120, 3 * DAY), *crowd(5 * DAY)]  # nothing is said of orders before the 100th
    records, joiner = joined(events, join)
    learner = learned(records, msgspec.structs.replace(SMALL, learn=learn))
    learner.flush()
    assert joiner.dropped["clicks"] + learner.counts["dropped_clicks"] == 8
    whole = learned(joined(events)[0])
    whole.flush()
    product, of_all = learner.report()["conversion"]["product"], whole.report()["conversion"]["product"]
    assert 0 < product["orders"] < of_all["orders"]
    assert product["calibration"] == pytest.approx(of_all["calibration"], rel=0.2)


def test_a_click_that_waits_is_written_once_and_its_segment_goes_when_all_have_matured() -> None:
    learner, names = Learner(SMALL), Counter[str]()
    for number, record in enumerate(RECORDS):
        learner.apply(0, record)
        if number % 40 == 0:
            state, segments = learner.state()
            names.update(name for name, _ in segments if "clicks" in name)
            waiting = [flag for *_, flags in state["clicks"]["segments"] for flag in flags]
            assert sum(waiting) == learner.open_clicks
    starts = sorted(name.split("-")[-2:] for name in names)
    assert len(starts) > 3
    assert all(int(one[1]) + 1 == int(two[0]) for one, two in pairwise(starts)), (
        "no click in two segments, none in none"
    )
    learner.flush()
    assert learner.state()[0]["clicks"]["segments"] == []


def test_a_slate_is_written_in_one_segment_only() -> None:
    learner = Learner(SMALL)
    shown = [record for record in RECORDS if isinstance(record, Shown)]
    for record in shown[:10]:
        learner.apply(0, record)
    first = [name for name, _ in learner.state()[1]]
    for record in shown[10:15]:
        learner.apply(0, record)
    second = dict(learner.state()[1])
    assert set(first) < set(second)
    assert [len(content()["keys"]) for content in second.values()] == [10, 5]


def test_whether_metrics_are_looked_at_changes_nothing() -> None:
    looked, not_looked = Learner(SMALL), Learner(SMALL)
    for n, record in enumerate(RECORDS):
        looked.apply(0, record)
        not_looked.apply(0, record)
        if n % 50 == 0:
            looked.report()
            looked.click.metrics.window()
    assert looked.digest() == not_looked.digest()


def test_open_slates_beyond_the_bound_go_oldest_first_and_are_counted() -> None:
    config = LearnerConfig(learn=LearnConfig(max_open_slates=5), features=SMALL.features, ranker=SMALL.ranker)
    learner = learned([record for record in RECORDS if isinstance(record, Shown)][:8], config)
    assert learner.open_slates == 5
    assert learner.counts["dropped_slates"] == 3


def test_items_never_on_screen_are_counted_and_not_learned() -> None:
    slate = impression()
    items = [*slate.items[:2], type(slate.items[2])("c", seen=False)]
    records, _ = joined([type(slate)(request_id="r1", user_id="u1", at_ms=T0, items=items), *crowd(DAY)])
    learner = learned(records)
    learner.flush()
    assert (learner.samples, learner.counts["unseen"]) == (2, 1)


def test_another_configuration_is_another_lineage() -> None:
    other = LearnerConfig(features=SMALL.features, ranker=RankerConfig(click_bits=13))
    assert other.lineage != SMALL.lineage


@pytest.mark.parametrize("seed", [1, 2])
def test_uniform_does_not_depend_on_what_learns_beside_it(seed: int) -> None:
    records, _ = joined([*traffic(60, seed), *crowd(2 * DAY)])
    alone = LearnerConfig(
        features=SMALL.features,
        ranker=RankerConfig(click_bits=12, conversion_bits=10, click_arms=ARMS[:1], conversion_arms=ARMS[:1]),
    )
    one, two = learned(records, alone), learned(records)
    one.flush()
    two.flush()
    metrics = [learner.report()["click"]["arms"]["uniform"] for learner in (one, two)]
    assert metrics[0] == metrics[1]


AFTER_THE_WARM_UP = """
import sys
from numba.core.dispatcher import Dispatcher
from heft.stream.learn.learner import warm_up
from tests.stream.learn.test_learner import RECORDS, SMALL, learned

def loaded():
    ours = [vars(module) for name, module in sys.modules.items() if name.startswith("heft.models.")]
    return sum(len(each.signatures) for names in ours for each in names.values() if isinstance(each, Dispatcher))

warm_up(SMALL)
before = loaded()
learned(RECORDS).state()
print(before > 10, loaded() - before)
"""


def test_after_the_warm_up_learning_compiles_and_loads_nothing() -> None:
    fresh = subprocess.run([sys.executable, "-c", AFTER_THE_WARM_UP], cwd=ROOT, capture_output=True, text=True)
    assert fresh.stdout.split() == ["True", "0"], fresh.stdout + fresh.stderr


def test_a_learner_saved_today_goes_on_tomorrow() -> None:
    """The file holds `state` and its segments after the first 200 records, packed as a snapshot."""
    golden = GOLDEN / "learner_v2.heft"
    saved = codec.unpack(golden.read_bytes(), golden.name)
    learner = Learner.restore(SMALL, saved["state"], saved["segments"])
    assert (learner.samples, learner.open_slates, learner.open_clicks) == (232, 34, 24)
    shown = learner.click.predict(learner.featurizer.shown(impression("new", at=3 * DAY, items="abc"), []))
    assert shown.p == pytest.approx(
        np.array([[0.093350, 0.093837, 0.093350], [0.067147, 0.069974, 0.067147], [0.066413, 0.070323, 0.066413]]),
        abs=1e-6,
    )
    measured = learner.report()["click"]
    assert (measured["samples"], measured["positives"]) == (232, 24)
    assert measured["arms"]["uniform"]["logloss"] == pytest.approx(0.5388865, abs=1e-6)
    for record in RECORDS[200:]:
        learner.apply(0, record)
    learner.flush()
    whole = learned(RECORDS)
    whole.flush()
    assert learner.counts == whole.counts
    assert (learner.samples, learner.order.positives) == (whole.samples, whole.order.positives)


# -------------------------------------------------------------------- with a teacher

VERSION = f"abc@{T0}"
TAUGHT = msgspec.structs.replace(SMALL, ranker=SMALL.ranker.taught())


def scored(records: Sequence[Record], on_time: bool = True, version: str = VERSION) -> list[Record]:
    """Records whose slates bring a teacher's scores, in time or when they close."""
    rng = np.random.default_rng(5)
    out: list[Record] = []
    said: dict[str, list[ReferenceScore]] = {}
    for record in records:
        if isinstance(record, Shown):
            said[record.slate.request_id] = [
                ReferenceScore(item.item_id, int(rng.integers(-1500, 500)), version, on_time, -300)
                for item in record.slate.items
            ]
        if isinstance(record, Shown) and on_time:
            out.append(msgspec.structs.replace(record, scores=said[record.slate.request_id]))
        elif isinstance(record, Closed) and not on_time:
            out.append(msgspec.structs.replace(record, scores=said[record.request_id]))
        else:
            out.append(record)
    return out


@pytest.mark.parametrize("on_time", [True, False])
def test_a_taught_learner_cut_anywhere_and_resumed_is_the_same(on_time: bool) -> None:
    records = scored(RECORDS, on_time)
    straight = learned(records, TAUGHT)
    for cut in (1, 150, len(records) // 2, len(records) - 1):
        resumed = restored(learned(records[:cut], TAUGHT))
        for record in records[cut:]:
            resumed.apply(0, record)
        assert resumed.digest() == straight.digest()


def test_a_learner_whose_teacher_is_in_use_is_the_same_learned_again_or_cut_and_resumed() -> None:
    plain, _ = joined([*traffic(4_000, seed=3), *crowd(3 * DAY)])
    cuts = [len(plain) * n // 20 for n in (0, 10, 15, 19, 20)]
    other = f"other@{T0}"  # in shadow from the second cut on
    records = [*scored(plain[: cuts[2]]), *scored(plain[cuts[2] :], version=other)]
    straight, resumed = learned(records, TAUGHT), Learner(TAUGHT)
    for takeovers, (start, end) in zip((0, 0, 1, 1), pairwise(cuts), strict=True):
        assert resumed.click.teacher is not None
        assert resumed.click.teacher.takeovers == takeovers
        resumed = restored(resumed)
        for record in records[start:end]:
            resumed.apply(0, record)
    assert resumed.digest() == straight.digest()
    assert learned(records, TAUGHT).digest() == straight.digest()
    assert straight.click.teacher is not None
    assert straight.click.teacher.version == VERSION


def test_scores_change_nothing_of_uniform_and_reach_the_arms_that_read_them() -> None:
    plain, taught = learned(RECORDS), learned(scored(RECORDS), TAUGHT)
    for head, other in ((plain.click, taught.click), (plain.order, taught.order)):
        assert np.array_equal(head.models.state()["table"][:, :, 0], other.models.state()["table"][:, :, 0])
    missing = taught.click.missing()
    assert set(missing) == {arm.name for arm in TAUGHT.ranker.click_arms} & {
        "feature", "stacked", "offset", "distill", "distill_gate", "rho", "rho_gate", "denoise", "exp_score",
    }  # fmt: skip
    # The teacher's data ends with the first slate, and no version is settled by so few.
    counted = dict.fromkeys(("in_sample", "other_version"), 0) | missing["feature"]
    assert counted == {"in_sample": 4, "other_version": taught.samples - 4}


def test_scores_that_come_when_a_slate_closes_are_too_late_for_arms_that_read_them() -> None:
    early, late = learned(scored(RECORDS), TAUGHT), learned(scored(RECORDS, on_time=False), TAUGHT)
    none = learned(RECORDS, TAUGHT)
    assert early.digest() != none.digest()  # the calibration has learned from them
    assert late.digest() != none.digest()
    state, reference = late.click.state()["teacher"], early.click.state()["teacher"]
    assert np.array_equal(state["coming"][0][1], reference["coming"][0][1])


def test_labels_that_act_in_steps_leave_the_model_of_those_that_act_at_once() -> None:
    learner, steps = Learner(SMALL), Counter[str]()
    for record in RECORDS:
        while True:
            before = learner.samples
            more = learner.catch_up(record.due_ms, 2)
            steps["slates"] = max(steps["slates"], (learner.samples - before) // 3)
            if not more:
                break
            steps["more"] += 1
        learner.apply(0, record)
    assert learner.digest() == learned(RECORDS).digest()
    assert steps["more"] > 0, "some records let more than two labels act"
    assert steps["slates"] <= 2
