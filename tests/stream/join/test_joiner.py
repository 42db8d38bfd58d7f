"""The join against the words of docs/architecture.md and against a brute-force reference."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heft.models.records import Act, Clicked, Closed, Converted, Matured, Record, Shown
from heft.stream.events.messages import Mark
from heft.stream.events.wire import Action, Click, Event, Impression, Order, encode
from heft.stream.join.config import JoinConfig
from heft.stream.join.joiner import Joiner
from heft.stream.state import codec
from tests.support.builders import DAY, HOUR, MINUTE, SECOND, T0, action, click, crowd, impression, joined, order
from tests.support.places import GOLDEN

END = crowd(3 * DAY)


def kinds(records: Sequence[Record]) -> list[str]:
    return [type(record).__name__ for record in records]


def fates(joiner: Joiner, kind: str) -> dict[str, int]:
    return {fate: n for fate, n in joiner.fates[kind].items() if n}


def test_a_clicked_and_bought_item_gives_the_five_records_in_order() -> None:
    records, _ = joined([impression(), click(), order(value=7.5), *END])
    assert records[1:] == [
        Clicked(T0 + SECOND, "r1", "a"),
        Converted(T0 + MINUTE + 5 * SECOND, "o1", "a", "r1", 7.5),
        Closed(T0 + 10 * MINUTE, "r1"),
        Matured(T0 + SECOND + DAY + 5 * SECOND, "r1", "a", True, 7.5),
    ]
    assert isinstance(records[0], Shown)


def test_a_slate_without_a_click_closes_too() -> None:
    records, _ = joined([impression(), *END])
    assert kinds(records) == ["Shown", "Closed"]


def test_a_click_may_seem_older_than_its_impression_by_the_clock_skew() -> None:
    records, joiner = joined([click(at=-5 * SECOND), impression(), *END])
    assert records[1] == Clicked(T0, "r1", "a")
    assert fates(joiner, "click") == {"joined": 1}


def test_a_click_older_than_its_impression_by_more_is_an_orphan() -> None:
    _, joiner = joined([click(at=-5 * SECOND - 1), impression(), *END])
    assert fates(joiner, "click") == {"orphan": 1}


@pytest.mark.parametrize(
    ("at", "fate"), [(10 * MINUTE - 1, "joined"), (10 * MINUTE, "after_window"), (HOUR, "after_window")]
)
def test_the_click_window_includes_its_start_and_not_its_end(at: int, fate: str) -> None:
    _, joiner = joined([impression(), click(at=at), *END])
    assert fates(joiner, "click") == {fate: 1}


def test_no_click_extends_the_window() -> None:
    _, joiner = joined([impression(), click(at=9 * MINUTE), click(item="b", at=11 * MINUTE), *END])
    assert fates(joiner, "click") == {"joined": 1, "after_window": 1}


@pytest.mark.parametrize(
    ("at", "fate"), [(SECOND, "joined"), (SECOND - 1, "orphan"), (DAY + SECOND - 1, "joined"), (DAY + SECOND, "orphan")]
)
def test_an_order_counts_from_its_click_to_the_end_of_the_window(at: int, fate: str) -> None:
    _, joiner = joined([impression(), click(), order(at=at), *END])
    assert fates(joiner, "order") == {fate: 1}


def test_an_order_is_credited_to_the_last_click_and_ties_to_the_larger_request() -> None:
    slates = [impression("r1"), impression("r2", at=1), impression("r3", at=2)]
    clicks = [click("r1", at=2 * SECOND), click("r2", at=3 * SECOND), click("r3", at=3 * SECOND)]
    records, _ = joined([*slates, *clicks, order(at=3 * SECOND), *END])
    assert [record.request_id for record in records if isinstance(record, Converted)] == ["r3"]


def test_an_order_that_names_its_request_is_credited_there() -> None:
    slates = [impression("r1"), impression("r2", at=1)]
    records, _ = joined([*slates, click("r1"), click("r2"), order(request_id="r1"), *END])
    assert [record.request_id for record in records if isinstance(record, Converted)] == ["r1"]


def test_several_orders_of_a_click_sum_their_values() -> None:
    records, _ = joined([impression(), click(), order("o1", value=2), order("o2", value=3, at=HOUR), *END])
    assert records[-1] == Matured(T0 + SECOND + DAY + 5 * SECOND, "r1", "a", True, 5.0)


def test_what_comes_twice_is_learned_once() -> None:
    events = [impression(), impression(), click(), click(at=2 * SECOND), order(), order(), *END]
    records, joiner = joined(events)
    assert kinds(records) == ["Shown", "Clicked", "Converted", "Closed", "Matured"]
    for kind in ("impression", "click", "order"):
        assert fates(joiner, kind) == {"joined": 1, "duplicate": 1}


def test_an_event_id_seen_before_is_a_duplicate_and_actions_without_one_repeat() -> None:
    cart = action(at=-1, event_id="e1")
    records, joiner = joined([cart, cart, action(at=-1), action(at=-1), impression(), *END])
    assert fates(joiner, "action")["duplicate"] == 1
    assert isinstance(records[0], Shown)
    assert len(records[0].session) == 3


def test_what_a_bot_saw_or_clicked_is_learned_nowhere() -> None:
    events = [
        impression("r1", bot=True),
        click("r1"),
        impression("r2", user="u2"),
        click("r2", user="u2", bot=True),
        *END,
    ]
    records, joiner = joined(events)
    assert kinds(records) == ["Shown", "Closed"]
    assert fates(joiner, "impression") == {"bot": 1, "joined": 1}
    assert fates(joiner, "click") == {"bot": 2}


def test_a_click_of_an_item_that_was_not_shown_is_an_orphan() -> None:
    _, joiner = joined([impression(), click(item="z"), *END])
    assert fates(joiner, "click") == {"orphan": 1}


def test_a_session_holds_what_came_strictly_before_and_never_the_slates_own_clicks() -> None:
    events = [
        action("a", at=-31 * MINUTE, kind="too old"),
        action("b", at=-30 * MINUTE, kind="view"),
        impression("r0", at=-2 * MINUTE),
        click("r0", "c", at=-MINUTE),
        click("r1", "a", at=-SECOND),
        impression("r1"),
        action("c", at=0, kind="same time"),
        *END,
    ]
    records, _ = joined(events)
    shown = [record for record in records if isinstance(record, Shown) and record.slate.request_id == "r1"]
    assert shown[0].session == [Act("b", "view", T0 - 30 * MINUTE), Act("c", "click", T0 - MINUTE)]


def test_a_click_after_its_window_counts_in_the_session() -> None:
    events = [impression("r1"), click("r1", at=11 * MINUTE), impression("r2", at=12 * MINUTE), *END]
    records, _ = joined(events)
    assert [len(record.session) for record in records if isinstance(record, Shown)] == [0, 1]


def test_a_click_too_early_for_its_slate_does_not_stand_in_the_way_of_a_second() -> None:
    skew = JoinConfig().clock_skew_ms
    clicks = [click(at=0), click(at=skew // 2)]
    records, joiner = joined([*clicks, impression(at=skew + SECOND), impression("r2", at=2 * skew), *END])
    assert [record.key[:1] for record in records if isinstance(record, Clicked)] == [(T0 + skew + SECOND,)]
    assert fates(joiner, "click") == {"orphan": 1, "joined": 1}
    last = [record for record in records if isinstance(record, Shown)][-1]
    assert [act.kind for act in last.session] == ["click"], "it was one click, seen twice"


def test_a_session_the_shop_brings_is_used_without_its_future() -> None:
    acts = [Act("a", "view", T0 - 1), Act("b", "view", T0)]
    records, _ = joined([action(at=-SECOND), impression(session=acts), *END])
    assert isinstance(records[0], Shown)
    assert records[0].session == acts[:1]


def test_one_clock_a_year_ahead_closes_nobodys_window() -> None:
    wrong = [impression(f"w{n}", user="broken", at=365 * DAY + n) for n in range(20)]
    events = [*crowd(0), impression(), *wrong, *crowd(MINUTE), click(at=2 * MINUTE), *crowd(DAY)]
    records, joiner = joined(events)
    assert kinds(records) == ["Shown", "Clicked", "Closed"]
    assert fates(joiner, "impression") == {"joined": 1, "invalid": 20}
    assert joiner.rejected[0].offset == 6


def test_two_clocks_gone_wrong_move_nothing() -> None:
    joiner = Joiner(JoinConfig(), ["log"])
    for offset, event in enumerate([*crowd(0), action(user="b1", at=DAY), action(user="b2", at=DAY)]):
        joiner.push(0, offset, encode(event))
    assert joiner.watermarks == [T0 - 10 * SECOND]


def test_of_events_too_far_ahead_only_so_many_wait() -> None:
    config = JoinConfig(max_ahead_events=3)
    wrong = [action(user="broken", at=DAY + n) for n in range(5)]
    _, joiner = joined([*crowd(0), *wrong], config)
    assert fates(joiner, "action") == {"joined": 5, "invalid": 5}
    assert [rejected.offset for rejected in joiner.rejected] == [5, 6, 7, 8, 9]


def test_a_click_that_waits_for_its_slate_is_not_too_far_ahead_any_more() -> None:
    joiner = Joiner(JoinConfig(max_ahead_events=1), ["clicks", "impressions"])
    events: list[Event] = [*crowd(0), click("not yet", at=2 * HOUR)]
    for offset, event in enumerate(events):
        joiner.push(0, offset, encode(event))
    joiner.tick(0)
    for offset, event in enumerate(crowd(2 * HOUR + 11 * SECOND)):
        joiner.push(1, offset, encode(event))
    joiner.drain()
    joiner.push(0, len(events), encode(action(user="broken", at=3 * HOUR)))
    assert joiner.rejected == []
    assert joiner.pending == 7


def lines_run(run: Callable[[], object]) -> int:
    """How many lines of Python a call runs: its cost, the same on every machine."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("waiting", [0, 2_000])
