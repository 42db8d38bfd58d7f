"""`make bench`: everything that is compared, ratios first. ``ARGS="replay kafka shop.jsonl"`` chooses parts and logs.

Without logs it takes the simulated shop, made on the spot, and trivago_day1 where ``HEFT_TEST_DATA`` holds it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import freshness, importance, kafka, logs, relevance, replay, snapshots, teacher, training

_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "replay": ("heft replay against the usual parts, one core, alternating", replay.compare),
    "memory": ("Memory over a log ten times as long", replay.memory),
    "kafka": (
        "All stages in one worker against quixstreams with river, two cores with the broker, alternating",
        kafka.compare,
    ),
    "freshness": (
        f"From the append to the learner, at {', '.join(map(str, freshness.RATES))} slates a second",
        freshness.measure,
    ),
    "snapshots": ("Snapshots at 100,000 open slates", snapshots.measure),
    "importance": ("What a teacher is worth to each arm", importance.compare),
    "teacher": ("Scoring against sentence_transformers.CrossEncoder, one thread, alternating", teacher.compare),
}  # fmt: skip
_ON_ONE_LOG = ("freshness", "snapshots", "teacher")
_ON_JUDGEMENTS: dict[str, tuple[str, Callable[[], object]]] = {
    "training": ("Fine-tuning against the Hugging Face Trainer, adapters against all weights", training.compare),
    "relevance": ("A fine-tuned MiniLM on human judgements beside what is cheaper, half an hour", relevance.compare),
}
"""They need the teacher's libraries, and run when they are named."""


def main(arguments: list[str]) -> None:
    judged = [each for each in _ON_JUDGEMENTS if each in arguments]
    parts = [each for each in _PARTS if each in arguments] or ([] if judged else list(_PARTS))
    given = [Path(each) for each in arguments if each not in _PARTS and each not in _ON_JUDGEMENTS]
    missing = [str(log) for log in given if not log.exists()]
    if missing:
        sys.exit(
            f"bench: {', '.join(missing)}: neither a log nor one of the parts {', '.join([*_PARTS, *_ON_JUDGEMENTS])}"
        )
    for part in judged:
        title, measure = _ON_JUDGEMENTS[part]
        print(title, flush=True)
        measure()
    if not parts:
        return
    with TemporaryDirectory(prefix="heft-bench-") as folder:
        found = given or logs.found(Path(folder))
        for part in parts:
            title, run = _PARTS[part]
            print(title, flush=True)
            for log in found[:1] if part in _ON_ONE_LOG else found:
                run(log)


if __name__ == "__main__":
    main(sys.argv[1:])
