"""The same stages over a log, at full speed, in one process: a backtest is the live path without Kafka.

Each log is a source partition of its own, as each partition of the topics is live. Several are read side by side: the
one whose frontier is furthest behind is read next, and the learner gets what all of them have passed, in the order of
the keys.
"""

from __future__ import annotations

import gc
import heapq
import json
import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

from heft.models.records import Key, Record
from heft.stream.config.settings import Config
from heft.stream.events.log import read_lines
from heft.stream.join.joiner import Joiner
from heft.stream.kafka.bulk_reader import Ended, input_partitions, read_inputs
from heft.stream.learn.learner import Learner, Observer
from heft.stream.score.scorer import ReplaySource, Scorer

_NEVER = sys.maxsize
_CHUNK = 256  # lines read from one log before the next is considered

Progress = Callable[[int], None]
"""Told the number of lines read since the last call."""

ScoreSources = Callable[[], ReplaySource]
"""Makes the reference of one source."""


class Replay:
    """Joiners, scorers and learners without Kafka between them.

    Parameters
    ----------
    config
        The same configuration as that of live workers.
    sources
        How many source partitions there are.
    inputs
        Names of the inputs of each partition: one for a log, the topics for a replay from topics.
    observer
        Told each outcome of each learner.
    reference
        Makes the reference of each source; None: no teacher.
    """

    def __init__(
        self,
        config: Config,
        sources: int = 1,
        inputs: Sequence[str] = ("log",),
        observer: Observer | None = None,
        reference: ScoreSources | None = None,
    ) -> None:
        self.config = config
        decode = config.decoder()
        self.joiners = [Joiner(config.join, inputs, decode) for _ in range(sources)]
        self._references = [reference() if reference else None for _ in range(sources)]
        self._scorers = [Scorer(each) for each in self._references]
        self.learners = [Learner(config.learner, observer) for _ in range(max(1, len(config.join.shards)))]
        self._due: list[deque[tuple[int, Record]]] = [deque() for _ in range(sources)]
        self._ended = [False] * sources

    def push(self, source: int, input: int, offset: int, raw: bytes) -> None:
        """Take one record of one input of one source partition."""
        self.joiners[source].push(input, offset, raw)

    def tick(self, source: int, input: int) -> None:
        """Say that an input of a source has ended."""
        self.joiners[source].tick(input)

    @property
    def alive(self) -> list[int]:
        """The sources that have not ended."""
        return [source for source, ended in enumerate(self._ended) if not ended]

    def flow(self, source: int) -> None:
        """Let everything that is due in all sources pass through the stages."""
        self._take(source, self.joiners[source].drain())
        self._forget_rejected(source)
        self._learn()

    def end(self, source: int) -> None:
        """End one source: its slates whose window has not ended stay open."""
        self._take(source, self.joiners[source].finish())
        self._forget_rejected(source)
        self._ended[source] = True
        self._learn()

    def _take(self, source: int, drained: Sequence[tuple[int, Record]]) -> None:
        self._scorers[source].expect(record for _, record in drained)
        self._due[source].extend(drained)

    def _forget_rejected(self, source: int) -> None:
        # The fates count them. Up to 64 KB of each would stay in memory to the end of the log.
        self.joiners[source].rejected.clear()

    def _learn(self) -> None:
        frontier = min((self.joiners[source].frontier for source in self.alive), default=_NEVER)
        ready = [self._before(source, frontier) for source in range(len(self.joiners))]
        for _, source, shard, record in ready[0] if len(ready) == 1 else heapq.merge(*ready, key=itemgetter(0, 1)):
            self.learners[shard].apply(source, self._scorers[source].score(record))

    def _before(self, source: int, frontier: int) -> Iterator[tuple[Key, int, int, Record]]:
        due = self._due[source]
        while due and due[0][1].due_ms < frontier:
            shard, record = due.popleft()
            yield record.key, source, shard, record

    def report(self, seconds: float) -> dict[str, Any]:
        """Return what `report.json` holds; see README for the meaning of each number.

        The digest is that of a live learner at the end of the same log; the metrics take in the labels that still wait.
        """
        digest = "".join(learner.digest() for learner in self.learners)
        for learner in self.learners:
            learner.flush()
        fates: Counter[str] = Counter()
        events: Counter[str] = Counter()
        for joiner in self.joiners:
            for kind, by_fate in joiner.fates.items():
                fates.update(by_fate)
                events[kind] += sum(by_fate.values())
            fates["pending"] += joiner.pending
        samples = sum(learner.samples for learner in self.learners)
        heads = [learner.report() for learner in self.learners]
        report = {
            "events": {kind: n for kind, n in events.items() if n},
            "fates": {fate: n for fate, n in fates.items() if n},
            "dropped": dict(sum((joiner.dropped for joiner in self.joiners), Counter[str]())),
            "skipped": dict(sum((learner.counts for learner in self.learners), Counter[str]())),
            "ignored_fields": sum(learner.featurizer.ignored_fields for learner in self.learners),
            "history_evicted": sum(learner.featurizer.history.evicted for learner in self.learners),
            "samples": samples,
            "seconds": seconds,
            "samples_per_second": samples / seconds if seconds else math.nan,
            "scores": dict(sum((scorer.counts for scorer in self._scorers), Counter[str]())),
            "scores_not_finite": sum(each.not_finite for each in self._references if each is not None),
            "digest": digest,
            "config": self.config.plain(),
            "heads": heads[0],
        }
        if len(heads) > 1:
            report["shards"] = dict(zip(self.config.join.shards, heads, strict=True))
        return report


