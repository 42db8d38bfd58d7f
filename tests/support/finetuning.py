"""Made-up text and labels to fine-tune a tiny model on, and settings under which it takes a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from heft.models.teacher.data.examples import Examples, Split, examples_of
from heft.models.teacher.settings import FinetuneSettings
from heft.models.teacher.train.finetune import Source

SOURCES = [Source("log.jsonl", 12, "abc")]
THINGS = ("shoe", "hat", "coat", "lamp", "chair", "table", "knife", "bag")
GOOD, BAD = ("lovely", "new", "soft"), ("broken", "dirty", "torn")
CHEAP, DEAR = ("cheap", "sale"), ("luxury", "costly")


def shop(n: int, seed: int, shift: float = 0.0) -> Examples:
    """Good things are clicked and judged relevant, cheap ones bought once clicked."""
    rng = np.random.default_rng(seed)
    pairs, trials, positives = [], np.zeros((n, 3)), np.zeros((n, 3))
    for row in range(n):
        good, cheap = rng.random(2) < 0.5
        text = f"{rng.choice(GOOD if good else BAD)} {rng.choice(THINGS)} {rng.choice(CHEAP if cheap else DEAR)} {row}"
        pairs.append((f"{rng.choice(THINGS)}", text))
        shows = rng.integers(1, 8)
        clicks = rng.binomial(shows, 0.6 if good else 0.1)
        trials[row] = shows, clicks, 1
        positives[row] = clicks, rng.binomial(clicks, 0.9 if cheap else 0.1), good
    return examples_of(pairs, trials, positives, np.full(n, shift))


def split(train: int = 400) -> Split:
    return Split(shop(train, 1), shop(150, 2), shop(150, 3), None, 1_590_000_000_000, 1_600_000_000_000)


def settings(**more: Any) -> FinetuneSettings:
    given: dict[str, Any] = {
        "base": "tiny",
        "epochs": 3,
        "learning_rate": 2e-3,
        "max_tokens": 16,
        "device": "cpu",
        "dropout": 0.0,
    }
    return FinetuneSettings(template="{query} | {item.text}", **(given | more))
