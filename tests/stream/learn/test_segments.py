"""What waits in segments: nothing that still waits is lost, nothing that does not is kept for long."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from heft.stream.learn.segments import MOST, Segments


class Thing:
    """Something that can be told to be still in memory."""


def test_what_waits_no_longer_goes_from_memory_though_no_snapshot_is_taken() -> None:
    segments: Segments[Thing] = Segments("slates")
    alive: weakref.WeakSet[Thing] = weakref.WeakSet()
    for _ in range(5 * MOST):
        thing = Thing()
        alive.add(thing)
        segments.remove(segments.add(thing))
    del thing
    gc.collect()
    assert 0 < len(alive) <= 2 * MOST


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_what_is_restored_is_what_waited(steps: list[tuple[int, bool]]) -> None:
    segments: Segments[int] = Segments("n")
    waiting: list[int] = []
    contents: dict[str, object] = {}
    for choice, adds in steps:
        if choice == 0:
            contents |= dict(segments.state()[1])
        elif adds or not waiting:
            waiting.append(segments.add(segments.next_number))
        else:
            segments.remove(waiting.pop(choice % len(waiting)))
    state, named = segments.state()
    assert all(contents.get(name, things) == things for name, things in named), "a segment never changes"
    again: Segments[int] = Segments("n")
    assert list(again.restore(state, dict(named))) == waiting
