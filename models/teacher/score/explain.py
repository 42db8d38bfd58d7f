"""What a teacher looked at in one sample: the attention to each token, and its gradient times input."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from heft.models.teacher.network.encoded import encode
from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.state import TeacherError
from heft.models.teacher.template import Pair


class TokenShare(NamedTuple):
    """How much one token counted in a prediction."""

    token: str
    attention: float
    """Share of the last layer's attention: the mean over its heads and the pooled tokens. Shares of a text sum to 1."""
    gradient_input: float
    """Gradient of the logit by the token's embedding, times the embedding; above 0 it raises the prediction."""


class Explanation(NamedTuple):
    """A prediction of a head for a pair, and what counted in it."""

    head: str
    version: str
    logit: float
    """Calibrated."""
    probability: float
    tokens: list[TokenShare]


def explain(folder: Path, pair: Pair, head: str | None = None, device: str = "auto") -> Explanation:
    """Return what one head of a teacher looked at.

    Attention tells where information went, not what it was used for. Gradient times input holds only for small changes
    of the text. Neither proves a cause.

    Parameters
    ----------
    folder
        Of the teacher.
    pair
        The texts of the sample.
    head
        Name of the head; None: the first one.
    device
        ``cpu``, ``cuda``, or ``auto``.

    Raises
    ------
    TeacherError
        If there is no such head.
    """
    model, tokenizer, state = load_teacher(folder, device)
    name = head or next(iter(state.heads))
    if name not in state.heads:
        msg = f"the teacher has no head {name!r}; it has {', '.join(state.heads)}"
        raise TeacherError(msg)
    if hasattr(model.encoder, "set_attn_implementation"):
        model.encoder.set_attn_implementation("eager")  # fused attention does not keep its weights
    model.requires_grad_(False)
    encoded = encode(tokenizer, [pair], state.max_tokens, state.pooling)
    inputs = encoded.batch(np.array([0]), next(model.parameters()).device)
    ids = inputs.pop("input_ids")  # [1, L], or [2, L] where the texts are read apart
    embedded = model.encoder.get_input_embeddings()(ids).requires_grad_()
    vector, attention = model.vectors_and_attention(embedded, inputs)
    there = inputs["attention_mask"].bool()
    if state.pooling == "last":
        received = attention[:, -1]
    else:
        received = (attention * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)  # [T, L]
    scaling = state.heads[name]
    logit = scaling.scale * model.linear(vector)[0, list(state.heads).index(name)] + scaling.shift
    (gradient,) = torch.autograd.grad(logit, embedded)
    names = tokenizer.convert_ids_to_tokens(ids[there].tolist())
    columns = received[there].detach().tolist(), (gradient * embedded).sum(-1)[there].detach().tolist()
    tokens = [TokenShare(*each) for each in zip(names, *columns, strict=True)]
    z = logit.detach()
    return Explanation(name, state.version, float(z), float(torch.sigmoid(z)), tokens)
