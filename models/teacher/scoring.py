"""Scoring, the hot path: pairs of texts in, quantised logits out, computed the fastest way that this machine has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.teacher.data import CLICK, CONVERSION, RELEVANCE
from models.teacher.logits import Logits, quantise, wire_version
from models.teacher.model import Encoded, load_teacher, predict
from models.teacher.text import Pair, Template


class Engine:
    """A teacher that scores.

    Parameters
    ----------
    folder
        Of the teacher.
    device
        ``cpu``, ``cuda``, or ``auto``.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self._model, self._tokenizer, self.state = load_teacher(folder, device)
        self.version = wire_version(self.state.version, self.state.data_ends_ms)
        self.template = Template(self.state.template)
        heads = list(self.state.heads)
        self._click = heads.index(CLICK if CLICK in heads else RELEVANCE if RELEVANCE in heads else heads[0])
        self._order = heads.index(CONVERSION) if CONVERSION in heads else None

    def score(self, pairs: Sequence[Pair]) -> list[Logits | None]:
        """Return the calibrated logits of pairs; None where one is not finite."""
        raw = predict(self._model, Encoded(self._tokenizer, list(pairs), self.state.max_tokens))
        scales = [(head.scale, head.shift) for head in self.state.heads.values()]
        out = []
        for row in raw:
            z = [scale * float(each) + shift for each, (scale, shift) in zip(row, scales, strict=True)]
            out.append(quantise(z[self._click], None if self._order is None else z[self._order]))
        return out
