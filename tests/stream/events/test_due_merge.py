"""Partitions with a backlog are handed out together in event time, and one that has nothing more holds up nobody."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from heft.stream.events.due_merge import AHEAD_MS, PATIENCE_SECONDS, DueMerge


class Due(NamedTuple):
    due_ms: int


def dues(*seconds: int) -> list[Due]:
    return [Due(1_000 * each) for each in seconds]


def merge(**partitions: list[Due]) -> DueMerge[str, Due]:
    made = DueMerge[str, Due]()
    for name, records in partitions.items():
        made.keep(name, records, 0.0)
    return made


def test_the_partition_that_is_behind_goes_first_and_the_other_waits_for_it() -> None:
    merging = merge(ahead=dues(100, 110), behind=dues(0, 10, 50))
    ready = {"ahead", "behind"}
    assert merging.take(ready, [], [], 0.0) == ("behind", dues(0, 10))
    assert merging.take(ready, {"behind"}, [], 0.0) is None
    merging.done("behind", dues(0, 10), 0.0)
    assert merging.take(ready, [], [], 0.0) == ("behind", dues(50))
    merging.done("behind", dues(50), 0.0)
    assert merging.take(ready, [], {"behind"}, 0.0) is None
    assert merging.take(ready, [], [], 0.0) == ("ahead", dues(100, 110)), "nothing more is to come of the other"


def test_who_gives_nothing_for_long_is_not_waited_for() -> None:
    merging = merge(ahead=dues(100), behind=dues(0))
    assert merging.take({"behind"}, [], [], 0.0) == ("behind", dues(0))
    merging.done("behind", dues(0), 1.0)
    assert merging.take({"ahead"}, [], {"behind"}, 1.0) is None
    assert merging.take({"ahead"}, [], {"behind"}, 1.0 + PATIENCE_SECONDS) == ("ahead", dues(100))


def test_what_has_no_due_time_goes_with_what_came_before() -> None:
    merging = merge(one=[*dues(50), Due(0), *dues(60)], other=dues(40))
    assert merging.take({"one", "other"}, [], [], 0.0) == ("other", dues(40))
    merging.done("other", dues(40), 0.0)
    assert merging.take({"one", "other"}, [], [], 0.0) == ("one", [*dues(50), Due(0), *dues(60)])


backlogs = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(1, 1_000), min_size=1, max_size=30).map(sorted), min_size=1
)


@settings(max_examples=200)
@given(backlogs, st.data())
def test_everything_is_handed_out_and_nothing_far_ahead_of_what_is_to_come(
    backlog: dict[str, list[int]], data: st.DataObject
) -> None:
    merging, left = DueMerge[str, Due](), {name: dues(*seconds) for name, seconds in backlog.items()}
    for name, records in left.items():
        merging.keep(name, records[:1], 0.0)
        del records[:1]
    expected = {name: dues(*seconds) for name, seconds in backlog.items()}
    given: dict[str, list[Due]] = {name: [] for name in backlog}
    while any(left.values()) or any(map(merging.keeps, given)):
        more = {name for name, records in left.items() if records}
        taken = merging.take(set(given), [], more, 0.0)
        if taken is not None:
            name, records = taken
            given[name] += records
            merging.done(name, records, 0.0)
            to_come = [expected[each][len(given[each])] for each in given if len(given[each]) < len(expected[each])]
            assert records[-1].due_ms <= min(to_come, default=records[-1]).due_ms + AHEAD_MS
        arriving = [name for name in sorted(more) if not merging.keeps(name)]
        if arriving and (taken is None or data.draw(st.booleans())):
            name = data.draw(st.sampled_from(arriving))
            size = data.draw(st.integers(1, 10))
            merging.keep(name, left[name][:size], 0.0)
            del left[name][:size]
        assert taken is not None or arriving, "nobody goes on"
    assert given == expected
