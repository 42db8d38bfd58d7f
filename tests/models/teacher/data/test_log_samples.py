"""From a log or judgements to examples: counts, the base rate of positions, thinning, and cuts in the order of time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from heft.models.records import Item
from heft.models.teacher.data.examples import CLICK, CONVERSION, HEADS, RELEVANCE, DataError, Examples, together
from heft.models.teacher.data.judgements import read_relevance, split_by_query
from heft.models.teacher.data.log_samples import Log, sample_key
from heft.models.teacher.template import Template
from heft.models.teacher.train import measure
from heft.stream.events.wire import Event, Impression
from tests.support.builders import DAY, HOUR, MINUTE, SECOND, T0, click, crowd, joined, order

TEMPLATE = Template("{query} | {item.text}")
CLICKS, CONVERSIONS, JUDGEMENTS = (HEADS.index(name) for name in (CLICK, CONVERSION, RELEVANCE))


def shown(request: str, at: int, texts: Sequence[str] = ("red shoe", "blue hat"), query: str = "shoe") -> Impression:
    items = [Item(item_id=f"i{n}", text=text) for n, text in enumerate(texts)]
    return Impression(request_id=request, user_id=f"u{request}", at_ms=T0 + at, items=items, query=query)


def clicked(request: str, at: int, item: str = "i0") -> Event:
    return click(request, item, f"u{request}", at + SECOND)


def log_of(*events: Event) -> Log:
    last = max(event.at_ms for event in events) - T0
    return Log(joined([*events, *crowd(last + 3 * DAY)])[0], TEMPLATE)


def hours(n: int, every: int = 3) -> list[Event]:
    """A slate an hour, the first item of every third clicked."""
    events: list[Event] = []
    for hour in range(n):
        events.append(shown(f"r{hour:04}", hour * HOUR))
        if hour % every == 0:
            events.append(clicked(f"r{hour:04}", hour * HOUR))
    return events


def row(examples: Examples, item: str) -> int:
    return [pair[1] for pair in examples.pairs].index(item)


def test_samples_with_the_same_texts_are_one_example_with_counts() -> None:
    log = log_of(*hours(9))
    examples = log.examples(log.base_rates())
    assert examples.pairs == [("shoe", "red shoe"), ("shoe", "blue hat")]
    assert examples.trials[:, CLICKS].tolist() == [9, 9]
    assert examples.positives[:, CLICKS].tolist() == [3, 0]
    assert examples.groups.tolist() == [0, 0]


def test_conversions_count_on_clicks_whose_window_has_ended() -> None:
    events = [
        shown("r1", 0),
        clicked("r1", 0),
        order("o1", "i0", "ur1", MINUTE),
        shown("r2", HOUR),
        clicked("r2", HOUR),
    ]
    late = [shown("r3", 3 * DAY), clicked("r3", 3 * DAY)]  # closed by the end of the log, not matured
    records, _ = joined([*events, *late, *crowd(3 * DAY + HOUR)])
    log = Log(records, TEMPLATE)
    examples = log.examples(log.base_rates())
    assert examples.positives[:, CLICKS].tolist() == [3, 0]
    assert examples.trials[:, CONVERSIONS].tolist() == [2, 0]
    assert examples.positives[:, CONVERSIONS].tolist() == [1, 0]


def test_slates_whose_window_runs_and_items_never_seen_are_left_out() -> None:
    unseen = Impression(
        request_id="r1",
        user_id="u",
        at_ms=T0,
        query="shoe",
        items=[Item("a", text="a", seen=False), Item("b", text="b")],
    )
    records, _ = joined([unseen, shown("r2", HOUR), *crowd(HOUR)])
    log = Log(records, TEMPLATE)
    assert log.examples(log_of(*hours(3)).base_rates()).pairs == [("shoe", "b")]


def test_a_label_belongs_to_the_part_in_which_it_became_known() -> None:
    events = hours(100)
    log = log_of(*events)
    split = log.split()
    assert [part.trials[:, CLICKS].sum() for part in split[:3]] == [160, 20, 20]
    # By hour 80 those of hours 0 to 54 have had their day, by hour 90 those up to hour 66.
    assert [part.trials[:, CONVERSIONS].sum() for part in split[:3]] == [19, 4, 11]
    assert split.begins_ms == T0
    assert split.ends_ms is not None
    assert T0 + 89 * HOUR <= split.ends_ms < T0 + 90 * HOUR + 10 * MINUTE


def test_the_training_data_ends_where_it_is_told_to_and_all_that_follows_measures() -> None:
    log = log_of(*hours(100))
    split = log.split(T0 + 50 * HOUR)
    assert split.ends_ms is not None
    assert split.ends_ms < T0 + 50 * HOUR
    assert [part.trials[:, CLICKS].sum() for part in split[:3]] == [88, 12, 100]
    assert log.split(T0 + 50 * HOUR, keep_negatives=0.5).test.digest() == split.test.digest()


def test_pre_training_reads_every_clicked_pair_and_nothing_of_later() -> None:
    events = [shown("r1", 0, ("red", "blue")), clicked("r1", 0), shown("r2", 9 * HOUR, ("later", "last")), *hours(3)]
    log = log_of(*events)
    assert ("shoe", "later") in log.texts()
    before = log.texts(T0 + 9 * HOUR)
    assert ("shoe", "later") not in before
    assert {("shoe", "red"), ("shoe", "blue")} <= set(before)
    assert set(log.texts(keep_negatives=1e-6)) == {("shoe", "red"), ("shoe", "red shoe")}


def test_nothing_after_the_cut_changes_what_comes_before_it() -> None:
    ends = [hours(100), [*hours(90), *[shown(f"x{n:04}", (90 + n) * HOUR, ("else", "other"), "q") for n in range(9)],
                         shown("x0009", 99 * HOUR, ("else", "other"), "q"), clicked("x0009", 99 * HOUR)]]  # fmt: skip
    one, two = (log_of(*events).split() for events in ends)
    assert one.train.digest() == two.train.digest()
    assert one.validation.digest() == two.validation.digest()
    assert one.rates == two.rates
    assert one.test.digest() != two.test.digest()


def test_the_offset_is_what_the_position_adds_and_nothing_at_the_average() -> None:
    events: list[Event] = []
    for hour in range(400):
        texts = ("red", "blue") if hour % 2 else ("blue", "red")  # each text at each place equally often
        events.append(shown(f"r{hour:04}", hour * HOUR, texts))
        if hour % 4 < 2:
            events.append(clicked(f"r{hour:04}", hour * HOUR))  # always the first place
    log = log_of(*events)
    examples = log.examples(log.base_rates())
    assert examples.offset == pytest.approx(0.0, abs=1e-12)
    top = log_of(*[shown(f"s{hour:04}", hour * HOUR, ("only",)) for hour in range(3)])
    best = top.examples(log.base_rates())
    rates = log.base_rates().surfaces[""]
    assert rates[0] > 0.4 > 0.1 > rates[1]
    assert best.offset[0] == pytest.approx(math.log(rates[0] / (1 - rates[0])) - math.log(0.25 / 0.75))


def test_positions_far_down_share_a_base_rate_and_unknown_surfaces_have_none() -> None:
    log = log_of(shown("r1", 0, [f"t{n}" for n in range(150)]), clicked("r1", 0), *hours(3))
    rates = log.base_rates()
    assert len(rates.surfaces[""]) == 100
    assert rates.rate("", 10_000) == rates.surfaces[""][99]
    assert rates.rate("elsewhere", 0) == rates.overall


def test_thinning_keeps_every_click_and_the_offset_says_what_was_left_out() -> None:
    log = log_of(*hours(600))
    whole, thinned = log.split().train, log.split(keep_negatives=0.25, seed=1).train
    assert thinned.positives.sum() == whole.positives.sum()
    left = (thinned.trials - thinned.positives)[:, CLICKS].sum() / (whole.trials - whole.positives)[:, CLICKS].sum()
    assert left == pytest.approx(0.25, abs=0.05)  # 800 of them: a standard error is .015
    prior = measure.fit_platt(np.zeros(len(thinned)), thinned.offset, thinned.trials[:, 0], thinned.positives[:, 0])[1]
    unthinned = measure.fit_platt(np.zeros(len(whole)), whole.offset, whole.trials[:, 0], whole.positives[:, 0])[1]
    assert prior == pytest.approx(unthinned, abs=0.2)
    assert log.split(keep_negatives=0.25, seed=1).train.digest() == thinned.digest()
    assert log.split(keep_negatives=0.25, seed=2).train.digest() != thinned.digest()
    assert log.split(keep_negatives=0.25).test.digest() == log.split().test.digest()


def test_a_log_without_clicks_is_refused_with_the_part_that_lacks_them() -> None:
    with pytest.raises(DataError, match="training part of the log has 0 clicks on 16 samples"):
        log_of(*[shown(f"r{hour}", hour * HOUR) for hour in range(10)]).split()
    with pytest.raises(DataError, match="no slate whose click window has ended"):
        Log([], TEMPLATE).split()


def relevance(folder: Path, *lines: str) -> Path:
    path = folder / "judged.csv"
    path.write_text("\n".join(["query,text,grade", *lines]) + "\n")
    return path


def test_the_range_of_the_grades_is_mapped_to_probabilities(tmp_path: Path) -> None:
    path = relevance(tmp_path, "shoe,red shoe,4", "shoe,blue hat,1", "hat,blue hat,3", "shoe, red  shoe,3")
    examples, low, high = read_relevance(path)
    assert (low, high) == (1, 4)
    assert examples.pairs == [("shoe", "red shoe"), ("shoe", "blue hat"), ("hat", "blue hat")]
    assert examples.trials[:, JUDGEMENTS].tolist() == [2, 1, 1]
    assert examples.positives[:, JUDGEMENTS] == pytest.approx([1 + 2 / 3, 0, 2 / 3])
    binary, _, _ = read_relevance(path, 3, 4)
    assert binary.positives[:, JUDGEMENTS].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [(["shoe,red shoe,good"], "line 2: the grade 'good' is no number"), (["a,b,2", "c,d,2"], "grades from 2 to 2")],
)
def test_judgements_that_cannot_be_used_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_relevance(relevance(tmp_path, *lines))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    path.write_text("query,title\na,b\n")
    with pytest.raises(DataError, match="no column grade, text"):
        read_relevance(path)


def test_judgements_are_cut_between_queries_never_within(tmp_path: Path) -> None:
    lines = [f"query {q},text {t},{t % 3}" for q in range(200) for t in range(3)]
    examples, _, _ = read_relevance(relevance(tmp_path, *lines))
    split = split_by_query(examples)
    queries = [{query for query, _ in part.pairs} for part in split[:3]]
    assert sum(map(len, queries)) == 200 == len(set.union(*queries))
    assert sum(len(part) for part in split[:3]) == 600
    assert len(queries[2]) == pytest.approx(40, abs=15)


def test_a_log_and_judgements_train_together_and_the_log_keeps_its_time(tmp_path: Path) -> None:
    lines = [f"query {q},text {t},{t % 3}" for q in range(60) for t in range(3)]
    judged = split_by_query(read_relevance(relevance(tmp_path, *lines))[0])
    log = log_of(*hours(100)).split()
    both = together(log, judged)
    assert len(both.train) == len(log.train) + len(judged.train)
    assert both.train.trials.sum(0) == pytest.approx(log.train.trials.sum(0) + judged.train.trials.sum(0))
    assert both.ends_ms == log.ends_ms
    assert row(both.train, "red shoe") == row(log.train, "red shoe")


def test_what_the_ranker_said_stands_in_the_place_of_what_a_position_says() -> None:
    records, _ = joined([*hours(40), *crowd(43 * DAY)])
    predicted = {
        sample_key(f"r{hour:04}", f"i{n}"): 0.1 + 0.2 * n + 0.001 * hour for hour in range(40) for n in range(2)
    }
    log = Log(records, TEMPLATE, predicted)
    rates = log.base_rates()
    examples = log.examples(rates)
    for n, text in enumerate(("red shoe", "blue hat")):
        mean = 0.1 + 0.2 * n + 0.001 * 19.5
        expected = math.log(mean / (1 - mean)) - math.log(rates.overall / (1 - rates.overall))
        assert examples.offset[row(examples, text)] == pytest.approx(expected)
    later = log.later(T0 - 1)
    assert later.ranker[later.heads == CLICKS] == pytest.approx(list(predicted.values()))
    assert np.isnan(Log(records, TEMPLATE).later(T0 - 1).ranker).all()


def test_what_the_ranker_said_before_it_knew_anything_teaches_nothing() -> None:
    records, _ = joined([*hours(100), *crowd(103 * DAY)])
    plain, beside = Log(records, TEMPLATE).split(), Log(records, TEMPLATE, {}).split()
    assert plain.train.trials[:, CLICKS].sum() == 160
    assert beside.train.trials[:, CLICKS].sum() < 0.92 * 160
    assert beside.test.digest() == plain.test.digest()


def test_a_teacher_comes_with_the_texts_of_its_log_and_none_of_later() -> None:
    events = [*hours(80), shown("x1", 80 * HOUR, ("red shoe", "rare")), shown("x2", 99 * HOUR, ("later", "last"), "q")]
    texts = log_of(*events, clicked("x2", 99 * HOUR)).split(T0 + 90 * HOUR).texts
    assert list(texts) == ["shoe", "red shoe", "blue hat", "rare"], "what was shown most often comes first"


def test_thinning_leaves_nothing_to_be_taught_where_the_ranker_is_right() -> None:
    rng = np.random.default_rng(5)
    chances = rng.choice([0.02, 0.4], 3_000)
    events: list[Event] = []
    for n, p in enumerate(chances):
        events.append(shown(f"r{n:04}", n * MINUTE, ("red shoe",)))
        if rng.random() < p:
            events.append(clicked(f"r{n:04}", n * MINUTE))
    records, _ = joined([*events, *crowd(5 * DAY)])
    predicted = {sample_key(f"r{n:04}", "i0"): float(p) for n, p in enumerate(chances)}
    for keep in (1.0, 0.05):
        split = Log(records, TEMPLATE, predicted).split(keep_negatives=keep)
        assert split.rates is not None
        train, overall = split.train, split.rates.overall
        needed = measure.fit_platt(np.zeros(1), train.offset, train.trials[:, 0], train.positives[:, 0])[1]
        assert needed == pytest.approx(math.log(overall / (1 - overall)), abs=0.2), "the base rate, and nothing else"
