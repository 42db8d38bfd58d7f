"""From a base to a model that is not trained yet, and the texts as this model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from heft.models.teacher.data.examples import HEADS, Examples
from heft.models.teacher.network.bases import Base, load_base, pooling_of
from heft.models.teacher.network.encoded import Apart, Encoded, Read, encode
from heft.models.teacher.network.model import Model, Progress, device_of, read
from heft.models.teacher.network.static_encoder import static_encoder
from heft.models.teacher.settings import FinetuneSettings
from heft.models.teacher.state import STATIC, TOWERS


class Parts(NamedTuple):
    """The pairs of the three parts of a `Split`, as a model reads them."""

    train: Encoded
    validation: Encoded
    test: Encoded


class Trainee(NamedTuple):
    """A model that is to be trained, and the texts as it reads them."""

    model: Model
    tokenizer: Any
    heads: list[int]
    """Which of `HEADS` the heads of the model are, in their order."""
    encoded: Parts


def trainee_of(
    base: Base,
    parts: tuple[Examples, Examples, Examples],
    heads: list[int],
    settings: FinetuneSettings,
    progress: Progress | None,
) -> Trainee:
    """Return a model made of a base, on its device, and the three parts as it reads them.

    Random weights come from torch's generator: seed it first.

    Raises
    ------
    TeacherError
        If the base cannot be loaded, or cannot be made a static teacher of.
    """
    train = parts[0]
    encoder, tokenizer = load_base(
        base, lambda: [text for pair in train.pairs for text in pair], settings.max_tokens, settings.dropout
    )
    pooling = STATIC if settings.static else TOWERS if settings.apart else pooling_of(encoder, base.teacher)
    names = [HEADS[head] for head in heads]
    device = device_of(settings.device)
    if settings.frozen:
        model = Model(encoder, names, pooling, settings.dropout, projected=True).to(device)
        return Trainee(model, tokenizer, heads, _read_once(model, tokenizer, parts, settings.max_tokens, progress))
    encoded = Parts(*(encode(tokenizer, part.pairs, settings.max_tokens, pooling) for part in parts))
    if settings.static:
        encoder = static_encoder(encoder, tokenizer, encoded.train)
    model = Model(encoder, names, pooling, settings.dropout).to(device)
    return Trainee(model, tokenizer, heads, encoded)


def _read_once(
    model: Model, tokenizer: Any, parts: Sequence[Examples], max_tokens: int, progress: Progress | None
) -> Parts:
    """Return the parts with each text read by the encoder once, in however many parts it is."""
    whole = Apart(tokenizer, [pair for part in parts for pair in part.pairs], max_tokens)
    vectors = torch.from_numpy(read(model, whole.texts, progress))
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return Parts(*(Read(whole, slice(end - len(part), end), vectors) for part, end in zip(parts, ends, strict=True)))
