"""Pairs of texts to vectors by running the model, the fastest way that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.network.tokens import Tokens
from heft.models.teacher.score.backends import Timings, fastest, input_names, run_through, ways_of
from heft.models.teacher.state import TOWERS
from heft.models.teacher.template import Pair


class ModelReader:
    """A teacher's model at work.

    ``way`` is the name of the one taken, ``timings`` says how fast each was; ``weight`` [heads, D] and ``bias``
    [heads] are those of the heads.

    Parameters
    ----------
    folder, device, ways, timer, together
        As those of `models.teacher.score.engine.Engine`.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        ways: Literal["exact", "any"] | str,
        timer: Callable[[], float] | None,
        together: int,
    ) -> None:
        model, tokenizer, self.state = load_teacher(folder, device)
        self._tokens = Tokens(tokenizer, self.state.max_tokens)
        with torch.inference_mode():
            linear = model.linear.float().cpu()
            self.weight, self.bias = linear.weight.numpy().copy(), linear.bias.numpy().copy()
        allowed = [
            way
            for way in ways_of(model, folder, self.state)
            if ways == "any" or (ways == "exact" and way.exact) or way.name == ways
        ]
        self.timings: Timings = {}
        columns = input_names(model)
        if timer is None or len(allowed) == 1:
            self._way, self._forward = allowed[0], allowed[0].prepare()
        else:
            self._way, self._forward, self.timings = fastest(allowed, columns, timer, self._logits, together)
        run_through(self._way, self._forward, columns)
        self.way = self._way.name

    def read(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the pooled vectors [N, D] of pairs."""
        out = np.zeros((len(pairs), self.weight.shape[1]))
        for rows, columns in self._tokens.batches(pairs, self._way.batch, self._way.widths):
            out[rows] = self._forward(columns)
        return out

    def _logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the heads say of vectors [B, D]; of texts read apart, of each and the next."""
        if self.state.pooling == TOWERS:
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = unit[1:] * unit[:-1]
        return vectors @ self.weight.T
