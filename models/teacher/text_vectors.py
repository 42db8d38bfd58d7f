"""The vectors of texts that have been read: bounded, and what is used stays. The texts that a teacher comes with."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.teacher.data.examples import DataError

Vector: TypeAlias = NDArray[np.float32]


class TextVectors:
    """Vectors [D] by text, in two generations: when the young one is full, it becomes the old one, whose rest goes.

    What is looked up is young again. Any thread may keep vectors and look them up, without a lock: looking up iterates
    over nothing, and both are replaced at once. Should two threads find the young one full together, what one of them
    has just kept may be lost, and is read again.

    Parameters
    ----------
    capacity
        Texts of both generations at most.
    """

    def __init__(self, capacity: int) -> None:
        self._half = max(1, capacity // 2)
        self._generations: tuple[dict[str, Vector], dict[str, Vector]] = ({}, {})

    def __len__(self) -> int:
        young, old = self._generations
        return len(young.keys() | old.keys())

    def get(self, text: str) -> Vector | None:
        """Return the vector of a text; None if it was not read, or is forgotten."""
        young, old = self._generations
        vector = young.get(text)
        if vector is None and (vector := old.get(text)) is not None:
            self.keep(text, vector)
        return vector

    def keep(self, text: str, vector: Vector) -> None:
        """Remember a vector. It must be an array of its own: a row of a batch would keep the whole batch."""
        young, _ = self._generations
        if len(young) >= self._half:
            young, old = {}, young
            self._generations = (young, old)
        young[text] = vector


TEXTS = "texts.json"
"""In a teacher's folder: the texts that it reads before it scores, those of its own log."""


def read_texts(folder: Path) -> tuple[str, ...]:
    """Return the texts that a teacher comes with, those shown most often first; none where the file is not.

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