def test_an_event_too_far_ahead_is_refused_without_a_look_at_all_that_waits(waiting: int) -> None:
    joiner = Joiner(JoinConfig(max_ahead_events=100), ["log"])
    broken = [action(user="broken", at=DAY + n) for n in range(101)]
    events = [*crowd(0), *(action(at=n) for n in range(waiting)), *broken]
    for offset, event in enumerate(events[:-1]):
        joiner.push(0, offset, encode(event))
    assert lines_run(lambda: joiner.push(0, len(events) - 1, encode(events[-1]))) < 200
    assert len(joiner.rejected) == 1
    assert joiner.pending == len(events) - 1


def test_an_event_older_than_the_watermark_is_late() -> None:
    _, joiner = joined([*crowd(MINUTE), impression(at=50 * SECOND - 1), impression("r2", at=50 * SECOND), *END])
    assert fates(joiner, "impression") == {"late": 1, "joined": 1}


def test_a_record_that_is_no_event_is_rejected_with_its_place_and_path() -> None:
    _, joiner = joined(
        [impression(), b'{"type":"click","request_id":"r1","user_id":"u","item_id":"a","at_ms":1600000000}']
    )
    rejected = joiner.rejected[0]
    assert (rejected.input, rejected.offset) == (0, 1)
    assert rejected.reason.endswith("- at `$.at_ms`")


