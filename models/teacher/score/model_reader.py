"""Pairs of texts to vectors by running the model, on the fastest backend of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.network.tokens import Tokens
from heft.models.teacher.score.backends import Timings, backends_of, fastest, input_names, run_through
from heft.models.teacher.state import TOWERS, TeacherState
from heft.models.teacher.template import Pair


class ModelReader:
    """A teacher's model, loaded and ready to read.

    ``backend`` names the one that was chosen, ``timings`` says how fast each was. ``weight`` [heads, D] and ``bias``
    [heads] are those of the heads.

    Parameters
    ----------
    folder
        Of the teacher, links resolved.
    state
        What was read from the folder.
    device, backends, timer, together
        As those of `models.teacher.score.engine.Engine`.
    """

    def __init__(
        self,
        folder: Path,
        state: TeacherState,
        device: str,
        backends: Literal["exact", "any"] | str,
        timer: Callable[[], float] | None,
        together: int,
    ) -> None:
        self.state = state
        model, tokenizer, _ = load_teacher(folder, device, state)
        self._tokens = Tokens(tokenizer, self.state.max_tokens)
        with torch.inference_mode():
            linear = model.linear.float().cpu()
            self.weight, self.bias = linear.weight.numpy().copy(), linear.bias.numpy().copy()
        allowed = [
            backend
            for backend in backends_of(model, folder, self.state)
            if backends == "any" or (backends == "exact" and backend.exact) or backend.name == backends
        ]
        self.timings: Timings = {}
        columns = input_names(model)
        if timer is None or len(allowed) == 1:
            self._chosen, self._forward = allowed[0], allowed[0].prepare()
        else:
            self._chosen, self._forward, self.timings = fastest(allowed, columns, timer, self._logits, together)
        run_through(self._chosen, self._forward, columns)
        self.backend = self._chosen.name

    def read(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the pooled vectors [N, D] of pairs."""
        out = np.zeros((len(pairs), self.weight.shape[1]))
        for rows, columns in self._tokens.batches(pairs, self._chosen.batch, self._chosen.widths):
            out[rows] = self._forward(columns)
        return out

    def _logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the heads' logits of vectors [B, D]; where texts are read apart, of each text beside the next one."""
        if self.state.pooling == TOWERS:
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = unit[1:] * unit[:-1]
        return vectors @ self.weight.T
