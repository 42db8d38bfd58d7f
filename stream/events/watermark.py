"""How far event time has come: a watermark for each input, and a frontier for the partition.

Take the newest event time of each of an input's last five users, and their median: the watermark is the largest that
this median has ever been, minus the allowed lateness. So two users with wrong clocks cannot move it. The frontier is
the smallest watermark of the active inputs, or the largest of all when none is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

USERS = 5
"""How many users the median is taken of."""

InputState: TypeAlias = tuple[int, int, bool, list[tuple[str, int]]]
"""The fields of an `Input`, its users in order of appearance."""


class Input(msgspec.Struct):
    """One partition of one topic, or one log file."""

    offset: int = 0
    """The next offset to take."""
    watermark: int = 0
    """Milliseconds since the epoch; 0 before the fifth user."""
    idle: bool = False
    awaited: bool = False
    """Active without having given anything since a silence ended."""
    users: dict[str, int] = {}
    """The last five users in order of appearance, with their newest time."""

    def see(self, user_id: str, at_ms: int, lateness_ms: int) -> bool:
        """Note the time of an event, in milliseconds; return whether the watermark rose."""
        users = self.users
        newest = users.pop(user_id, 0)
        users[user_id] = at_ms if at_ms > newest else newest
        if len(users) > USERS:
            del users[next(iter(users))]
        # An event that is not later than the median behind the watermark cannot raise it.
        if at_ms <= self.watermark + lateness_ms or len(users) < USERS:
            return False
        watermark = sorted(users.values())[USERS // 2] - lateness_ms
        if watermark <= self.watermark:
            return False
        self.watermark = watermark
        return True

    def state(self) -> InputState:
        """Return a copy of everything."""
        return self.offset, self.watermark, self.idle, list(self.users.items())

    @classmethod
    def of(cls, state: InputState, awaited: bool = False) -> Input:
        """Return the input from which ``state`` was taken."""
        offset, watermark, idle, users = state
        return cls(offset, watermark, idle, awaited, dict(users))


def frontier_of(inputs: Sequence[Input]) -> int:
    """Return the smallest watermark of the active inputs, or the largest of all when none is active."""
    active = [source.watermark for source in inputs if not source.idle]
    return min(active) if active else max(source.watermark for source in inputs)
