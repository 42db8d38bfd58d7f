"""The vectors of the texts that were read last, and the texts that a teacher comes with."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.teacher.data.examples import DataError

Vector: TypeAlias = NDArray[np.float32]


class TextVectors:
    """Vectors [D] by text, in two generations.

    When the young generation is full, it becomes the old one, and what is left of the old one is forgotten. A text that
    is looked up moves to the young generation. Any thread may keep vectors and look them up without a lock: looking up
    never iterates, and both generations are replaced in one step. If two threads find the young one full at the same
    time, a vector that one of them has just kept may be lost; its text is then read again.

    Parameters
    ----------
    capacity
        Most texts of both generations together.
    """

    def __init__(self, capacity: int) -> None:
        self._half = max(1, capacity // 2)
        self._generations: tuple[dict[str, Vector], dict[str, Vector]] = ({}, {})

    def __len__(self) -> int:
        young, old = self._generations
        return len(young.keys() | old.keys())

    def get(self, text: str) -> Vector | None:
        """Return the vector of a text; None if it was not read, or was forgotten."""
        young, old = self._generations
        vector = young.get(text)
        if vector is None and (vector := old.get(text)) is not None:
            self.keep(text, vector)
        return vector

    def keep(self, text: str, vector: Vector) -> None:
        """Remember a vector. It must own its memory: a row of a batch would keep the whole batch alive."""
        young, _ = self._generations
        if len(young) >= self._half:
            young, old = {}, young
            self._generations = (young, old)
        young[text] = vector


TEXTS = "texts.json"
"""In a teacher's folder: texts of its own log, which it reads before it scores."""


def read_texts(folder: Path) -> tuple[str, ...]:
    """Return the texts that a teacher comes with, those shown most often first; none without the file.

    Raises
    ------
    DataError
        If the file is cut short.
    """
    path = folder / TEXTS
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[str, ...]) if path.exists() else ()
    except msgspec.DecodeError as error:
        msg = f"{path}: {error}; the teacher works without this file: delete it, or copy it again"
        raise DataError(msg) from None