def test_an_idle_input_holds_nobody_back_and_wakes_with_its_next_event() -> None:
    joiner = Joiner(JoinConfig(), ["impressions", "clicks"])
    for offset, event in enumerate(crowd(HOUR)):
        joiner.push(0, offset, encode(event))
    assert joiner.frontier == 0
    assert joiner.held(0)
    joiner.tick(1)
    assert joiner.frontier == T0 + HOUR - 10 * SECOND
    joiner.push(1, 0, encode(click(at=HOUR)))
    assert joiner.marks == [Mark(1, True, (5, 0)), Mark(1, False, (5, 0))]
    assert joiner.frontier == T0 + HOUR - 10 * SECOND


def test_when_all_are_idle_the_largest_watermark_counts() -> None:
    joiner = Joiner(JoinConfig(), ["impressions", "clicks"])
    for offset, event in enumerate(crowd(HOUR)):
        joiner.push(0, offset, encode(event))
    joiner.tick(0)
    joiner.tick(1)
    assert joiner.frontier == T0 + HOUR - 10 * SECOND


def test_slates_beyond_the_bound_go_oldest_first_and_are_counted() -> None:
    config = JoinConfig(max_open_slates=2)
    slates = [impression(f"r{n}", at=n) for n in range(4)]
    records, joiner = joined([*slates, click("r0"), click("r3"), *END], config)
    assert [record.request_id for record in records if isinstance(record, Closed)] == ["r2", "r3"]
    assert joiner.dropped == {"slates": 2}
    assert fates(joiner, "click") == {"evicted": 1, "joined": 1}