def replay_logs(
    paths: Sequence[Path],
    config: Config,
    progress: Progress | None = None,
    observer: Observer | None = None,
    reference: ScoreSources | None = None,
) -> tuple[Replay, float]:
    """Run logs through all stages; return the stages at the end and the seconds it took.

    The learner depends on the logs, the configuration and the reference alone: the same give the same digest.
    """
    replay = Replay(config, len(paths), observer=observer, reference=reference)
    return _run(replay, [_lines(path) for path in paths], progress)


def replay_topics(
    config: Config,
    since_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress | None = None,
    reference: ScoreSources | None = None,
) -> tuple[Replay, float]:
    """Run the input topics, up to where they end now, through all stages, outside any consumer group.

    Parameters
    ----------
    config
        The cluster and its topics.
    since_ms, until_ms
        Event times in milliseconds: from the first on, up to but not with the second.
    progress
        Told the number of records read since the last call.
    reference
        Makes the reference of each source; None: no teacher.
    """
    partitions = input_partitions(config)
    feeds = [_records(config, partition, since_ms, until_ms) for partition in range(partitions)]
    return _run(Replay(config, partitions, config.inputs, reference=reference), feeds, progress)


_Fed = tuple[int, int, bytes | None]
"""Input, offset and record; None for the record says that the input has ended."""


def _lines(path: Path) -> Iterator[_Fed]:
    for offset, raw in enumerate(read_lines(path)):
        yield 0, offset, raw


def _records(config: Config, partition: int, since_ms: int | None, until_ms: int | None) -> Iterator[_Fed]:
    for each in read_inputs(config, partition, since_ms, until_ms):
        if isinstance(each, Ended):
            yield each.input, -1, None
        else:
            yield each.input, each.record.offset, each.record.value


def _run(replay: Replay, feeds: Sequence[Iterator[_Fed]], progress: Progress | None) -> tuple[Replay, float]:
    # Nothing in the core forms cycles; the collector would only walk the open slates again and again.
    collecting = gc.isenabled()
    gc.disable()
    started = perf_counter()
    try:
        while alive := replay.alive:
            source = min(alive, key=lambda source: replay.joiners[source].frontier)
            taken = 0
            for input, offset, raw in feeds[source]:
                if raw is None:
                    replay.tick(source, input)
                    continue
                replay.push(source, input, offset, raw)
                taken += 1
                if taken == _CHUNK:
                    replay.flow(source)
                    break
            else:
                replay.end(source)
            if progress is not None:
                progress(taken)
    finally:
        if collecting:
            gc.enable()
    return replay, perf_counter() - started


def write_report(report: dict[str, Any], out: Path) -> Path:
    """Write ``report.json`` into a folder; numbers that are not defined become null."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    path.write_text(json.dumps(_without_nan(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _without_nan(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _without_nan(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_nan(each) for each in value]
        case _:
            return value
