"""What it costs to come back: CPU, bytes and memory of restoring a stage with many open slates.

    python -m bench.restore LOG [SLATES ...]

A learner learns the log, then is shown so many slates like the log's; a join is given the same, a third of them
clicked. The learner is saved as a worker does, every 18,000 slates, the join at the end. Both are restored five times
in a process of their own: CPU and wall are medians, the memory is that of the first stage restored. Taking the state is
what the stage stands still for: the longest of all times.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import msgspec

from heft.models.records import Shown, Slate
from heft.stream.config.settings import Config, load
from heft.stream.events import wire
from heft.stream.events.log import read_lines
from heft.stream.events.wire import Click
from heft.stream.join.joiner import Joiner
from heft.stream.learn.learner import Learner
from heft.stream.replay.replay import replay_logs
from heft.stream.state.store import Name, SnapshotStore

_SAVED_EVERY = 18_000  # a minute of 300 slates a second
_CLICKED_EVERY = 3
_TIMES = 5
_PAGE = resource.getpagesize()


def _slates(log: Path, many: int, start_ms: int, window_ms: int) -> Iterator[Slate]:
    decode = msgspec.json.Decoder(Slate).decode
    like = [decode(line) for line in read_lines(log) if b'"type":"impression"' in line[:40]]
    for number in range(many):
        at_ms, each = start_ms + number * window_ms // (2 * many), like[number % len(like)]
        yield msgspec.structs.replace(
            each, request_id=f"r{number:031d}", at_ms=at_ms, session=None, bot=False, event_id=None
        )


def _save(store: SnapshotStore, stage: str, number: int, taken: tuple[Any, Any]) -> None:
    store.save(Name(stage, 0, number, "bench"), *taken)


def _learner(store: SnapshotStore, log: Path, many: int, config: Config) -> float:
    learner, longest = replay_logs([log], config)[0].learners[0], 0.0
    for number, slate in enumerate(_slates(log, many, learner.clock_ms, config.join.click_window_ms), 1):
        learner.apply(0, Shown(slate.at_ms, slate, [], []))
        if number % _SAVED_EVERY == 0 or number == many:
            started = process_time()
            taken = learner.state()
            longest = max(longest, process_time() - started)
            _save(store, "learn", number, taken)
    return longest


def _joiner(store: SnapshotStore, log: Path, many: int, config: Config) -> float:
    joiner, longest = Joiner(config.join, ["log"]), 0.0
    for number, slate in enumerate(_slates(log, many, 1_700_000_000_000, config.join.click_window_ms), 1):
        events: list[Slate | Click] = [slate]
        if number % _CLICKED_EVERY == 0:
            item = slate.items[number % len(slate.items)].item_id
            events.append(
                Click(request_id=slate.request_id, user_id=slate.user_id, item_id=item, at_ms=slate.at_ms + 1)
            )
        for event in events:
            joiner.push(0, joiner.offsets[0], wire.encode(event))
        joiner.drain()
    for _ in range(_TIMES):
        started = process_time()
        taken = joiner.state()
        longest = max(longest, process_time() - started)
    _save(store, "join", many, (taken, ()))
    return longest


def _memory() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _restored(folder: str, stage: str, config: Config) -> tuple[int, float, float, float]:
    """Restore a stage; return how many slates are open, CPU and wall in seconds, and bytes of memory."""
    store, before, memory = SnapshotStore(folder), _memory(), 0
    cpu, wall = list[float](), list[float]()
    for _ in range(_TIMES):
        cpu_before, wall_before = process_time(), perf_counter()
        restored = _restore(store, stage, config)
        cpu.append(process_time() - cpu_before)
        wall.append(perf_counter() - wall_before)
        memory = memory or _memory() - before
        slates = restored.open_slates
        del restored
        gc.collect()
    return slates, median(cpu), median(wall), float(memory)


def _restore(store: SnapshotStore, stage: str, config: Config) -> Learner | Joiner:
    found = store.latest(stage)
    assert found is not None
    _, state, segments = found
    if stage == "learn":
        return Learner.restore(config.learner, state, segments)
    return Joiner.restore(config.join, ["log"], state)


def main(log: Path, many: int) -> None:
    """Print what both stages cost with so many open slates."""
    config = load()
    for stage, build in (("join", _joiner), ("learn", _learner)):
        with TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as apart:
            taking = build(SnapshotStore(folder), log, many, config)
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            apart.submit(_restored, folder, "nothing", config).exception()  # imports all, and finds no snapshot
            slates, cpu, wall, memory = apart.submit(_restored, folder, stage, config).result()
        print(
            f"{stage}: {slates:,} open slates: restored in {cpu:.2f} s of CPU, {wall:.2f} s; {size / 1e6:.1f} MB on "
            f"disk; {memory / 1e6:,.0f} MB of memory, {memory / slates / 1e3:.2f} KB a slate; taking the state needs "
            f"{1e3 * taking:.0f} ms of CPU",
            flush=True,
        )


if __name__ == "__main__":
    for number in sys.argv[2:] or ("20000", "180000", "400000"):
        main(Path(sys.argv[1]), int(number))
