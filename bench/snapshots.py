"""What a snapshot costs when 100,000 slates are open: its bytes, and how long learning stands still."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import msgspec

from models.sample import Shown, Slate
from stream import snapshot
from stream.config import Config
from stream.log import read_lines
from stream.replay import replay_logs

OPEN = 100_000
STEP = 2_000  # slates between two snapshots of a worker at some hundred slates a second


def measure(log: Path) -> dict[str, float]:
    """Learn a log, open 100,000 more slates like its own, take snapshots on the way; print and return their cost."""
    decode = msgspec.json.Decoder(Slate).decode
    slates = [decode(line) for line in read_lines(log) if b'"type":"impression"' in line[:40]]
    learner = replay_logs([log], Config())[0].learners[0]
    start = learner.clock_ms
    stalls, saved = [], 0
    for number in range(OPEN + 5 * STEP):
        slate = slates[number % len(slates)]
        at = start + number
        learner.apply(0, Shown(at, msgspec.structs.replace(slate, request_id=f"r{number}", at_ms=at), []))
        if number >= OPEN and number % STEP == 0:
            started = perf_counter()
            state, segments = learner.state()
            stalls.append(perf_counter() - started)
            saved = len(snapshot.encode(state))
            fresh = len(snapshot.encode(segments[-1][1]()))
    result = {
        "open_slates": float(learner.open_slates),
        "stall_ms": 1e3 * max(stalls[1:]),
        "state_mb": saved / 1e6,
        "new_slates_mb": fresh / 1e6,
    }
    print(
        f"  {learner.open_slates:,} open slates: learning stands still for {result['stall_ms']:.0f} ms at most; "
        f"{result['state_mb']:.1f} MB, and {result['new_slates_mb']:.1f} MB for {STEP:,} new slates"
    )
    return result
