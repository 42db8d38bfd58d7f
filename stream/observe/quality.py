"""How good the newest samples were predicted, measured beside all else that a worker does.

A head of 16 arms has a third of a second of work in it. So one step measures one arm, and the worker does something
else before the next; and a head is measured only when samples have come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from heft.stream.observe.families import Labels

if TYPE_CHECKING:  # a worker that only joins loads no models
    from heft.models.rankers.head import Head


class _Measured(NamedTuple):
    head: Head
    samples: int
    by_arm: Mapping[str, Mapping[str, float]]


class Quality:
    """The metrics of heads over their newest samples, as they were last measured."""

    def __init__(self) -> None:
        self._measured: dict[Labels, _Measured] = {}

    def of(self, labels: Labels) -> Mapping[str, Mapping[str, float]]:
        """Return the metrics of a head by arm; empty before they were first measured."""
        measured = self._measured.get(labels)
        return measured.by_arm if measured else {}

    def steps(self, heads: Mapping[Labels, Head]) -> Iterator[None]:
        """Measure the heads that have new samples; one step measures one arm."""
        self._measured = {labels: each for labels, each in self._measured.items() if labels in heads}
        for labels, head in heads.items():
            metrics, before = head.metrics, self._measured.get(labels)
            if before and before.head is head and before.samples == metrics.samples:
                continue
            samples, newest = metrics.samples, metrics.newest()
            by_arm = {}
            for k, arm in enumerate(metrics.arms):
                by_arm[arm] = newest.metrics(k)
                yield
            self._measured[labels] = _Measured(head, samples, by_arm)
