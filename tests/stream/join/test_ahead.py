"""What waits too far ahead: found at once, and the same as looking through everything would find."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from heft.stream.join.ahead import Ahead
from heft.stream.join.steps import Step
from tests.support.builders import T0, action

BOUND, SKEW = 3, 2


class Plain:
    """The same by the book: one list of what waits and one of all steps, looked through at every event."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int]] = []
        self.steps: list[Step] = []

    def add(self, at_ms: int, step: Step) -> None:
        self.entries.append((at_ms, step.serial))
        self.steps.append(step)

    def believe(self, until_ms: int) -> list[Step]:
        gone = {serial for at_ms, serial in self.entries if at_ms <= until_ms}
        self.entries = [entry for entry in self.entries if entry[1] not in gone]
        return self._without_fate(gone)

    def refuse_oldest(self) -> Step | None:
        found = self._without_fate({self.entries.pop(0)[1]})
        return found[0] if found else None

    def due(self, frontier_ms: int) -> list[Step]:
        return self._without_fate({step.serial for step in self.steps if step.due_ms < frontier_ms})

    def _without_fate(self, serials: set[int]) -> list[Step]:
        found = [step for step in self.steps if step.serial in serials]
        self.steps = [step for step in self.steps if step.serial not in serials]
        return found


def step(at: int, serial: int, late: bool) -> Step:
    return Step(T0 + at + SKEW * late, 0, "", "", 0, serial, action(at=at))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.booleans(), st.booleans()), max_size=60))
def test_it_finds_what_looking_through_everything_would_find(rounds: list[tuple[int, int, bool, bool]]) -> None:
    ahead, plain, now = Ahead(), Plain(), 0
    for serial, (wait, further, late, again) in enumerate(rounds):
        now += wait
        new = step(now + 5 + further, serial, late)
        ahead.add(T0 + now + 5 + further, new)
        plain.add(T0 + now + 5 + further, new)
        if len(ahead) > BOUND:
            assert sorted(ahead.believe(T0 + now + 5)) == sorted(plain.believe(T0 + now + 5))
        if len(ahead) > BOUND:
            assert ahead.refuse_oldest() == plain.refuse_oldest()
        if late:
            assert ahead.due(T0 + now + 8) == sorted(plain.due(T0 + now + 8))
        assert (ahead.state(), ahead.steps) == (plain.entries, sorted(plain.steps))
        if again:
            ahead = Ahead(ahead.state(), ahead.steps)
