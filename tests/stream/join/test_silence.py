"""After a silence everybody is waited for: a backlog is joined, whichever topic comes first."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from heft.models.records import Record
from heft.stream.events.messages import Mark
from heft.stream.events.wire import Event, encode
from heft.stream.join.config import JoinConfig
from heft.stream.join.joiner import Joiner
from heft.stream.state import codec
from tests.support.builders import HOUR, MINUTE, SECOND, T0, action, click, crowd, impression

NAMES = ["impressions", "clicks", "actions"]
CONFIG = JoinConfig(click_window_ms=30 * SECOND, align_ms=20 * SECOND)


def shop(start: int, seconds: int) -> list[list[Event]]:
    """Impressions, clicks and actions of so many seconds, each topic in order; actions are rare."""
    steps = range(start, start + seconds * SECOND, SECOND)
    return [
        [impression(f"r{at}", f"u{at // SECOND % 7}", at=at) for at in steps],
        [click(f"r{at}", "a", f"u{at // SECOND % 7}", at=at + 3 * SECOND) for at in steps],
        [action("a", f"u{at // SECOND % 7}", at=at) for at in steps[::5]],
    ]


def after_a_silence() -> Joiner:
    """A joiner that has read a minute, in order, and whose inputs have all run dry since."""
    joiner = Joiner(CONFIG, NAMES)
    everything = [(event.at_ms, n, event) for n, topic in enumerate(shop(0, 60)) for event in topic]
    for _, n, event in sorted(everything, key=lambda each: each[:2]):
        joiner.push(n, joiner.offsets[n], encode(event))
    joiner.drain()
    for n in range(len(NAMES)):
        joiner.tick(n)
    joiner.drain()
    return joiner


def read(joiner: Joiner, backlog: Sequence[Sequence[Event]], turns: Sequence[int]) -> list[Record]:
    """Read a backlog in these turns, then round and round; what is held is not read on, and who ends has run dry."""
    left = [list(topic) for topic in backlog]
    made = []
    for turn in [*turns, *(list(range(len(left))) * 500)]:
        if left[turn] and not joiner.held(turn):
            joiner.push(turn, joiner.offsets[turn], encode(left[turn].pop(0)))
        elif not left[turn]:
            joiner.tick(turn)
        made += joiner.drain()
    assert not any(left), "an input is held for ever"
    return [record for _, record in made]


def late(joiner: Joiner) -> int:
    return sum(fates["late"] for fates in joiner.fates.values())


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2), max_size=150))
@example([0] * 150)
@example([1] * 150)
@example([2] * 150)
def test_a_backlog_after_a_silence_is_joined_whichever_topic_comes_first(turns: list[int]) -> None:
    backlog = shop(MINUTE, 90)
    joiner, in_order = after_a_silence(), after_a_silence()
    made = read(joiner, backlog, turns)
    by_time = sorted((event.at_ms, n) for n, topic in enumerate(backlog) for event in topic)
    assert made == read(in_order, backlog, [n for _, n in by_time])
    assert late(joiner) == 0


def test_the_first_event_after_a_silence_makes_all_the_others_count_as_active() -> None:
    joiner = after_a_silence()
    offsets = tuple(joiner.offsets)
    joiner.marks.clear()
    joiner.push(0, offsets[0], encode(impression("new", at=HOUR)))
    assert joiner.marks == [Mark(n, False, offsets, awaited=True) for n in range(3)]
    assert joiner.awaited == [False, True, True]
    joiner.push(2, offsets[2], encode(action(at=HOUR)))
    assert joiner.awaited == [False, True, False]
    joiner.tick(1)
    assert joiner.awaited == [False, False, False]
    assert joiner.idle == [False, True, False]


def test_who_is_waited_for_is_waited_for_after_a_restart() -> None:
    joiner = after_a_silence()
    joiner.push(0, joiner.offsets[0], encode(impression("new", at=HOUR)))
    raw = codec.encode(joiner.state())
    again = Joiner.restore(CONFIG, NAMES, codec.decode(raw))
    assert again.awaited == [False, True, True]
    assert codec.encode(again.state()) == raw


def test_an_input_that_wakes_while_another_is_active_makes_nobody_wait() -> None:
    joiner = after_a_silence()
    joiner.push(0, joiner.offsets[0], encode(impression("new", at=HOUR)))
    joiner.tick(1)
    joiner.tick(2)
    joiner.push(2, joiner.offsets[2], encode(action(at=HOUR)))
    assert joiner.awaited == [False, False, False]
    assert joiner.idle == [False, True, False]


def test_a_restored_joiner_counts_nobody_as_idle_until_it_is_told() -> None:
    """Each topic went on while nobody read it, and the rare one was idle when that began."""
    backlog = shop(MINUTE, 90)
    joiner = Joiner(CONFIG, NAMES)
    for n, topic in enumerate(shop(0, 60)):
        for event in topic:
            joiner.push(n, joiner.offsets[n], encode(event))
    joiner.tick(2)
    again = Joiner.restore(CONFIG, NAMES, codec.decode(codec.encode(joiner.state())))
    again.wait_for_all()
    assert again.idle == [False, False, False]
    assert again.marks == [Mark(2, False, tuple(again.offsets))]
    read(again, backlog, [0] * 20 + [1] * 20)
    assert late(again) == 0


def test_topics_that_are_seldom_used_hold_nobody_back_for_longer_than_a_wait() -> None:
    """One topic every 2 s, one every 7 s, one never: somebody is nearly always idle, and somebody always wakes."""
    joiner = Joiner(JoinConfig(), NAMES)
    for offset, event in enumerate(crowd(0)):
        joiner.push(0, offset, encode(event))
    every = {0: 2 * SECOND, 1: 7 * SECOND}
    given = [0, 0, 0]
    waited_since: dict[int, int] = {}
    behind = []
    for now in range(0, 10 * MINUTE, 250):
        for n, gap in every.items():
            if now % gap == 0:
                joiner.push(n, joiner.offsets[n], encode(action("a", f"u{now // gap % 7}", at=now)))
                given[n] = now
        for n in range(3):
            since = waited_since.setdefault(n, now) if joiner.awaited[n] else given[n]
            wait = 10 * SECOND if joiner.awaited[n] else 500
            if not joiner.awaited[n]:
                waited_since.pop(n, None)
            if now - since >= wait:
                joiner.tick(n)
        behind.append(T0 + now - joiner.frontier)
    # lateness, a median of five users of the first topic, a wait, and the gap before it
    assert max(behind[400:]) <= (10 + 8 + 10 + 4) * SECOND
