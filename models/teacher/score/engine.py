"""Scoring, the hot path: pairs of texts in, quantised logits out, computed the fastest way that this machine has."""

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

_REMEMBERED = 100_000  # texts whose vectors are kept; a teacher comes with half as many at most
_READ_TOGETHER = 4_096
_LEAST_LENGTH = 1e-12


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

    ``version`` and ``template`` are those of its scores; ``way`` is the one taken, ``timings`` says how fast each was;
    ``apart``: it reads the two texts of a pair apart, and remembers them (`at_once`); ``read_ahead``: those of its own
    log, which it has read when it is made; ``static``: no model runs, and it reads any text at once.

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
    together
        Pairs that are scored together: the way that is the fastest for so many is taken.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        ways: Literal["exact", "any"] | str = "exact",
        timer: Callable[[], float] | None = None,
        together: int = 64,
    ) -> None:
        folder = folder.resolve()  # all files of one teacher, even where a link is turned to another meanwhile
        self.static = require_state(folder).pooling == STATIC
        self._reader = StaticReader(folder) if self.static else _model_reader(folder, device, ways, timer, together)
        self.state, self.way, self.timings = self._reader.state, self._reader.way, self._reader.timings
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
        """Return what `score` would of pairs whose texts have both been read, None of others: the model is not asked.

        One that is ``static`` reads the others too. May be called from any thread, and waits for nothing: a text that
        is new to a static one takes some ten microseconds, a long one a millisecond.
        """
        if self.static:
            return self.score(pairs)
        read = self._remembered(pairs)
        ready = [pair for pair in pairs if pair.query in read and pair.item in read]
        said = dict(zip(ready, self._quantised(self._said(_products(ready, read))), strict=True)) if ready else {}
        return [said.get(pair) for pair in pairs]

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the calibrated logits [N, heads] of pairs."""
        return self._said(self.vectors(pairs))

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

    def _said(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the calibrated logits [N, heads] of vectors: each row by itself, to the last bit.

        A matrix product would add in another order for another N, and a pair get another score at once than later.
        """
        logits: NDArray[np.float64] = np.vecdot(vectors[:, None], self._weights.T) + self._bias
        return logits

    def _quantised(self, z: NDArray[np.float64]) -> list[Logits | None]:
        order = self._order
        return [quantise(float(row[self._click]), None if order is None else float(row[order])) for row in z]

    def examine(self, pairs: Sequence[Pair], labels: NDArray[np.float64]) -> LastLayer:
        """Return what the last layer says of labelled pairs, with the one forward pass that their score takes."""
        vectors = self.vectors(pairs)
        z = vectors @ self._weights[:, self._click] + self._bias[self._click]
        p = 1 / (1 + np.exp(-z))
        error = np.abs(p - labels)
        norm = np.sqrt((vectors**2).sum(1) + 1)
        return LastLayer(p, np.logaddexp(0, z) - labels * z, error, error * norm)


def _model_reader(
    folder: Path, device: str, ways: Literal["exact", "any"] | str, timer: Callable[[], float] | None, together: int
) -> ModelReader:
    from heft.models.teacher.score.model_reader import ModelReader  # torch

    return ModelReader(folder, device, ways, timer, together)


def _products(pairs: Sequence[Pair], read: dict[str, Vector]) -> NDArray[np.float64]:
    """Return the vectors [N, D] of pairs whose texts have been read."""
    query, item = (np.stack([read[pair[side]] for pair in pairs]) for side in range(2))
    return query.astype(np.float64) * item
