"""`heft replay` against a Python join with Vowpal Wabbit or river: rows a second of one core, and memory.

Each run is a process of its own, pinned to one core, and warmed up on the log's first lines, so that compiling and
importing count on neither side; the cyclic collector is off for all. Runs alternate, and each ratio is the median of
the rounds' ratios. AUC and NE over the second half, as predicted when shown, tell that the work is the same.
"""

from __future__ import annotations

import gc
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

import msgspec

from heft.stream.events.log import open_log, read_lines

_WARM_LINES = 3_000
_MAX_AHEAD_MS = 3_600_000


def one(side: str, log: Path) -> dict[str, Any]:
    """Run one side over a log in this process."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    rows, seconds, quality = _heft(log) if side == "heft" else _peer(side, log)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, "peak_mb": peak_mb}
    return {"side": side} | speed | quality


def _heft(log: Path) -> tuple[int, float, dict[str, float]]:
    from heft.stream.config.settings import Config
    from heft.stream.replay.replay import replay_logs

    with TemporaryDirectory() as folder:
        warm = Path(folder) / "warm.jsonl"
        warm.write_bytes(b"".join(line + b"\n" for line in islice(read_lines(log), _WARM_LINES)))
        replay_logs([warm], Config())
    replay, seconds = replay_logs([log], Config())
    report = replay.report(seconds)
    half = report["heads"]["click"]["arms"]["uniform"]["second_half"]
    return report["samples"], seconds, {"auc": half["auc"], "ne": half["ne"]}


def _peer(side: str, log: Path) -> tuple[int, float, dict[str, float]]:
    from bench.peers import MODELS, Pipeline
    from heft.models.features.config import DEFAULT_FEATURES

    gc.disable()
    Pipeline(MODELS[side](DEFAULT_FEATURES), DEFAULT_FEATURES).run(islice(read_lines(log), _WARM_LINES))
    pipeline = Pipeline(MODELS[side](DEFAULT_FEATURES), DEFAULT_FEATURES)
    started = perf_counter()
    pipeline.run(read_lines(log))
    return pipeline.rows, perf_counter() - started, pipeline.quality()


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
                f"{result['rows_per_second']:>9,.0f} rows/s  {result['peak_mb']:>6,.0f} MB  "
                f"AUC {result['auc']:.4f}  NE {result['ne']:.4f}",
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
        print(f"  {log.name}: heft with 6 arms is {ratio:.1f} times a Python join with {side} (one model)")
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
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    first = last = 0
    for line in read_lines(log):
        at = decode(line)["at_ms"]
        first = first or at
        # A clock gone wrong would tear a hole between the copies.
        last = max(last, at) if at < last + _MAX_AHEAD_MS or not last else last
    span = last - first + 1_000
    with open_log(out, "wb") as target:
        for copy in range(times):
            for line in read_lines(log):
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
