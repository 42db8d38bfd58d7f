"""What a replay learned, as plain content, so that two states of the code can be compared whatever they call things.

A digest of a learner's state holds the names of its parts and changes when one is renamed. This prints a hash of what
is in them instead, part by part, with the figures that people look at: run it before a change and after, and compare
with `diff`.

    HEFT_TEACHER__MODEL=DIR python -m bench.learned shop.jsonl.zst > after.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from heft.models.rankers.head import Head
from heft.stream.config.settings import load
from heft.stream.learn.learner import Learner
from heft.stream.replay.replay import replay_logs
from heft.stream.teacher.clients import replay_sources


def _leaves(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            for each in value.values():
                yield from _leaves(each)
        case list() | tuple():
            for each in value:
                yield from _leaves(each)
        case _:
            yield value


def _hash(*values: Any) -> str:
    """Return a hash of all numbers, arrays and strings in some values, in order, and of no name of a field."""
    found = blake2b(digest_size=12)
    for leaf in _leaves(values):
        if isinstance(leaf, np.ndarray):
            found.update(str((leaf.dtype.str, leaf.shape)).encode())
            found.update(np.ascontiguousarray(leaf).tobytes())
        elif isinstance(leaf, float):
            found.update(np.float64(leaf).tobytes())
        else:
            found.update(repr(leaf).encode())
        found.update(b";")
    return found.hexdigest()


def _head(head: Head) -> dict[str, Any]:
    bank, report = head.models.state(), head.report()
    mixture, arms = report["mixture"], report["arms"]
    shown = {name: {key: arms[name]["second_half"][key] for key in ("auc", "ne")} for name in ("uniform", "mixture")}
    return {
        "slots": len(bank["places"]),
        "weights by slot": _hash(bank["places"], bank["table"]),
        "sum of z and n": bank["table"].sum(axis=(0, 2)).tolist(),
        "teacher's inputs": _hash(bank["fixed_slopes"], bank["input_cells"]),
        "calibrators": _hash(head.platt.state()),
        "mixture": head.hedge.weights.tolist(),
        "metrics": _hash({key: value for key, value in report.items() if key not in ("mixture", "teacher")}),
        "mixture report": _hash(
            mixture["weights"], mixture["against_uniform"], sorted(mixture["benched"]), mixture["decisions"]
        ),
        "second half": shown,
    }


def content(learner: Learner) -> dict[str, Any]:
    """Return what a learner holds: hashes of its parts, and some figures."""
    return {
        "samples": learner.samples,
        "history": _hash(learner.featurizer.state()),
        "cohorts": _hash(learner.cohorts.state()),
        "click": _head(learner.click),
        "conversion": _head(learner.order),
    }


def main(logs: list[str]) -> None:
    """Replay logs and print what was learned, at their end and once the labels that still wait have acted."""
    config = load()
    replay, _ = replay_logs([Path(log) for log in logs], config, score_sources=replay_sources(config))
    for learner in replay.learners:
        at_end = content(learner)
        learner.flush()
        print(json.dumps({"at the end of the log": at_end, "flushed": content(learner)}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
