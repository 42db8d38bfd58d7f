"""What a teacher looked at in one sample: for each token the attention it got, and its gradient times input."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from models.teacher.model import Encoded, TeacherError, load_teacher
from models.teacher.text import Pair


class TokenShare(NamedTuple):
    """What one token had to do with a prediction."""

    token: str
    attention: float
    """Share of the last layer's attention, mean over its heads and over the tokens that are pooled; they sum to 1."""
    gradient_input: float
    """Gradient of the logit by the token's embedding, times the embedding: > 0 speaks for a click."""


class Explanation(NamedTuple):
    """Why a head says what it says of a pair."""

    head: str
    version: str
    logit: float
    """Calibrated."""
    probability: float
    tokens: list[TokenShare]


def explain(folder: Path, pair: Pair, head: str | None = None, device: str = "auto") -> Explanation:
    """Return what one head of a teacher looked at.

    Attention tells where information went, not what it was for; gradient times input is right for small changes of the
    text only. Neither is a cause.

    Parameters
    ----------
    folder
        Of the teacher.
    pair
        The texts of the sample.
    head
        Its name; None: the first.
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
        model.encoder.set_attn_implementation("eager")  # the fused ones keep no attention
    model.requires_grad_(False)
    encoded = Encoded(tokenizer, [pair], state.max_tokens)
    inputs = encoded.batch(torch.tensor([0]).numpy(), next(model.parameters()).device)
    ids = inputs.pop("input_ids")
    embedded = model.encoder.get_input_embeddings()(ids).requires_grad_()  # [1, L, D]
    out = model.encoder(inputs_embeds=embedded, **inputs, output_attentions=True)
    hidden = out.last_hidden_state
    attention = out.attentions[-1].mean(1)[0]  # [L, L], who looks at whom
    pooled = hidden[:, -1] if state.pooling == "last" else hidden.mean(1)
    received = attention[-1] if state.pooling == "last" else attention.mean(0)
    scaling = state.heads[name]
    logit = scaling.scale * model.linear(pooled.float())[0, list(state.heads).index(name)] + scaling.shift
    (gradient,) = torch.autograd.grad(logit, embedded)
    names = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    columns = received.detach().tolist(), (gradient * embedded).sum(-1)[0].detach().tolist()
    tokens = [TokenShare(*each) for each in zip(names, *columns, strict=True)]
    z = logit.detach()
    return Explanation(name, state.version, float(z), float(torch.sigmoid(z)), tokens)
