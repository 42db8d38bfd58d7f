"""What can be set of the join: its windows, and the bounds of what waits."""

from __future__ import annotations

import msgspec

from heft.models.records import Slate


class JoinConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Windows and bounds of the join; all times in milliseconds, all windows include their start, not their end."""

    click_window_ms: int = 600_000
    """A click counts for a slate within this time after it was shown."""
    conversion_window_ms: int = 86_400_000
    """An order counts for a click within this time after it; at least click window + 2 clock skews."""
    clock_skew_ms: int = 5_000
    """How far the clocks of the producers may differ: a click may seem this much older than its impression."""
    lateness_ms: int = 10_000
    """How long the join waits for stragglers of a topic."""
    idle_after_ms: int = 500
    """Wall time without a record after which an exhausted topic no longer holds the others back."""
    max_ahead_ms: int = 3_600_000
    """Events further than this ahead of their topic's watermark come from a broken clock; 1,000 of them may wait."""
    align_ms: int = 60_000
    """A topic this far ahead of the slowest is not read on."""
    session_ttl_ms: int = 1_800_000
    """How far back the visitor's actions are attached to a slate."""
    session_acts: int = 200
    """At most this many actions of a visitor are kept; the oldest go first."""
    max_open_slates: int = 400_000
    """Slates whose click window runs, at most; the oldest goes first, and is never closed."""
    max_open_clicks: int = 1_000_000
    """Clicks whose conversion window runs, at most; the oldest goes first, and never matures."""
    max_sessions: int = 400_000
    """Visitors whose actions are kept, at most; the longest quiet goes first."""
    max_waiting_clicks: int = 100_000
    """Clicks that wait for an impression still to come, at most; the oldest is evicted."""
    max_remembered_ids: int = 400_000
    """Closed slates, orders and event ids are remembered for a conversion window, but no more of each than this."""
    max_ahead_events: int = 1_000
    """Events too far ahead that may wait in one input; beyond that the oldest is invalid."""
    shard_by: str = ""
    """Which field of an impression chooses the model: ``surface`` or ``context.NAME``; empty: one model."""
    shards: list[str] = msgspec.field(default_factory=list)
    """The values of ``shard_by``, in order of their partitions of `scored`; a value not listed goes to the first."""

    def __post_init__(self) -> None:
        least = self.click_window_ms + 2 * self.clock_skew_ms
        if self.conversion_window_ms < least:
            msg = (
                f"join.conversion_window is {self.conversion_window_ms} ms; "
                f"at least click_window + 2 clock_skew = {least} ms is needed"
            )
            raise ValueError(msg)
        if self.shard_by and self.shard_by != "surface" and not self.shard_by.startswith("context."):
            msg = f"join.shard_by is {self.shard_by!r}; expected 'surface' or 'context.NAME'"
            raise ValueError(msg)

    def shard_of(self, slate: Slate) -> int:
        """Return the number of the model that learns a slate."""
        if not self.shard_by:
            return 0
        by_surface = self.shard_by == "surface"
        value = str(slate.surface if by_surface else slate.context.get(self.shard_by.removeprefix("context.")))
        return self.shards.index(value) if value in self.shards else 0
