"""Scoring, the hot path: pairs of texts in, quantised logits out, computed the fastest way that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.teacher.data import CLICK, CONVERSION, RELEVANCE
from models.teacher.logits import Logits, quantise, wire_version
from models.teacher.model import TOWERS, load_teacher
from models.teacher.text import Pair, Template
from models.teacher.tokens import Tokens
from models.teacher.ways import Timings, fastest, input_names, ways_of

_REMEMBERED = 100_000  # texts whose vectors are kept


class LastLayer(NamedTuple):
    """What the last layer alone says of labelled pairs: importance without a backward pass. Float64 [N] each."""

    probability: NDArray[np.float64]
    loss: NDArray[np.float64]
    """Log loss, in nats."""
    el2n: NDArray[np.float64]
    """|p - y|."""
    gradient_norm: NDArray[np.float64]
    """Of the log loss, in the weights and bias of the calibrated head: |p - y| (|v|^2 + 1)^(1/2)."""


class Engine:
    """A teacher that scores.

    ``version`` and ``template`` are those of its scores; ``way`` is the one taken, ``timings`` says how fast each was.

    Parameters
    ----------
    folder
        Of the teacher.
    device
        ``cpu``, ``cuda``, or ``auto``.
    ways
        ``exact`` or ``any``, to be timed, or the name of one.
    timer
        Seconds, of any origin; None: nothing is timed, the first way is taken.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        ways: Literal["exact", "any"] | str = "exact",
        timer: Callable[[], float] | None = None,
    ) -> None:
        model, tokenizer, self.state = load_teacher(folder, device)
        self.version = wire_version(self.state.version, self.state.data_ends_ms)
        self.template = Template(self.state.template)
        self._tokens = Tokens(tokenizer, self.state.max_tokens)
        allowed = [
            way
            for way in ways_of(model, folder, self.state.version)
            if ways == "any" or (ways == "exact" and way.exact) or way.name == ways
        ]
        self._texts: dict[str, NDArray[np.float32]] = {}  # unit vectors, of a teacher that reads texts apart
        self.timings: Timings = {}
        if timer is None or len(allowed) == 1:
            self.way, self._forward = allowed[0], allowed[0].prepare()
        else:
            self.way, self._forward, self.timings = fastest(allowed, input_names(model), timer)
        heads = list(self.state.heads)
        self._click = heads.index(CLICK if CLICK in heads else RELEVANCE if RELEVANCE in heads else heads[0])
        self._order = heads.index(CONVERSION) if CONVERSION in heads else None
        scales = np.array([head.scale for head in self.state.heads.values()])
        shifts = np.array([head.shift for head in self.state.heads.values()])
        with torch.inference_mode():
            linear = model.linear.float().cpu()
            # The head and its calibration in one: [D, heads] and [heads].
            self._weights = linear.weight.numpy().astype(np.float64).T * scales
            self._bias = linear.bias.numpy().astype(np.float64) * scales + shifts

    def score(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        """Return the calibrated logits of pairs, quantised; None where one is not finite."""
        z = self.logits(pairs)
        order = self._order
        return [quantise(float(row[self._click]), None if order is None else float(row[order])) for row in z]

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the calibrated logits [N, heads] of pairs."""
        return self.vectors(pairs) @ self._weights + self._bias

    def vectors(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the vectors [N, D] of pairs that the heads read."""
        if self.state.pooling != TOWERS:
            return self._pooled(pairs)
        texts = {text for pair in pairs for text in pair}
        missing = [text for text in texts if text not in self._texts]
        if missing:
            if len(self._texts) + len(missing) > _REMEMBERED:
                self._texts = {text: self._texts[text] for text in texts if text in self._texts}
            vectors = self._pooled([Pair(text, "") for text in missing])
            unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
            self._texts.update(zip(missing, unit, strict=True))
        query, item = (np.stack([self._texts[pair[side]] for pair in pairs]) for side in range(2))
        return query.astype(np.float64) * item

    def _pooled(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        out = np.zeros((len(pairs), len(self._weights)))
        for rows, columns in self._tokens.batches(pairs, self.way.batch, self.way.multiple):
            out[rows] = self._forward(columns)
        return out

    def examine(self, pairs: Sequence[Pair], labels: NDArray[np.float64]) -> LastLayer:
        """Return what the last layer says of labelled pairs, with the one forward pass that their score takes."""
        vectors = self.vectors(pairs)
        z = vectors @ self._weights[:, self._click] + self._bias[self._click]
        p = 1 / (1 + np.exp(-z))
        error = np.abs(p - labels)
        norm = np.sqrt((vectors**2).sum(1) + 1)
        return LastLayer(p, np.logaddexp(0, z) - labels * z, error, error * norm)
