"""Pairs of texts as a model takes them: tokens in batches with little padding, or vectors of texts read before."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from heft.models.teacher.data.examples import Pairs
from heft.models.teacher.network.static_reader import cut
from heft.models.teacher.state import STATIC, TOWERS

SCORE_TOKENS = 4_096
"""Tokens of a batch when nothing is trained, padding included."""


class Encoded:
    """Pairs of texts as token ids, and batches of them.

    Parameters
    ----------
    tokenizer
        Of the base.
    pairs
        Texts of query and item.
    max_tokens
        Longer pairs are cut, the longer of the two texts first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pairs: Pairs, max_tokens: int) -> None:
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        queries, items = [query for query, _ in pairs], [item for _, item in pairs]
        # Without a separator token, as of models that read from left to right, the tokenizer would just join the texts.
        if tokenizer.sep_token is None and pairs:
            encoded = tokenizer([f"{q} | {t}" for q, t in pairs], truncation=True, max_length=max_tokens)
        elif pairs:
            encoded = tokenizer(queries, items, truncation="longest_first", max_length=max_tokens)
        else:
            encoded = {}
        self.columns = {name: list(encoded[name]) for name in encoded if name != "attention_mask"}
        self.lengths = np.array([len(ids) for ids in self.columns.get("input_ids", [])], np.int64)

    def batch(self, rows: NDArray[np.int64], device: torch.device, multiple: int = 1) -> dict[str, torch.Tensor]:
        """Return some of the texts as tensors [B, L], padded to the longest of them and on to a ``multiple``."""
        width = max(1, int(self.lengths[rows].max()))
        width = max(width, min(-(-width // multiple) * multiple, self._max_tokens))
        mask = np.arange(width)[None, :] < self.lengths[rows][:, None]
        out = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, column in self.columns.items():
            filled = np.full((len(rows), width), self._tokenizer.pad_token_id if name == "input_ids" else 0, np.int64)
            filled[mask] = np.concatenate([column[row] for row in rows])
            out[name] = torch.from_numpy(filled)
        return {name: tensor.to(device) for name, tensor in out.items()}

    def batches_by_length(self) -> list[NDArray[np.int64]]:
        """Return all rows in batches of about `SCORE_TOKENS` tokens, longest first: lack of memory shows at once."""
        order = np.argsort(-self.lengths, kind="stable")
        batches = []
        while len(order):
            take = max(1, SCORE_TOKENS // max(1, int(self.lengths[order[0]])))
            batches.append(order[:take])
            order = order[take:]
        return batches


class Apart(Encoded):
    """Pairs whose texts are read apart, each text of a batch once.

    Parameters
    ----------
    tokenizer, pairs, max_tokens
        As those of `Encoded`; each text alone is cut.

    Attributes
    ----------
    texts, sides
        The unique texts, and the numbers [N, 2] of the two texts of each pair.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pairs: Pairs, max_tokens: int) -> None:
        at = {text: n for n, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        self.texts = Encoded(tokenizer, [(text, "") for text in at], max_tokens)
        self.sides = np.array([[at[query], at[item]] for query, item in pairs], np.int64).reshape(-1, 2)
        self.lengths = self.texts.lengths[self.sides].max(axis=1, initial=0)

    def batch(self, rows: NDArray[np.int64], device: torch.device, multiple: int = 1) -> dict[str, torch.Tensor]:
        """Return the texts of some pairs as tensors [T, L], and as ``sides`` [B, 2] which two make a pair."""
        used, sides = np.unique(self.sides[rows], return_inverse=True)
        return self.texts.batch(used, device, multiple) | {"sides": torch.from_numpy(sides.reshape(-1, 2)).to(device)}


class Read(Apart):
    """Pairs whose texts the encoder has read already, for training that leaves the encoder as it is.

    Parameters
    ----------
    whole
        All pairs whose texts were read.
    rows
        Which of them these are.
    read
        What the encoder made of all texts [T, R].
    """

    def __init__(self, whole: Apart, rows: slice, read: torch.Tensor) -> None:
        self.sides, self.lengths = whole.sides[rows], whole.lengths[rows]
        self.read = read

    def batch(self, rows: NDArray[np.int64], device: torch.device, multiple: int = 1) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return what was read of the texts of some pairs [T, R], and as ``sides`` [B, 2] which two make a pair."""
        used, sides = np.unique(self.sides[rows], return_inverse=True)
        given = {"read": self.read[used], "sides": torch.from_numpy(sides.reshape(-1, 2))}
        return {name: tensor.to(device) for name, tensor in given.items()}


def encode(tokenizer: PreTrainedTokenizerFast, pairs: Pairs, max_tokens: int, pooling: str) -> Encoded:
    """Return pairs as a model of this pooling reads them."""
    if pooling == STATIC:
        pairs = [(cut(query, max_tokens), cut(item, max_tokens)) for query, item in pairs]
    return (Apart if pooling in (STATIC, TOWERS) else Encoded)(tokenizer, pairs, max_tokens)
