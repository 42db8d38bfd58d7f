"""`heft replay` against a Python join with Vowpal Wabbit or river: rows a second of one core, and memory.

Each run is a process of its own, pinned to one core, and warmed up on the log's first lines, so that compiling and
importing count on neither side. Runs alternate, and each ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

_WARM_LINES = 3_000


def one(side: str, log: Path) -> dict[str, Any]:
    """Run one side over a log in this process."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    if side == "heft":
        rows, seconds = _heft(log)
    else:
        rows, seconds = _peer(side, log)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"side": side, "rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, "peak_mb": peak_mb}


def _heft(log: Path) -> tuple[int, float]:
    from stream.config import Config
    from stream.replay import replay_logs

    with TemporaryDirectory() as folder:
        warm = Path(folder) / "warm.jsonl"
        with log.open("rb") as lines:
            warm.write_bytes(b"".join(islice(lines, _WARM_LINES)))
        replay_logs([warm], Config())
    replay, seconds = replay_logs([log], Config())
    return replay.report(seconds)["samples"], seconds


def _peer(side: str, log: Path) -> tuple[int, float]:
    from bench.peers import MODELS, Pipeline

    with log.open("rb") as lines:
        Pipeline(MODELS[side]()).run(islice(lines, _WARM_LINES))
    pipeline = Pipeline(MODELS[side]())
    started = perf_counter()
    with log.open("rb") as lines:
        pipeline.run(lines)
    return pipeline.rows, perf_counter() - started


def _run(side: str, log: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.replay", side, str(log)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1_800)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(log: Path, rounds: int = 3, sides: tuple[str, ...] = ("heft", "vw", "river")) -> dict[str, Any]:
    """Run the sides in turn, several rounds, print and return speeds and ratios."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides:
            result = _run(side, log)
            results[side].append(result)
            print(
                f"  {log.name} round {number + 1}  {side:6} {result['rows']:>9,} rows  "
                f"{result['rows_per_second']:>9,.0f} rows/s  {result['peak_mb']:>6,.0f} MB",
                flush=True,
            )
    ratios = {
        side: median(
            ours["rows_per_second"] / theirs["rows_per_second"]
            for ours, theirs in zip(results["heft"], results[side], strict=True)
        )
        for side in sides
        if side != "heft"
    }
    for side, ratio in ratios.items():
        print(f"  {log.name}: heft with 6 policies is {ratio:.1f} times a Python join with {side} (one model)")
    return {"results": results, "ratios": ratios}


def memory(log: Path, times: int = 10) -> float:
    """Return the peak memory over a log repeated ``times`` times, as a multiple of that over the log alone."""
    with TemporaryDirectory() as folder:
        long = Path(folder) / "long.jsonl"
        repeat(log, long, times)
        short, far = (_run("heft", path) for path in (log, long))
    ratio: float = far["peak_mb"] / short["peak_mb"]
    print(
        f"  {log.name}: {short['peak_mb']:,.0f} MB; {times} times as long {far['peak_mb']:,.0f} MB, {ratio:.2f} times"
    )
    return ratio


def repeat(log: Path, out: Path, times: int) -> None:
    """Write a log that goes on ``times`` times: later copies have later times and requests of their own."""
    import msgspec

    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    first = last = 0
    with log.open("rb") as lines:
        for line in lines:
            at = decode(line)["at_ms"]
            first = first or at
            last = max(last, at)
    span = last - first + 1_000
    with out.open("wb") as target:
        for copy in range(times):
            with log.open("rb") as lines:
                for line in lines:
                    event = decode(line)
                    event["at_ms"] += copy * span
                    for name in ("request_id", "order_id", "event_id"):
                        if name in event:
                            event[name] = f"{event[name]}#{copy}"
                    for act in event.get("session") or ():
                        act["at_ms"] += copy * span
                    target.write(encode(event) + b"\n")


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], Path(sys.argv[2]))))
