"""What is kept of a record that is no event."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from heft.stream.events.wire import encode
from heft.stream.join.steps import NTH_BITS, Step

REJECTED_BYTES = 64 * 1024
"""So much of the raw record is kept."""


class Rejected(NamedTuple):
    """A record that is no event: where it came from, its first 64 KB, its length and hash, and why."""

    input: int
    offset: int
    raw: bytes
    length: int
    blake2b: str
    reason: str

    @classmethod
    def of(cls, input: int, offset: int, raw: bytes, reason: str) -> Rejected:
        """Keep of a record what the topic `rejected` carries."""
        return cls(input, offset, raw[:REJECTED_BYTES], len(raw), blake2b(raw, digest_size=16).hexdigest(), reason)

    @classmethod
    def ahead(cls, step: Step, max_ahead_ms: int) -> Rejected:
        """Keep an event that was too far ahead of its topic; its raw record is gone by now, the event says the same."""
        assert step.event is not None
        reason = f"Expected a time within {max_ahead_ms} ms of the topic's, got {step.event.at_ms} - at `$.at_ms`"
        return cls.of(step.input, step.serial >> NTH_BITS, encode(step.event), reason)
