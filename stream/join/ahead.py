"""Events too far ahead of their input to be believed yet, kept apart from all else that waits.

A broken clock may send any number of them, and only so many may wait: then the oldest is refused. Among all that waits
it would have to be looked for, at a cost that grows with the traffic; here it is found at once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable
from operator import attrgetter, itemgetter

from heft.stream.join.steps import Step

_AT = itemgetter(0)
_DUE = attrgetter("due_ms")


class Ahead:
    """What waits too far ahead in one input. An entry stays when its step has gone, and counts as one that waits.

    Parameters
    ----------
    entries
        ``(at_ms, serial)`` of those that wait, in order of arrival.
    steps
        The steps of those that have no fate yet.
    """

    def __init__(self, entries: Iterable[tuple[int, int]] = (), steps: Iterable[Step] = ()) -> None:
        self.steps = sorted(steps)
        """Without a fate, in the order of their keys."""
        of = {(step.event.at_ms, step.serial): step for step in self.steps if step.event is not None}
        self._arrived = OrderedDict([(entry, of.get(entry)) for entry in entries])
        self._by_time = sorted(self._arrived)

    def __len__(self) -> int:
        return len(self._arrived)

    def add(self, at_ms: int, step: Step) -> None:
        """Take an event."""
        entry = at_ms, step.serial
        self._arrived[entry] = step
        insort(self._by_time, entry)
        insort(self.steps, step)

    def believe(self, until_ms: int) -> list[Step]:
        """Let go of all up to a time; return the steps of those without a fate."""
        end = bisect_right(self._by_time, until_ms, key=_AT)
        steps = [self._arrived.pop(entry) for entry in self._by_time[:end]]
        del self._by_time[:end]
        return [step for step in steps if step is not None and self._leaves(step)]

    def refuse_oldest(self) -> Step | None:
        """Let go of what came first; return its step, None when it has a fate already."""
        entry, step = self._arrived.popitem(last=False)
        del self._by_time[bisect_left(self._by_time, entry)]
        return step if step is not None and self._leaves(step) else None

    def due(self, frontier_ms: int) -> list[Step]:
        """Return the steps due below the frontier: they have their fate now."""
        if not self.steps or self.steps[0].due_ms >= frontier_ms:
            return []
        end = bisect_left(self.steps, frontier_ms, key=_DUE)
        due = self.steps[:end]
        del self.steps[:end]
        return due

    def state(self) -> list[tuple[int, int]]:
        """Return ``(at_ms, serial)`` of those that wait, in order of arrival."""
        return list(self._arrived)

    def _leaves(self, step: Step) -> bool:
        """Take a step out; False when it has gone before."""
        place = bisect_left(self.steps, step)
        if place == len(self.steps) or self.steps[place] is not step:
            return False
        del self.steps[place]
        return True