def test_waiting_clicks_beyond_the_bound_are_evicted() -> None:
    config = JoinConfig(max_waiting_clicks=2)
    early = [click("r1", item, at=n) for n, item in enumerate("abc")]
    _, joiner = joined([*early, impression(at=SECOND), *END], config)
    assert fates(joiner, "click") == {"evicted": 1, "joined": 2}


def test_a_slate_is_stamped_with_the_shard_of_its_market() -> None:
    config = JoinConfig(shard_by="context.market", shards=["ch", "de"])
    joiner = Joiner(config, ["log"])
    for offset, event in enumerate([impression(context={"market": "de"}), click(), *crowd(DAY)]):
        joiner.push(0, offset, encode(event))
    assert [shard for shard, _ in joiner.finish()] == [1, 1, 1]


def test_a_conversion_window_shorter_than_the_click_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least click_window"):
        JoinConfig(conversion_window_ms=600_000)


# -------------------------------------------------------------------- properties

SMALL = JoinConfig(
    click_window_ms=10_000, conversion_window_ms=30_000, clock_skew_ms=2_000, lateness_ms=1_000, session_ttl_ms=8_000
)
ats = st.integers(0, 60).map(lambda half: half * 500)
users = st.sampled_from(["u1", "u2"])
items = st.sampled_from("abc")
requests = st.sampled_from([f"r{n}" for n in range(6)])
impressions = st.builds(
    impression, requests, users, ats, st.sampled_from(["a", "ab", "abc"]), bot=st.sampled_from([False] * 9 + [True])
)
clicks = st.builds(click, requests, items, users, ats, bot=st.sampled_from([False] * 9 + [True]))
orders = st.builds(
    order,
    st.sampled_from([f"o{n}" for n in range(5)]),
    items,
    users,
    ats,
    st.just(1.0),
    request_id=st.none() | requests,
)
actions = st.builds(action, items, users, ats, event_id=st.none() | st.sampled_from(["e1", "e2"]))
streams = st.tuples(
    st.lists(impressions, max_size=8),
    st.lists(clicks, max_size=12),
    st.lists(orders, max_size=6),
    st.lists(actions, max_size=6),
).map(lambda lists: [sorted(events, key=lambda event: event.at_ms) for events in lists])


def reference(streams: list[list[Event]], config: JoinConfig) -> list[Record]:
    """The records of on-time streams from the words of the semantics, by looking at everything at once."""
    shown: dict[str, Impression] = {}
    bots: dict[str, Impression] = {}
    for event in sorted(streams[0], key=lambda event: event.at_ms):
        assert isinstance(event, Impression)
        if event.request_id not in shown and event.request_id not in bots:
            (bots if event.bot else shown)[event.request_id] = event
    first: dict[tuple[str, str], Click] = {}
    for tap in sorted(streams[1], key=lambda event: (event.at_ms, event.request_id, event.item_id)):  # type: ignore[union-attr]
        assert isinstance(tap, Click)
        slate = shown.get(tap.request_id)
        bot_slate = bots.get(tap.request_id)
        if tap.bot or (bot_slate and bot_slate.at_ms - config.clock_skew_ms <= tap.at_ms):
            continue
        known = slate is not None and tap.at_ms >= slate.at_ms - config.clock_skew_ms
        valid = known and slate is not None and tap.item_id in {item.item_id for item in slate.items}
        in_window = valid and slate is not None and tap.at_ms < slate.at_ms + config.click_window_ms
        pair = (tap.request_id, tap.item_id)
        if in_window and pair not in first:
            first[pair] = tap
    records: list[Record] = []
    due: dict[tuple[str, str], int] = {}
    for (request, item), tap in first.items():
        due[request, item] = max(tap.at_ms, shown[request].at_ms)
        records.append(Clicked(due[request, item], request, item))
    value: dict[tuple[str, str], list[float]] = defaultdict(list)
    bought: set[tuple[str, str]] = set()
    for bought_now in sorted(streams[2], key=lambda event: event.at_ms):
        assert isinstance(bought_now, Order)
        if (bought_now.order_id, bought_now.item_id) in bought:
            continue
        bought.add((bought_now.order_id, bought_now.item_id))
        decided = bought_now.at_ms + config.clock_skew_ms
        candidates = [
            (tap.at_ms, request)
            for (request, item), tap in first.items()
            if item == bought_now.item_id
            and due[request, item] <= decided
            and bought_now.at_ms < due[request, item] + config.conversion_window_ms
            and (
                bought_now.request_id == request
                if bought_now.request_id is not None
                else tap.user_id == bought_now.user_id and tap.at_ms <= bought_now.at_ms
            )
        ]
        if candidates:
            request = max(candidates)[1]
            value[request, bought_now.item_id].append(bought_now.value)
            records.append(Converted(decided, bought_now.order_id, bought_now.item_id, request, bought_now.value))
    for request, slate in shown.items():
        records.append(Closed(slate.at_ms + config.click_window_ms, request))
    for (request, item), at in due.items():
        values = value[request, item]
        maturity = at + config.conversion_window_ms + config.clock_skew_ms
        records.append(Matured(maturity, request, item, bool(values), sum(values)))
    return sorted(records, key=lambda record: record.key)


