"""What is needed to score, beside the weights: ``teacher.json`` in a teacher's folder. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import msgspec

from heft.models.teacher.base_rates import BaseRates

TOWERS = "towers"
"""The two texts are read apart, and a pair is the product of their unit vectors: so texts that many pairs share are
read once, and what a sentence encoder knows before it is fine-tuned, its cosine, is where a head begins."""

STATIC = "static"
"""As towers, and a text's vector is the sum of its tokens' own, whatever stands beside them: no model runs."""

HEADS_FILE = "heads.safetensors"
"""In a teacher's folder: what was learned beside the encoder."""


class TeacherError(ValueError):
    """A folder that is no model, or settings that a model cannot be trained with."""


class OtherRunError(TeacherError):
    """An unfinished run of other data or settings is in the folder."""


class HeadState(msgspec.Struct, frozen=True):
    """Platt scaling of a head, p = 1 / (1 + exp(-(scale z + shift)))."""

    scale: float = 1.0
    shift: float = 0.0


class TeacherState(msgspec.Struct, frozen=True):
    """What is needed to score, beside the weights: ``teacher.json``."""

    heads: dict[str, HeadState]
    template: str
    max_tokens: int
    pooling: str
    version: str
    data_ends_ms: int | None = None
    """Scores count as out of sample for what was shown after this; None: the data had no time."""
    residual: bool = False
    """The click head says what is to be added to the ranker's own logit."""
    rates: BaseRates | None = None
    grades: tuple[float, float] | None = None


def read_state(folder: Path) -> TeacherState | None:
    """Return what is needed to score, of a finished teacher's folder; None of any other folder."""
    path = folder / "teacher.json"
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=TeacherState)
    except msgspec.DecodeError as error:
        msg = f"{path}: {error}"
        raise TeacherError(msg) from None


def require_state(folder: Path) -> TeacherState:
    """Return what is needed to score.

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
    """Refuse weights that are not those of the state's version."""
    if found != state.version:
        msg = f"{folder}: the weights are not those of version {state.version}; copy the whole folder again"
        raise TeacherError(msg)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
