"""What waits in segments: nothing that still waits is lost, nothing that does not is kept for long."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from heft.stream.learn.segments import MOST, Content, Segments
from heft.stream.state import codec


class Thing:
    """Something that can be told to be still in memory."""


def numbers() -> Segments[int]:
    return Segments("n", lambda number: str(number).encode(), int)


def never(_: object) -> bytes:
    raise AssertionError


def read_again(content: Content) -> Content:
    again: Content = codec.decode(codec.encode(content))
    return again


def test_what_waits_no_longer_goes_from_memory_though_no_snapshot_is_taken() -> None:
    segments: Segments[Thing] = Segments("slates", never, never)  # type: ignore[arg-type]
    alive: weakref.WeakSet[Thing] = weakref.WeakSet()
    for number in range(5 * MOST):
        thing = Thing()
        alive.add(thing)
        segments.remove(segments.add(str(number), thing))
    del thing
    gc.collect()
    assert 0 < len(alive) <= 2 * MOST


def test_things_go_from_memory_once_they_are_written_and_are_made_again_when_asked_for() -> None:
    segments: Segments[Thing] = Segments("slates", lambda _: b"a thing", lambda _: Thing())
    things = [Thing() for _ in range(3)]
    alive = weakref.WeakSet(things)
    for number, thing in enumerate(things):
        segments.add(str(number), thing)
    del things, thing
    assert len(alive) == 3
    for _, content in segments.state()[1]:
        content()
    gc.collect()
    assert not alive
    assert segments[1] is not segments[1]


def test_what_is_restored_is_not_unpacked_until_it_is_asked_for() -> None:
    segments, asked = numbers(), list[bytearray]()
    for number in range(3):
        segments.add(f"key {number}", number)
    state, contents = segments.state()

    def unpack(raw: bytearray) -> int:
        asked.append(raw)
        return int(raw)

    again = Segments("n", never, unpack)
    assert dict(again.restore(state, {name: content() for name, content in contents})) == {
        "key 0": 0, "key 1": 1, "key 2": 2,
    }  # fmt: skip
    again.state()[1][0][1]()  # nor when it is written again
    assert asked == []
    assert again[2] == 2
    assert asked == [b"2"]


def test_the_oldest_is_what_has_waited_longest() -> None:
    segments = numbers()
    for number in range(MOST + 2):
        segments.add(str(number), number)
    for number in range(MOST):
        assert segments.oldest() == str(number)
        segments.remove(number)
    segments.remove(MOST + 1)
    assert segments.oldest() == str(MOST)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_what_is_restored_is_what_waited(steps: list[tuple[int, bool]]) -> None:
    segments, waiting = numbers(), list[int]()
    written: dict[str, bytes] = {}
    for choice, adds in steps:
        if choice == 0:
            written |= {name: codec.encode(content()) for name, content in segments.state()[1]}
        elif adds or not waiting:
            waiting.append(segments.add(f"key {choice}", 10 * choice))
        else:
            segments.remove(waiting.pop(choice % len(waiting)))
    state, named = segments.state()
    contents = {name: content() for name, content in named}
    assert all(written.get(name, codec.encode(content)) == codec.encode(content) for name, content in contents.items())
    again = numbers()
    restored = list(again.restore(state, {name: read_again(content) for name, content in contents.items()}))
    assert [number for _, number in restored] == waiting
    assert [key for key, _ in restored] == [f"key {again[number] // 10}" for number in waiting]
    assert all(first < second for first, second in pairwise(waiting))
    assert [again[number] for number in waiting] == [segments[number] for number in waiting]