def feed(joiner: Joiner, streams: list[list[Event]], turns: Sequence[int]) -> list[Record]:
    """Read the streams in the given turns, each event as far as ``held`` allows, then to the end."""
    at = joiner.offsets
    records = []
    for turn in [*turns, *(n for n in range(len(streams)) for _ in streams[n])]:
        if at[turn] < len(streams[turn]):
            joiner.push(turn, at[turn], encode(streams[turn][at[turn]]))
            at[turn] += 1
            records += joiner.drain()
    return [record for _, record in records]


def ended(streams: list[list[Event]]) -> list[list[Event]]:
    return [[*stream, *crowd(200_000)] for stream in streams]


turns = st.lists(st.integers(0, 3), max_size=60)


@settings(max_examples=300)
@given(streams, turns)
def test_records_are_those_of_the_reference_whatever_the_interleaving(
    streams: list[list[Event]], turns: list[int]
) -> None:
    joiner = Joiner(SMALL, ["impressions", "clicks", "orders", "actions"])
    records = [record for record in feed(joiner, ended(streams), turns) if record.due_ms < T0 + 190_000]
    assert [record for record in records if not isinstance(record, Shown)] == reference(streams, SMALL)


@settings(max_examples=200)
@given(streams, turns)
def test_every_event_has_one_fate_or_is_pending_and_keys_only_rise(
    streams: list[list[Event]], turns: list[int]
) -> None:
    joiner = Joiner(SMALL, ["impressions", "clicks", "orders", "actions"])
    records = feed(joiner, ended(streams), turns)
    assert sum(sum(fates.values()) for fates in joiner.fates.values()) + joiner.pending == sum(joiner.offsets)
    keys = [record.key for record in records]
    assert keys == sorted(set(keys))


@settings(max_examples=200)
@given(
    streams, turns, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=4), turns, st.integers(0, 40)
)
def test_doing_the_same_again_from_any_cut_gives_the_same(
    streams: list[list[Event]], turns: list[int], ticks: list[tuple[int, int]], other: list[int], cut: int
) -> None:
    names = ["impressions", "clicks", "orders", "actions"]
    streams = ended(streams)
    live = Joiner(SMALL, names)
    records: list[tuple[int, Record]] = []
    saved, before = live.state(), 0
    at_once = codec.encode(saved)
    marks: list[Mark] = []
    order = [*turns, *(n for n in range(4) for _ in streams[n])]
    for step, turn in enumerate(order):
        if step == cut:
            saved, before = live.state(), len(records)
            at_once = codec.encode(saved)
            marks = []
            live.marks.clear()
        for at, input in ticks:
            if at == step:
                live.tick(input)
                records += live.drain()
        if live.offsets[turn] < len(streams[turn]):
            live.push(turn, live.offsets[turn], encode(streams[turn][live.offsets[turn]]))
            records += live.drain()
    marks = live.marks
    assert codec.encode(saved) == at_once, "what was taken has changed while the join went on"
    again = Joiner.restore(SMALL, names, codec.decode(at_once))
    assert codec.encode(again.state()) == at_once
    replayed = []
    for goal in [*(mark.offsets for mark in marks), tuple(live.offsets)]:
        wanted = [n for turn in [*other, 0, 1, 2, 3] for n in [turn]]
        while again.offsets != list(goal):
            for turn in wanted:
                if again.offsets[turn] < goal[turn]:
                    again.push(turn, again.offsets[turn], encode(streams[turn][again.offsets[turn]]))
                    replayed += again.drain()
        if len(again.marks) < len(marks):
            again.apply(marks[len(again.marks)])
            replayed += again.drain()
    assert replayed == records[before:]
    assert codec.encode(again.state()) == codec.encode(live.state())


