"""What a snapshot costs when 100,000 slates are open: its bytes, and how long learning stands still."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import msgspec

from models.sample import Shown, Slate
from stream import snapshot
from stream.config import Config
from stream.learn import Learner
from stream.log import read_lines

OPEN = 100_000
STEP = 2_000  # slates between two snapshots of a worker at some hundred slates a second


def measure(log: Path) -> dict[str, float]:
    """Open 100,000 slates made from those of a log, and take snapshots on the way; print and return what they cost."""
    decode = msgspec.json.Decoder(Slate).decode
    slates = [decode(line) for line in read_lines(log) if b'"type":"impression"' in line[:40]]
    learner = Learner(Config().learner)
    stalls, saved = [], 0
    for number in range(OPEN + 5 * STEP):
        slate = slates[number % len(slates)]
        at = slates[0].at_ms + number
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
        f"  {learner.open_slates:,} open slates: stall {result['stall_ms']:.0f} ms at most, {result['state_mb']:.1f} MB, "
        f"and {result['new_slates_mb']:.1f} MB for {STEP:,} new slates"
    )
    return result
