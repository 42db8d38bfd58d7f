"""`make bench`: everything that is compared, ratios first. ``ARGS="replay memory snapshots LOG..."`` chooses."""

from __future__ import annotations

import sys
from pathlib import Path

from bench import replay, snapshots

_PARTS = ("replay", "memory", "snapshots")


def main(arguments: list[str]) -> None:
    parts = [each for each in arguments if each in _PARTS] or list(_PARTS)
    logs = [Path(each) for each in arguments if each not in _PARTS]
    missing = [str(log) for log in logs if not log.exists()]
    if missing or not logs:
        sys.exit(
            f"bench: no log at {', '.join(missing)}" if missing else
            "bench: which logs? Make some with `heft import trivago FILE --out trivago.jsonl` and "
            "`heft simulate --requests 20000 --out shop.jsonl`, then `make bench ARGS='trivago.jsonl shop.jsonl'`"
        )  # fmt: skip
    for log in logs:
        if "replay" in parts:
            print(f"Replay of {log.name}, one core, alternating")
            replay.compare(log)
        if "memory" in parts:
            print(f"Memory over {log.name}")
            replay.memory(log)
    if "snapshots" in parts:
        print("Snapshots at 100,000 open slates")
        snapshots.measure(logs[0])


main(sys.argv[1:])
