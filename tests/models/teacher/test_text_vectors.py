"""The vectors of texts: bounded, kept while they are used, looked up from any thread."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heft.models.teacher.text_vectors import TextVectors, Vector


def vector(n: int) -> Vector:
    return np.full(3, n, np.float32)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200))
def test_what_is_remembered_is_what_was_kept_and_never_more_than_there_is_room_for(
    steps: list[tuple[bool, int]],
) -> None:
    memory, kept = TextVectors(10), set[int]()
    for keep, n in steps:
        if keep:
            memory.keep(str(n), vector(n))
            kept.add(n)
        elif (found := memory.get(str(n))) is not None:
            assert n in kept
            assert found[0] == n
        assert len(memory) <= 10


def test_a_text_in_use_stays_while_others_come_and_go() -> None:
    memory = TextVectors(10)
    memory.keep("hot", vector(-1))
    for n in range(100):
        memory.keep(str(n), vector(n))
        assert memory.get("hot") is not None
    assert memory.get("99") is not None
    assert memory.get("50") is None


def test_whoever_looks_a_text_up_finds_its_vector_or_none_while_another_thread_keeps_more() -> None:
    memory, wrong, done = TextVectors(40), list[int](), threading.Event()

    def look() -> None:
        while not done.is_set():
            for n in range(100):
                found = memory.get(str(n))
                if found is not None and found[0] != n:
                    wrong.append(n)

    thread = threading.Thread(target=look)
    thread.start()
    for n in range(20_000):
        memory.keep(str(n % 100), vector(n % 100))
    done.set()
    thread.join(10)
    assert not wrong
    assert not thread.is_alive()
