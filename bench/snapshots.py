"""What snapshots cost when 100,000 slates are open: how long anything stands still, and their bytes.

As a worker has it: a loop takes the state of a stage between two records, and one thread encodes and writes it while
the loop goes on. Two things can hold the stream up and are told apart: taking the state, and Python's lock in the
thread, seen as the longest time between two turns of a coroutine that only waits for its next one. As in a worker, the
cyclic collector is told to spare what is there to stay. The first snapshot, after which nothing is new, is told apart.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import msgspec

from heft.models.records import Slate
from heft.stream.config.settings import Config
from heft.stream.events import wire
from heft.stream.events.log import read_lines
from heft.stream.events.wire import Click
from heft.stream.join.joiner import Joiner
from heft.stream.learn.learner import Learner
from heft.stream.replay.replay import replay_logs
from heft.stream.state.store import Name, SnapshotStore

OPEN = 100_000
STEP = 2_000  # slates between two snapshots of a worker at some hundred slates a second
_SNAPSHOTS = 5
_CLICKED = 0.3
_STAGES = ("join", "learn")


def measure(log: Path) -> dict[str, float]:
    """Learn a log, open 100,000 more slates like its own, take snapshots on the way; print and return their cost."""
    config = Config()
    traffic, result = _Traffic(log, config), dict[str, float]()
    with TemporaryDirectory() as folder, ThreadPoolExecutor(1) as writing:
        store = SnapshotStore(folder, config.snapshots.keep)
        traffic.go_on(OPEN)
        _settle()
        costs = asyncio.run(_snapshots(traffic, store, writing))
    for stage in _STAGES:
        first, *later = costs[stage]
        its = {
            "take_ms": 1e3 * max(cost.take for cost in costs[stage]),
            "first_gap_ms": 1e3 * first.gap,
            "gap_ms": 1e3 * max(cost.gap for cost in later),
            "write_s": max(cost.write for cost in later),
            "first_mb": first.written / 1e6,
            "later_mb": max(cost.written for cost in later) / 1e6,
        }
        print(
            "  {0}, {1:,} open slates: taking the state lasts {2:.0f} ms at most; while it is written the loop waits "
            "{4:.0f} ms at most ({3:.0f} for the first), {5:.2f} s in all; {6:.1f} MB the first, {7:.1f} MB after "
            "{8:,} more slates".format(stage, traffic.open_slates(stage), *its.values(), STEP)
        )
        result |= {f"{stage}_{name}": value for name, value in its.items()}
    return result | {f"{stage}_open_slates": float(traffic.open_slates(stage)) for stage in _STAGES}


class _Cost(msgspec.Struct):
    take: float
    gap: float
    write: float
    written: int


class _Traffic:
    """Slates like those of a log, so many that 100,000 are open, a third of them clicked, through join and learner."""

    def __init__(self, log: Path, config: Config) -> None:
        decode = msgspec.json.Decoder(Slate).decode
        self._slates = [decode(line) for line in read_lines(log) if b'"type":"impression"' in line[:40]]
        self.learner: Learner = replay_logs([log], config)[0].learners[0]
        self.joiner = Joiner(config.join, ["log"])
        self._start = self.learner.clock_ms
        # The join holds what is younger than the window, the learner what is younger than window and serve delay.
        self._every_ms = config.join.click_window_ms / OPEN
        self._number = 0

    def go_on(self, slates: int) -> None:
        for _ in range(slates):
            for event in self._events():
                self.joiner.push(0, self.joiner.offsets[0], wire.encode(event))
            for _shard, record in self.joiner.drain():
                self.learner.apply(0, record)

    def _events(self) -> Iterator[Slate | Click]:
        number, self._number = self._number, self._number + 1
        like, at = self._slates[number % len(self._slates)], self._start + int(number * self._every_ms)
        request, chance = f"r{number}", random.Random(number)
        yield msgspec.structs.replace(like, request_id=request, at_ms=at, session=None, bot=False, event_id=None)
        if chance.random() < _CLICKED:
            item = chance.choice(like.items).item_id
            yield Click(request_id=request, user_id=like.user_id, item_id=item, at_ms=at)

    def open_slates(self, stage: str) -> int:
        return self.joiner.open_slates if stage == "join" else self.learner.open_slates

    def take(self, stage: str) -> tuple[Any, Any]:
        return (self.joiner.state(), ()) if stage == "join" else self.learner.state()


def _settle() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 10_000)


async def _snapshots(traffic: _Traffic, store: SnapshotStore, writing: ThreadPoolExecutor) -> dict[str, list[_Cost]]:
    costs: dict[str, list[_Cost]] = {stage: [] for stage in _STAGES}
    for number in range(_SNAPSHOTS):
        traffic.go_on(STEP)
        for stage in _STAGES:
            started = perf_counter()
            state, segments = traffic.take(stage)
            taken = perf_counter()
            name = Name(stage, 0, number, "bench")
            saving = asyncio.get_running_loop().run_in_executor(writing, store.save, name, state, segments)
            gap, turn = 0.0, perf_counter()
            while not saving.done():
                await asyncio.sleep(0.001)
                gap, turn = max(gap, perf_counter() - turn), perf_counter()
            costs[stage].append(_Cost(taken - started, gap, perf_counter() - taken, await saving))
    return costs
