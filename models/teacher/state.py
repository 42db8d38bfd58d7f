"""What scoring needs to know beside the weights: ``teacher.json`` in a teacher's folder. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import msgspec

from heft.models.teacher.base_rates import BaseRates

TOWERS = "towers"
"""The two texts are read apart, and the vector of a pair is the product of their unit vectors. So a text that many
pairs share is read once, and a head can begin at what a sentence encoder knows before fine-tuning: the cosine."""

STATIC = "static"
"""As `TOWERS`, but the vector of a text is the sum of the vectors of its tokens: no model runs."""

HEADS_FILE = "heads.safetensors"
"""In a teacher's folder: the heads, which were learned beside the encoder."""


class TeacherError(ValueError):
    """A folder without a usable model, or settings that no model can be trained with."""


class OtherRunError(TeacherError):
    """The folder holds an unfinished run with other data or settings."""


class HeadState(msgspec.Struct, frozen=True):
    """Platt scaling of a head: p = 1 / (1 + exp(-(scale z + shift)))."""

    scale: float = 1.0
    shift: float = 0.0


class TeacherState(msgspec.Struct, frozen=True):
    """What scoring needs to know beside the weights: ``teacher.json``."""

    heads: dict[str, HeadState]
    template: str
    max_tokens: int
    pooling: str
    version: str
    data_ends_ms: int | None = None
    """Slates shown after this are out of sample; None: the data had no time, so no slate counts as out of sample."""
    residual: bool = False
    """Whether the click head gives what is to be added to the ranker's own logit."""
    rates: BaseRates | None = None
    grades: tuple[float, float] | None = None


def read_state(folder: Path) -> TeacherState | None:
    """Return the state of a finished teacher's folder; None for any other folder.

    Raises
    ------
    TeacherError
        If ``teacher.json`` cannot be read as a state.
    """
    path = folder / "teacher.json"
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=TeacherState)
    except msgspec.DecodeError as error:
        msg = f"{path}: {error}"
        raise TeacherError(msg) from None


def require_state(folder: Path) -> TeacherState:
    """Return the state of a teacher's folder.

    Raises
    ------
    TeacherError
        If there is no finished teacher in the folder.
    """
    state = read_state(folder)
    if state is None:
        msg = f"{folder}: no teacher.json; `heft teacher finetune --out {folder}` makes one"
        raise TeacherError(msg)
    return state


def digest_of(weights: Iterable[tuple[str, bytes]], heads: dict[str, HeadState]) -> str:
    """Return the version of a teacher: the digest of its weights, in the order of their names, and its calibration."""
    digest = blake2b(digest_size=8)
    for name, content in weights:
        digest.update(name.encode())
        digest.update(content)
    digest.update(msgspec.json.encode(heads))
    return digest.hexdigest()


def require_version(folder: Path, found: str, state: TeacherState) -> None:
    """Raise `TeacherError` if the weights in a folder, whose digest is ``found``, are not those of the state."""
    if found != state.version:
        msg = f"{folder}: the weights are not those of version {state.version}; copy the whole folder again"
        raise TeacherError(msg)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers find the whole of it, or the file that was there before."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
