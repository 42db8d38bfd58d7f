"""The middle stage: records pass through at once, untouched and in order, and take reference scores along.

`Shown` takes the scores that are there when it passes; `Closed` takes every score that has come by then. The stage
never makes the stream wait: a score that is missing is missing, and costs a weight of 1.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from models.sample import Closed, Record, ReferenceScore, Shown, Slate


class Reference(Protocol):
    """Where reference scores come from. Both calls return at once with what is known."""

    def on_time(self, slate: Slate) -> list[ReferenceScore]:
        """Return the scores a ranker could have known when the slate was shown, and ask for the others."""
        ...

    def by_now(self, request_id: str) -> list[ReferenceScore]:
        """Return every score of a slate that has come since, and forget the slate."""
        ...


class NoReference:
    """No teacher: no scores, so every sample counts once."""

    def on_time(self, slate: Slate) -> list[ReferenceScore]:  # noqa: ARG002
        """Return nothing."""
        return []

    def by_now(self, request_id: str) -> list[ReferenceScore]:  # noqa: ARG002
        """Return nothing."""
        return []


class Scorer:
    """The score stage of one source partition: adds reference scores, changes nothing else."""

    def __init__(self, reference: Reference | None = None) -> None:
        self._reference = reference or NoReference()

    def score(self, record: Record) -> Record:
        """Return the record with the scores known by now."""
        if isinstance(record, Shown):
            scores = self._reference.on_time(record.slate)
        elif isinstance(record, Closed):
            scores = self._reference.by_now(record.request_id)
        else:
            return record
        return msgspec.structs.replace(record, scores=scores) if scores else record