@settings(max_examples=100)
@given(streams)
def test_sessions_never_hold_the_future_nor_the_slates_own_clicks(streams: list[list[Event]]) -> None:
    joiner = Joiner(SMALL, ["impressions", "clicks", "orders", "actions"])
    for record in feed(joiner, ended(streams), []):
        if isinstance(record, Shown):
            slate = record.slate
            assert all(slate.at_ms - 8_000 <= act.at_ms < slate.at_ms for act in record.session)
            possible = Counter(
                (event.item_id, event.at_ms)
                for stream in streams
                for event in stream
                if isinstance(event, Action) or (isinstance(event, Click) and event.request_id != slate.request_id)
            )
            assert not Counter((act.item_id, act.at_ms) for act in record.session) - possible


def test_equal_states_of_a_joiner_are_equal_bytes() -> None:
    _, joiner = joined([impression(), click(), order(), *crowd(MINUTE)])
    raw = codec.encode(joiner.state())
    state = codec.decode(raw)
    assert codec.encode(Joiner.restore(JoinConfig(), ["log"], state).state()) == raw
    with pytest.raises(ValueError, match="names 2"):
        Joiner.restore(JoinConfig(), ["a", "b"], state)
    assert state["frontier"] == joiner.frontier


STORED = GOLDEN / "joiner_v2.bin"
BEFORE = [
    *(impression(f"r{n}", f"u{n % 3}", at=n * MINUTE, event_id=f"e{n}") for n in range(1, 16)),
    impression("bot", "u9", at=15 * MINUTE, bot=True),
    *(click(f"r{n}", "a", f"u{n % 3}", at=n * MINUTE + 30 * SECOND) for n in range(1, 16, 2)),
    click("not yet", "b", "u1", at=16 * MINUTE - 3 * SECOND),
    order("o1", "a", "u1", at=12 * MINUTE, value=3.5),
    order("o2", "a", "u1", at=16 * MINUTE - 5 * SECOND),
    action("b", "u2", at=14 * MINUTE),
    *crowd(16 * MINUTE),
]
AFTER = [
    impression("not yet", "u1", at=16 * MINUTE),
    impression("again", "u3", at=16 * MINUTE, event_id="e15"),
    click("r15", "b", "u0", at=16 * MINUTE),
    order("o3", "a", "u1", at=17 * MINUTE),
    impression("last", "u2", at=17 * MINUTE),
    *END,
]


def test_a_joiner_saved_today_goes_on_tomorrow() -> None:
    """The file holds `state` after the events before, with slates, clicks, orders, acts and ids that still matter."""
    records, whole = joined([*BEFORE, *AFTER])
    raw = STORED.read_bytes()
    joiner = Joiner.restore(JoinConfig(), ["log"], codec.decode(raw))
    assert codec.encode(joiner.state()) == raw
    assert (joiner.open_slates, joiner.open_clicks, joiner.frontier) == (10, 8, T0 + 16 * MINUTE - 10 * SECOND)
    after = []
    for offset, event in enumerate(AFTER, start=len(BEFORE)):
        joiner.push(0, offset, encode(event))
        after += joiner.drain()
    after += joiner.finish()
    assert len(after) > 20
    assert [record for _, record in after] == records[-len(after) :]
    assert joiner.fates == whole.fates
