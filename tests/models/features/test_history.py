"""The tables of the past: against dictionaries, full, cut and resumed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.models.features.history import ITEM, QUERY_ITEM, USER, USER_ITEM, History, decay, find, relation_key
from heft.models.records import MIN_AT_MS

DAY = 86_400_000
T0 = 1_600_000_000_000


def counts_of(history: History, relation: int, a: int, b: int, at_ms: int) -> tuple[float, float, float]:
    """Clicks, shows and expected clicks of a pair of hashes as of ``at_ms``; zeros if unknown."""
    place = find(history.keys[relation], np.uint64(relation_key(relation, np.uint64(a), np.uint64(b))))
    if place < 0:
        return 0.0, 0.0, 0.0
    entry = history.entries[relation, place]
    left = decay(at_ms - int(entry["touched_ms"]), float(history.totals["half_life_ms"][0]))
    clicks, shows, expected = (float(entry[name] * left) for name in ("clicks", "shows", "expected"))
    return clicks, shows, expected


def close(
    history: History,
    items: list[int],
    labels: list[int],
    at: int = T0,
    user: int = 7,
    query: int = 8,
    seen: list[bool] | None = None,
) -> None:
    history.closed(
        at,
        np.uint64(user),
        np.uint64(query),
        np.array(items, np.uint64),
        np.arange(len(items), dtype=np.uint16),
        np.ones(len(items), np.bool_) if seen is None else np.array(seen),
        np.array(labels, np.uint8),
    )


def test_clicks_and_impressions_move_together_and_for_every_relation() -> None:
    history = History(bits=8, half_life_ms=DAY)
    close(history, [1, 2], [1, 0])
    close(history, [1, 2], [0, 0])
    assert counts_of(history, ITEM, 1, 0, T0)[:2] == (1.0, 2.0)
    assert counts_of(history, ITEM, 2, 0, T0)[:2] == (0.0, 2.0)
    assert counts_of(history, USER, 7, 0, T0)[:2] == (1.0, 4.0)
    assert counts_of(history, QUERY_ITEM, 8, 1, T0)[:2] == (1.0, 2.0)
    assert counts_of(history, USER_ITEM, 7, 2, T0)[:2] == (0.0, 2.0)
    assert counts_of(history, ITEM, 3, 0, T0) == (0.0, 0.0, 0.0)


def test_counts_halve_in_a_half_life() -> None:
    history = History(bits=8, half_life_ms=DAY)
    close(history, [1], [1])
    assert counts_of(history, ITEM, 1, 0, T0 + DAY)[:2] == pytest.approx((0.5, 0.5))
    close(history, [1], [1], at=T0 + 2 * DAY)
    assert counts_of(history, ITEM, 1, 0, T0 + 3 * DAY)[0] == pytest.approx(1.25 / 2)


def test_time_that_runs_backwards_never_makes_a_count_grow() -> None:
    history = History(bits=8, half_life_ms=DAY)
    close(history, [1], [1])
    assert counts_of(history, ITEM, 1, 0, T0 - DAY)[0] == 1.0
    close(history, [1], [1], at=T0 - DAY)
    assert counts_of(history, ITEM, 1, 0, T0)[0] == 2.0


def test_what_was_not_on_screen_is_left_out_unless_it_was_clicked() -> None:
    history = History(bits=8, half_life_ms=DAY)
    close(history, [1, 2, 3], [0, 0, 1], seen=[True, False, False])
    assert counts_of(history, ITEM, 1, 0, T0)[1] == 1.0
    assert counts_of(history, ITEM, 2, 0, T0)[1] == 0.0
    assert counts_of(history, ITEM, 3, 0, T0)[:2] == (1.0, 1.0)


def test_a_click_counts_against_what_its_position_promised() -> None:
    history = History(bits=10, half_life_ms=1000 * DAY)
    for _ in range(300):
        close(history, [1, 2], [1, 0])  # the first place is always clicked, the second never
    for _ in range(50):
        close(history, [3, 4], [1, 0])
        close(history, [5, 6], [0, 1])
    top, bottom = counts_of(history, ITEM, 3, 0, T0), counts_of(history, ITEM, 6, 0, T0)
    assert top[:2] == bottom[:2] == (50.0, 50.0)
    assert top[2] > 3 * bottom[2]


def test_a_full_set_drops_what_was_quiet_longest_and_counts_it() -> None:
    history = History(bits=3, half_life_ms=DAY)  # one set of eight places in each relation
    for item in range(1, 9):
        close(history, [item], [0], at=T0 + item, user=0, query=0)
    assert history.evicted == 0
    close(history, [1], [0], at=T0 + 20, user=0, query=0)
    close(history, [9], [0], at=T0 + 21, user=0, query=0)
    assert history.evicted == 3  # once in each relation that has the item in its key
    assert counts_of(history, ITEM, 2, 0, T0)[1] == 0.0
    assert all(counts_of(history, ITEM, item, 0, T0)[1] > 0 for item in (1, 3, 9))


slates = st.lists(
    st.tuples(st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True), st.integers(0, 5), st.integers(0, 3)),
    max_size=40,
)


@given(slates)
def test_the_tables_agree_with_dictionaries(events: list[tuple[list[int], int, int]]) -> None:
    history = History(bits=12, half_life_ms=DAY)
    expected: dict[int, list[tuple[int, int]]] = {}
    at = T0
    for items, clicked, hours in events:
        at += hours * DAY // 24
        labels = [int(row == clicked) for row in range(len(items))]
        close(history, items, labels, at=at)
        for item, label in zip(items, labels, strict=True):
            expected.setdefault(item, []).append((at, label))
    for item, shown in expected.items():
        left = [2.0 ** (-(at - t) / DAY) for t, _ in shown]
        clicks = sum(each * label for each, (_, label) in zip(left, shown, strict=True))
        assert counts_of(history, ITEM, item, 0, at)[:2] == pytest.approx((clicks, sum(left)), rel=1e-9)


@given(slates, st.integers(0, 40))
def test_cut_and_resume_equals_straight_on(events: list[tuple[list[int], int, int]], cut: int) -> None:
    def go(history: History, part: list[tuple[list[int], int, int]]) -> None:
        for items, clicked, hours in part:
            close(history, items, [int(row == clicked) for row in range(len(items))], at=T0 + hours, user=items[0])

    straight, first, resumed = (History(bits=4, half_life_ms=DAY) for _ in range(3))
    go(straight, events)
    go(first, events[:cut])
    resumed.restore(first.state())
    go(resumed, events[cut:])
    for name, value in straight.state().items():
        assert np.array_equal(value, resumed.state()[name]), name


def test_a_state_is_a_copy() -> None:
    history = History(bits=8, half_life_ms=DAY)
    close(history, [1], [1])
    state = history.state()
    before = state["counts"].copy()
    close(history, [1], [1])
    assert np.array_equal(state["counts"], before)


def test_clicks_are_remembered_by_their_time_and_move_no_rate() -> None:
    history = History(bits=8, half_life_ms=DAY)
    history.clicked(MIN_AT_MS + 5, np.uint64(7), np.uint64(8), np.uint64(1))
    history.clicked(MIN_AT_MS + 3, np.uint64(7), np.uint64(8), np.uint64(1))
    assert int(history.entries["clicked_ms"].max()) == MIN_AT_MS + 5
    assert counts_of(history, ITEM, 1, 0, MIN_AT_MS + 5)[:2] == (0.0, 0.0)
