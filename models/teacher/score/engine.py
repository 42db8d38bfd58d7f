"""Scoring, the hot path: pairs of texts in, quantised logits out, on the fastest backend of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heft.models.teacher.data.examples import CLICK, CONVERSION, RELEVANCE
from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits, quantise, wire_version
from heft.models.teacher.network.static_reader import StaticReader
from heft.models.teacher.state import STATIC, TOWERS, require_state
from heft.models.teacher.template import Pair, Template
from heft.models.teacher.text_vectors import TextVectors, Vector, read_texts

if TYPE_CHECKING:
    from heft.models.teacher.score.model_reader import ModelReader

_REMEMBERED = 100_000  # texts whose vectors are kept; a teacher comes with at most half as many
_READ_TOGETHER = 4_096
_LEAST_LENGTH = 1e-12


class LastLayer(NamedTuple):
    """How labelled pairs look to the last layer alone: importance without a backward pass. Float64 [N] each."""

    probability: NDArray[np.float64]
    loss: NDArray[np.float64]
    """Log loss, in nats."""
    el2n: NDArray[np.float64]
    """|p - y|."""
    gradient_norm: NDArray[np.float64]
    """Of the log loss by the weights and the bias of the calibrated head: |p - y| (|v|^2 + 1)^(1/2)."""


class Engine:
    """A teacher that scores.

    Attributes
    ----------
    version, template
        Those that its scores carry.
    backend, timings
        The name of the backend that was chosen, and how fast each was.
    apart
        Whether it reads the two texts of a pair apart, and remembers them (`at_once`).
    static
        Whether no model runs, so that it reads any text at once.
    read_ahead
        Texts of its own log, which it has read before it scores.

    Parameters
    ----------
    folder
        Of the teacher.
    device
        ``cpu``, ``cuda``, or ``auto``.
    backends
        ``exact`` or ``any`` of them are timed; or the name of one.
    timer
        Returns seconds, from any origin. None: nothing is timed, and the first backend is taken.
    together
        Pairs that are scored together: the backend that is the fastest for so many is taken.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        backends: Literal["exact", "any"] | str = "exact",
        timer: Callable[[], float] | None = None,
        together: int = 64,
    ) -> None:
        folder = folder.resolve()  # all files are then of one teacher, even if the link changes meanwhile
        self.state = require_state(folder)
        self.static = self.state.pooling == STATIC
        self._reader: StaticReader | ModelReader
        if self.static:
            self._reader = StaticReader(folder, self.state)
        else:
            from heft.models.teacher.score.model_reader import ModelReader  # torch

            self._reader = ModelReader(folder, self.state, device, backends, timer, together)
        self.backend, self.timings = self._reader.backend, self._reader.timings
        self.version = wire_version(self.state.version, self.state.data_ends_ms)
        self.template = Template(self.state.template)
        self.apart = self.state.pooling in (STATIC, TOWERS)
        self._texts = TextVectors(_REMEMBERED)  # of unit length
        heads = list(self.state.heads)
        self._click = heads.index(CLICK if CLICK in heads else RELEVANCE if RELEVANCE in heads else heads[0])
        self._order = heads.index(CONVERSION) if CONVERSION in heads else None
        scales = np.array([head.scale for head in self.state.heads.values()])
        shifts = np.array([head.shift for head in self.state.heads.values()])
        # The head and its calibration in one: [D, heads] and [heads].
        self._weights = self._reader.weight.astype(np.float64).T * scales
        self._bias = self._reader.bias.astype(np.float64) * scales + shifts
        self.read_ahead = read_texts(folder) if self.apart and not self.static else ()
        for begin in range(0, len(self.read_ahead), _READ_TOGETHER):
            self._read(self.read_ahead[begin : begin + _READ_TOGETHER])

    @property
    def description(self) -> TeacherDescription:
        """What the teacher says of itself."""
        return TeacherDescription(self.version, self.template.text, self.apart, self.read_ahead, self.static)

    def score(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        """Return the calibrated logits of pairs, quantised; None where one is not finite."""
        return self._quantised(self.logits(pairs))

    def at_once(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        """Return what `score` would of pairs whose texts have both been read, and None of others; no model runs.

        A ``static`` teacher scores all pairs. May be called from any thread, and waits for nothing: a text that is new
        to a static teacher takes some ten microseconds, a long one a millisecond.
        """
        if self.static:
            return self.score(pairs)
        read = self._remembered(pairs)
        ready = [pair for pair in pairs if pair.query in read and pair.item in read]
        known = dict(zip(ready, self._quantised(self._logits(_products(ready, read))), strict=True)) if ready else {}
        return [known.get(pair) for pair in pairs]

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the calibrated logits [N, heads] of pairs."""
        return self._logits(self.vectors(pairs))

    def vectors(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the vectors [N, D] of pairs that the heads read."""
        if not self.apart or not pairs:
            return self._reader.read(pairs)
        read = self._remembered(pairs)
        if missing := [text for text in dict.fromkeys(chain(*pairs)) if text not in read]:
            read |= self._read(missing)
        return _products(pairs, read)

    def _read(self, texts: Sequence[str]) -> dict[str, Vector]:
        vectors = self._reader.read([Pair(text, "") for text in texts])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = (vectors / np.maximum(lengths, _LEAST_LENGTH)).astype(np.float32)
        read = {text: vector.copy() for text, vector in zip(texts, unit, strict=True)}
        for text, vector in read.items():
            self._texts.keep(text, vector)
        return read

    def _remembered(self, pairs: Sequence[Pair]) -> dict[str, Vector]:
        found = {text: self._texts.get(text) for text in dict.fromkeys(chain(*pairs))}
        return {text: vector for text, vector in found.items() if vector is not None}

    def _logits(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the calibrated logits [N, heads] of vectors, each row computed by itself.

        A matrix product would add in another order for another N: the same pair would then get another last bit in
        another batch.
        """
        logits: NDArray[np.float64] = np.vecdot(vectors[:, None], self._weights.T) + self._bias
        return logits

    def _quantised(self, z: NDArray[np.float64]) -> list[Logits | None]:
        order = self._order
        return [quantise(float(row[self._click]), None if order is None else float(row[order])) for row in z]

    def examine(self, pairs: Sequence[Pair], labels: NDArray[np.float64]) -> LastLayer:
        """Return how labelled pairs look to the last layer, at the cost of the forward pass that scores them."""
        vectors = self.vectors(pairs)
        z = vectors @ self._weights[:, self._click] + self._bias[self._click]
        p = 1 / (1 + np.exp(-z))
        error = np.abs(p - labels)
        norm = np.sqrt((vectors**2).sum(1) + 1)
        return LastLayer(p, np.logaddexp(0, z) - labels * z, error, error * norm)


def _products(pairs: Sequence[Pair], read: dict[str, Vector]) -> NDArray[np.float64]:
    """Return the vectors [N, D] of pairs whose texts have been read."""
    query, item = (np.stack([read[pair[side]] for pair in pairs]) for side in range(2))
    return query.astype(np.float64) * item
