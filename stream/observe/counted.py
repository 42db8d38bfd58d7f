"""Counters of what this process did.

A stage goes on with the counts of its snapshot, and a partition may go to another worker and come back with what that
one counted. Prometheus takes a counter that falls for a restart, and one that jumps for traffic. So what a stage had
counted when it was opened is subtracted, and what is counted of a partition that has gone stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from prometheus_client.core import CounterMetricFamily, Metric

from heft.stream.observe.families import Family, Labels, Source


class Counted:
    """What this process counted, by metric and labels."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[Labels, float]] = {}
        self._ahead: dict[str, dict[Labels, float]] = {}  # by how much a source's own count exceeds ours

    def read(
        self, families: Iterable[Family[Source]], labels: Labels, sources: Mapping[Labels, Source], opened: Set[Labels]
    ) -> Iterator[Metric]:
        """Yield every family of a table, filled from all sources.

        Parameters
        ----------
        families
            The table.
        labels
            Names of the labels that tell the sources apart.
        sources
            The sources by the values of these labels.
        opened
            Those that were opened since the last call, with counts of a snapshot perhaps.
        """
        for family in families:
            metric = family.kind(family.name, family.meaning, labels=[*labels, *family.labels])
            values = {(*own, *more): n for own, source in sources.items() for more, n in family.values(source)}
            if family.kind is CounterMetricFamily:
                values = self._since_start(family.name, len(labels), values, opened)
            for of, value in values.items():
                metric.add_metric(of, value)
            yield metric

    def _since_start(
        self, name: str, width: int, values: Mapping[Labels, float], opened: Set[Labels]
    ) -> dict[Labels, float]:
        counts, ahead = self._counts.setdefault(name, {}), self._ahead.setdefault(name, {})
        if opened:
            for of in {*counts, *values}:
                if of[:width] in opened:
                    ahead[of] = values.get(of, 0.0) - counts.get(of, 0.0)
        for of, value in values.items():
            counts[of] = value - ahead.get(of, 0.0)
        return counts
