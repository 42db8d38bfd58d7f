"""People who are paid to say how well products are what was asked for: the simulated shop's human judgements.

They look at the shop's first slates with a query, at some items of each, and give grades from 1 to 4. They know what
the words mean, and nothing of who asked or of what was clicked; and they differ, as people do.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.random import SeedSequence, default_rng

from heft.stream.events.wire import Impression
from heft.stream.shop.truth import SlateTruth

_DIFFER = 1.0  # standard deviation of what they find, in the logits of the truth
_BOUNDS = (-1.5, 0.3, 2.0)  # of the grades


class Raters:
    """Judges slates until so many judgements are made.

    ``rows``: query, text and grade of each.

    Parameters
    ----------
    most
        How many judgements.
    seed
        Which items they look at, and how they differ.
    of_a_slate
        How many items of a slate they look at.
    """

    def __init__(self, most: int, seed: int, of_a_slate: int = 2) -> None:
        self.rows: list[tuple[str, str, int]] = []
        self._most, self._of_a_slate = most, of_a_slate
        self._rng = default_rng(SeedSequence(seed, spawn_key=(5,)))  # the shop's own are the first five

    def look(self, slate: Impression, truth: SlateTruth) -> None:
        """Judge some items of a slate, if it has a query and more judgements are wanted."""
        if not slate.query or len(self.rows) >= self._most:
            return
        chosen = self._rng.choice(len(slate.items), size=min(self._of_a_slate, len(slate.items)), replace=False)
        found = np.array(truth.relevance)[chosen] + self._rng.normal(0.0, _DIFFER, len(chosen))
        for item, grade in zip(chosen.tolist(), np.digitize(found, _BOUNDS).tolist(), strict=True):
            if len(self.rows) < self._most:
                self.rows.append((slate.query, slate.items[item].text, grade + 1))

    def write(self, path: Path) -> None:
        """Write the judgements, as `heft teacher finetune --relevance` reads them; the file is whole or absent."""
        part = path.with_name(f"unfinished-{path.name}")
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("query", "text", "grade"), *self.rows])
        part.replace(path)
