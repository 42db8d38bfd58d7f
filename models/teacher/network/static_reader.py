"""A teacher that runs no model: a text's vector is the sum of the vectors of its tokens. No torch here.

Static embeddings lose the order of words and what words mean together. In return a text takes microseconds, so that a
ranker can have every score, even for a query that nobody has typed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from heft.models.teacher.state import HEADS_FILE, TeacherError, TeacherState, digest_of, require_version
from heft.models.teacher.template import Pair

WORDS_FILE = "words.safetensors"
"""In a teacher's folder: ``encoder.words`` [V, D], the vector of each token, float16."""

_TOKENIZER_FILE = "tokenizer.json"


_CHARACTERS_A_TOKEN = 16


def cut(text: str, max_tokens: int) -> str:
    """Return the beginning of a text that can matter: a tokenizer reads all of a text before it cuts."""
    return text[: _CHARACTERS_A_TOKEN * max_tokens]


class StaticReader:
    """Reads texts by looking up the vectors of their tokens.

    ``weight`` [heads, D] and ``bias`` [heads] are those of the heads.

    Parameters
    ----------
    folder
        Of a static teacher, links resolved.
    state
        What was read from the folder.

    Raises
    ------
    TeacherError
        If a file is missing, or the weights are not those of the state's version.
    """

    backend = "look-up"

    def __init__(self, folder: Path, state: TeacherState) -> None:
        self.state = state
        for name in (HEADS_FILE, WORDS_FILE, _TOKENIZER_FILE):
            if not (folder / name).exists():
                msg = f"{folder}: no {name}; copy the whole folder again"
                raise TeacherError(msg)
        heads, words = load_file(folder / HEADS_FILE), load_file(folder / WORDS_FILE)
        weights = sorted([*words.items(), *((f"linear.{name}", tensor) for name, tensor in heads.items())])
        digest = digest_of(((name, tensor.tobytes()) for name, tensor in weights), self.state.heads)
        require_version(folder, digest, self.state)
        self.weight, self.bias = heads["weight"], heads["bias"]
        self._words = words["encoder.words"]
        self._tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER_FILE))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.state.max_tokens)
        self.timings: dict[str, float | str] = {}

    def read(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the vectors [N, D] of texts, each the first of a pair whose second is empty."""
        out = np.zeros((len(pairs), self._words.shape[1]))
        for row, (text, second) in enumerate(pairs):
            tokens = self._tokenizer.encode(
                cut(text, self.state.max_tokens), second
            ).ids  # one at a time: a batch would start threads
            out[row] = self._words[tokens].astype(np.float64).sum(axis=0)
        return out
