"""What a ranker predicts for each sample of a log when it is shown: a teacher can be taught what this lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from msgspec.structs import replace

from heft.models.evaluate.formulas import LEAST_P
from heft.models.records import Record, Shown
from heft.models.teacher.data.log_samples import sample_key
from heft.stream.learn.learner import Learner, LearnerConfig, Outcome


class RankerBaseline:
    """Learns a log while it is read, with the first arm of each head alone, and notes each click probability as shown.

    ``clicks`` are the probabilities by `sample_key`; they are complete when `read` has ended.

    Parameters
    ----------
    config
        Of the learner, whose first click arm predicts.
    """

    def __init__(self, config: LearnerConfig) -> None:
        alone = replace(
            config.ranker,
            click_arms=config.ranker.click_arms[:1],
            conversion_arms=config.ranker.conversion_arms[:1],
            click_teacher_arms=(),
            conversion_teacher_arms=(),
        )
        self.clicks: dict[int, float] = {}
        self._open: dict[str, list[int]] = {}
        self._learner = Learner(replace(config, ranker=alone), self._note)

    def read(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records, each after the learner has seen it."""
        for record in records:
            if isinstance(record, Shown):
                request = record.slate.request_id
                keys = [sample_key(request, item.item_id) for item in record.slate.items]
                self._open.setdefault(request, keys)  # of slates with the same id, the learner takes the first
            self._learner.apply(0, record)
            yield record
        self._learner.flush()
        self._open.clear()

    def _note(self, outcome: Outcome) -> None:
        if outcome.head == "click":
            p = outcome.shown.p[:, 0].astype(np.float64).clip(LEAST_P, 1.0 - LEAST_P)
            self.clicks.update(zip(self._open.pop(outcome.request_id), p.tolist(), strict=True))
