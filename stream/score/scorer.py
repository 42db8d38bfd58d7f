"""The middle stage: records pass through untouched and in order, and take reference scores along.

`Shown` takes the scores that a ranker could have known when the slate was shown; `Closed` takes those that have come
since. An impression may bring scores that its ranker asked for itself. The stage never makes the stream wait: a sample
without a score counts with weight 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import msgspec

from heft.models.records import Closed, Record, ReferenceScore, Shown, Slate
from heft.models.teacher.logits import quantise


class ScoreSource(Protocol):
    """Where reference scores come from: `ReplaySource` in a replay, `LiveSource` in a worker."""

    def expect(self, slate: Slate) -> None:
        """Hear of a slate before it is asked about; it need not be called."""
        ...

    def on_time(self, slate: Slate) -> list[ReferenceScore]:
        """Return the scores that a ranker could have known when the slate was shown, and ask for the others."""
        ...

    def by_now(self, request_id: str) -> list[ReferenceScore]:
        """Return the scores of a slate that have come since, and forget the slate."""
        ...


class NoScores:
    """The source where there is no teacher: it has no scores, so every sample counts with weight 1."""

    def expect(self, slate: Slate) -> None:
        """Do nothing."""

    def on_time(self, slate: Slate) -> list[ReferenceScore]:  # noqa: ARG002
        """Return nothing."""
        return []

    def by_now(self, request_id: str) -> list[ReferenceScore]:  # noqa: ARG002
        """Return nothing."""
        return []


class Scorer:
    """The score stage of one source partition: it adds reference scores and changes nothing else.

    ``counts`` says how many scores were ``on_time``, and how many came ``later``.

    Parameters
    ----------
    source
        Where scores come from; None: there is no teacher.
    """

    def __init__(self, source: ScoreSource | None = None) -> None:
        self._source = source or NoScores()
        self.counts: Counter[str] = Counter(on_time=0, later=0)

    def score(self, record: Record) -> Record:
        """Return the record with the scores that belong to it and are known by now."""
        if isinstance(record, Shown):
            slate = record.slate
            scores = _scores_of_ranker(slate) if slate.teacher else self._source.on_time(slate)
            self.counts["on_time"] += len(scores)
        elif isinstance(record, Closed):
            scores = self._source.by_now(record.request_id)
            self.counts["later"] += len(scores)
        else:
            return record
        return msgspec.structs.replace(record, scores=scores) if scores else record

    def expect(self, records: Iterable[Record]) -> None:
        """Tell the source which slates are about to come, so that it can score them together."""
        for record in records:
            if isinstance(record, Shown) and not record.slate.teacher:
                self._source.expect(record.slate)


def _scores_of_ranker(slate: Slate) -> list[ReferenceScore]:
    """Return the scores that the impression brought: its ranker had them when it showed the slate."""
    scores = []
    for item in slate.items:
        logits = None if item.teacher is None else quantise(*item.teacher)
        if logits is not None and item.seen:
            scores.append(ReferenceScore(item.item_id, logits.logit_256, slate.teacher, True, logits.order_256))
    return scores
