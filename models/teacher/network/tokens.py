"""Pairs of texts as token ids, each text tokenised once, and batches of them that need little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heft.models.teacher.network.encoded import Encoded
from heft.models.teacher.template import Pair

_REMEMBERED = 100_000  # texts
_PROBES = (Pair("red shoe", "a shoe, red"), Pair("", "1.5 kg"), Pair("naïve  Q", "x"))


class Inputs(NamedTuple):
    """A batch as a model takes it, and which of the pairs it holds."""

    rows: NDArray[np.int64]
    columns: dict[str, NDArray[np.int64]]
    """[B, L] each: ``input_ids``, ``attention_mask``, and ``token_type_ids`` where the model has them."""


class _Layout(NamedTuple):
    """How a tokenizer joins two texts: the tokens before, between and after them."""

    before: list[int]
    between: list[int]
    after: list[int]
    typed: bool


def padded(tokens: int, widths: Sequence[int]) -> int:
    """Return the width of a batch whose longest text has so many tokens: the least of ``widths`` that holds it.

    ``widths`` ascend, and the last one holds any text. If there are none, the width is that of the longest text.
    """
    return next(width for width in widths if width >= tokens) if widths else tokens


class Tokens:
    """A teacher's tokenizer for scoring, which remembers texts: queries and items come again and again.

    Parameters
    ----------
    tokenizer
        Of the teacher.
    max_tokens
        Longer pairs are cut, the longer of the two texts first.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._pad = tokenizer.pad_token_id or 0
        self._known: dict[str, list[int]] = {}
        self._layout = self._find_layout()

    def batches(self, pairs: Sequence[Pair], rows: int, widths: Sequence[int] = ()) -> Iterator[Inputs]:
        """Yield the pairs in batches, longest first, each padded to its longest.

        Parameters
        ----------
        pairs
            Texts.
        rows
            Most pairs of a batch.
        widths
            Tokens that a batch may have; see `padded`.
        """
        encoded = self._encode(pairs)
        lengths = np.array([len(ids) for ids, _ in encoded], np.int64)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), rows):
            some = order[start : start + rows]
            yield Inputs(some, self._padded([encoded[row] for row in some], lengths[some], widths))

    def _padded(
        self, encoded: Sequence[tuple[list[int], list[int] | None]], lengths: NDArray[np.int64], widths: Sequence[int]
    ) -> dict[str, NDArray[np.int64]]:
        width = padded(max(1, int(lengths.max())), widths)
        mask = np.arange(width)[None, :] < lengths[:, None]
        columns = {"input_ids": np.full(mask.shape, self._pad, np.int64), "attention_mask": mask.astype(np.int64)}
        columns["input_ids"][mask] = list(chain.from_iterable(ids for ids, _ in encoded))
        if encoded[0][1] is not None:
            columns["token_type_ids"] = np.zeros(mask.shape, np.int64)
            columns["token_type_ids"][mask] = list(chain.from_iterable(types or [] for _, types in encoded))
        return columns

    def _encode(self, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int] | None]]:
        layout = self._layout
        if layout is None:
            return self._whole(pairs)
        self._tokenise({text for pair in pairs for text in pair})
        out: list[tuple[list[int], list[int] | None]] = []
        cut: list[int] = []
        for row, (query, item) in enumerate(pairs):
            first = [*layout.before, *self._known[query], *layout.between]
            second = [*self._known[item], *layout.after]
            if len(first) + len(second) > self._max_tokens:
                cut.append(row)
            out.append((first + second, [0] * len(first) + [1] * len(second) if layout.typed else None))
        for row, encoded in zip(cut, self._whole([pairs[row] for row in cut]), strict=True):
            out[row] = encoded
        return out

    def _whole(self, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int] | None]]:
        columns = Encoded(self._tokenizer, list(pairs), self._max_tokens).columns
        types = columns.get("token_type_ids")
        return [(ids, None if types is None else types[n]) for n, ids in enumerate(columns.get("input_ids", []))]

    def _tokenise(self, texts: set[str]) -> None:
        missing = [text for text in texts if text not in self._known]
        if missing:
            if len(self._known) + len(missing) > _REMEMBERED:
                self._known = {text: self._known[text] for text in texts if text in self._known}
            ids = self._tokenizer(missing, add_special_tokens=False, verbose=False)["input_ids"]
            self._known.update(zip(missing, ids, strict=True))

    def _find_layout(self) -> _Layout | None:
        """Return how texts are put together; None if the tokenizer does not simply join them."""
        if self._tokenizer.sep_token is None:
            return None
        probe = _PROBES[0]
        self._tokenise(set(probe))
        first, second = (self._known[text] for text in probe)
        ((whole, types),) = self._whole([probe])
        special = len(whole) - len(first) - len(second)
        for before in range(special + 1):
            for between in range(special + 1 - before):
                at = before + len(first) + between
                parts = whole[:before], whole[before + len(first) : at], whole[at + len(second) :]
                if [*parts[0], *first, *parts[1], *second, *parts[2]] == whole:
                    self._layout = _Layout(*parts, types is not None)
                    if self._encode(_PROBES) == self._whole(_PROBES):
                        return self._layout
        return None
