"""All three stages in one worker against quixstreams with river: rows a second from topics that are already full.

Both read the same four topics of one partition from a fresh broker beside them, on two cores, and run from the first
record taken to the last row learned. quixstreams reads, decodes and commits, its topics aligned by time; the join is
that of the Python pipeline (`bench.peers`), as one writes it who wants it fast: its own state and windows took twice
as long. heft writes and reads `samples` and `scored` besides, and takes snapshots.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, sleep
from typing import Any

from bench.replay import repeat
from bench.worker import Delays, best_kind, cluster
from heft.stream.config.settings import load
from heft.stream.demo.run import running_worker
from heft.stream.kafka.publish import publish
from heft.stream.observe.scrape import Scrape

_TIMES = 2
_QUIET_SECONDS = 4.0
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 600.0


def compare(log: Path, rounds: int = 3) -> dict[str, Any]:
    """Run both sides in turn, several rounds, print and return speeds and their ratio."""
    results: dict[str, list[dict[str, float]]] = {"heft": [], "quixstreams": []}
    with TemporaryDirectory() as folder:
        long = Path(folder) / "long.jsonl"
        repeat(log, long, _TIMES)
        for number in range(rounds):
            for side, run in (("heft", _heft), ("quixstreams", _quix)):
                with cluster() as (config, file):
                    records = sum(publish(long, config).values())
                    result = run(file, records)
                results[side].append(result)
                print(
                    f"  {log.name} x{_TIMES} round {number + 1} ({best_kind()})  {side:11} "
                    f"{result['rows']:>9,.0f} rows {result['rows'] / result['seconds']:>8,.0f} rows/s",
                    flush=True,
                )
    speeds = {side: [each["rows"] / each["seconds"] for each in runs] for side, runs in results.items()}
    ratio = median(ours / theirs for ours, theirs in zip(speeds["heft"], speeds["quixstreams"], strict=True))
    print(f"  {log.name}: heft with 6 arms through Kafka is {ratio:.1f} times quixstreams with river (one model)")
    return {"results": results, "ratio": ratio}


def _heft(file: Path, records: int) -> dict[str, float]:
    port = load(file, {}).metrics.port
    with running_worker(file) as worker:
        started = changed = 0.0
        learned = joined = -1.0
        deadline = monotonic() + _PATIENCE_SECONDS
        while worker.poll() is None and monotonic() < deadline:
            now = perf_counter()
            delays = Delays(port).counts
            if not delays.get("join"):
                started = now  # the last look at which nothing had been taken
            elif (delays["join"], delays.get("learn", 0.0)) != (joined, learned):
                joined, learned, changed = delays["join"], delays.get("learn", 0.0), now
            elif joined >= records and now > changed + _QUIET_SECONDS:
                break
            sleep(_POLL_SECONDS)
        rows = Scrape.at(port).total("heft_samples_total")
        return {"rows": rows, "seconds": changed - started}


def _quix(file: Path, records: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.kafka", str(file), str(records)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _run_quix(file: Path, records: int) -> dict[str, float]:
    import gc

    from quixstreams import Application

    from bench.peers import MODELS, Pipeline
    from heft.models.features.config import DEFAULT_FEATURES

    config = load(file, {})
    app = Application(
        config.kafka.bootstrap, consumer_group="peer", auto_offset_reset="earliest", auto_create_topics=False,
        use_changelog_topics=False, loglevel="ERROR",
    )  # fmt: skip
    pipeline = Pipeline(MODELS["river"](DEFAULT_FEATURES), DEFAULT_FEATURES)
    started = ended = 0.0
    taken = 0

    def take(raw: bytes) -> None:
        nonlocal started, ended, taken
        started = started or perf_counter()
        pipeline.take(raw)
        taken += 1
        ended = perf_counter()
        if taken == records:
            app.stop()

    frames = [app.dataframe(app.topic(name, value_deserializer="bytes")) for name in config.inputs]
    merged = frames[0]
    for frame in frames[1:]:
        merged = merged.concat(frame)
    merged.update(take)
    gc.disable()
    app.run(timeout=30.0)
    return {"rows": pipeline.rows, "seconds": ended - started, "taken": taken}


if __name__ == "__main__":
    print(json.dumps(_run_quix(Path(sys.argv[1]), int(sys.argv[2]))))
