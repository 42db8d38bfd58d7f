"""The model: an encoder or a decoder of transformers, with one linear head for each kind of label.

Here is how it computes. Where it comes from is in `bases`, how it is kept in `teacher_folder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heft.models.teacher.network import processes
from heft.models.teacher.network.encoded import Apart, Encoded, Read

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all, and a note to show beside them."""


class Model(nn.Module):
    """An encoder with a linear head for each kind of label.

    Parameters
    ----------
    encoder
        What transformers loaded, or a `StaticEncoder`.
    heads
        Names of the heads.
    pooling
        ``mean`` over the tokens, ``last`` token for a model that reads from left to right, `TOWERS` or `STATIC`.
    dropout
        Share of the pooled vector that is dropped in training.
    projected
        Whether a learned matrix makes a text's vector of what `read` returns: the pooled vector (what the words mean
        together) beside the mean of the tokens' embeddings (which words there are). The matrix begins as the one that
        takes the pooled vector alone.
    """

    def __init__(
        self, encoder: Any, heads: Sequence[str], pooling: str, dropout: float = 0.1, projected: bool = False
    ) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # it pools the first token, and in many bases it is not trained
        self.encoder = encoder
        self.heads = tuple(heads)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        width = encoder.config.hidden_size
        self.projection: nn.Linear | None = None
        self.read_width = width
        if projected:
            self.read_width += encoder.get_input_embeddings().embedding_dim
            self.projection = nn.Linear(self.read_width, width, bias=False)
            nn.init.eye_(self.projection.weight)
        self.linear = nn.Linear(width, len(heads))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def vectors(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the vectors [B, D] of texts [B, L], or of pairs where ``sides`` [B, 2] names the two texts of each.

        Texts that were read before come as ``read`` [T, R], in the place of their tokens.
        """
        return self._compared(inputs["read"] if "read" in inputs else self.read(inputs), inputs)

    def read(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the encoder makes of texts [T, L], before the projection and the heads: [T, R]."""
        texts = {name: tensor for name, tensor in inputs.items() if name != "sides"}
        hidden = self.encoder(**texts).last_hidden_state
        embedded = None if self.projection is None else self.encoder.get_input_embeddings()(inputs["input_ids"])
        return self._pooled(hidden, inputs, embedded)

    def vectors_and_attention(
        self, embedded: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors of texts whose tokens are ``embedded`` [T, L, D], and the attention of tokens to tokens.

        The attention [T, L, L] is that of the last layer, the mean over its heads.
        """
        texts = {name: tensor for name, tensor in inputs.items() if name != "sides"}
        out = self.encoder(inputs_embeds=embedded, **texts, output_attentions=True)
        return self._compared(self._pooled(out.last_hidden_state, inputs, embedded), inputs), out.attentions[-1].mean(1)

    def _pooled(
        self, hidden: torch.Tensor, inputs: dict[str, torch.Tensor], embedded: torch.Tensor | None
    ) -> torch.Tensor:
        mask = inputs["attention_mask"]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "last":
            pooled = hidden[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1].float()
        else:
            pooled = ((hidden * weights).sum(1) / weights.sum(1)).float()
        if self.projection is None or embedded is None:
            return pooled
        words = ((embedded * weights).sum(1) / weights.sum(1)).float()
        return torch.cat([nn.functional.normalize(pooled), nn.functional.normalize(words)], 1)

    def _compared(self, read: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors = read
        if self.projection is not None:
            vectors = self.projection(read.to(self.projection.weight.dtype)).float()
        if "sides" not in inputs:
            return vectors
        unit = nn.functional.normalize(vectors)
        return unit[inputs["sides"][:, 0]] * unit[inputs["sides"][:, 1]]

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return logits [B, heads], not calibrated."""
        logits: torch.Tensor = self.linear(self.dropout(self.vectors(inputs)))
        return logits


def device_of(name: str) -> torch.device:
    """Return a device by name; ``auto`` is a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@torch.inference_mode()
def predict(model: Model, encoded: Encoded, progress: Progress | None = None, vectors: bool = False) -> NDArray[Any]:
    """Return the logits [N, heads] of encoded pairs, not calibrated; or their ``vectors`` [N, D].

    The model's mode is kept.
    """
    if isinstance(encoded, Apart):
        if isinstance(encoded, Read):
            every = encoded.batch(np.arange(len(encoded.lengths)), next(model.parameters()).device)
            pairs = model.vectors(every).cpu()
        else:
            unit = nn.functional.normalize(torch.from_numpy(predict(model, encoded.texts, progress, vectors=True)))
            pairs = unit[encoded.sides[:, 0]] * unit[encoded.sides[:, 1]]
        return pairs.numpy() if vectors else nn.functional.linear(pairs, *_on_cpu(model.linear)).numpy()
    width = model.encoder.config.hidden_size if vectors else len(model.heads)
    return _of_batches(model, model.vectors if vectors else model, width, encoded, progress)


@torch.inference_mode()
def read(model: Model, encoded: Encoded, progress: Progress | None = None) -> NDArray[np.float32]:
    """Return what the encoder makes of texts, [N, R]; see `Model.read`."""
    return _of_batches(model, model.read, model.read_width, encoded, progress)


def _of_batches(
    model: Model,
    compute: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    width: int,
    encoded: Encoded,
    progress: Progress | None,
) -> NDArray[np.float32]:
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    out = np.zeros((len(encoded.lengths), width), np.float32)
    done = 0
    for rows in encoded.batches_by_length()[processes.number() :: processes.count()]:
        out[rows] = compute(encoded.batch(rows, device)).cpu().numpy()
        done += len(rows)
        if progress is not None:
            progress(done * processes.count(), len(out), "")
    model.train(training)
    return processes.add(out)


def _on_cpu(linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    return linear.weight.cpu(), linear.bias.cpu()


@torch.inference_mode()
def predict_loss(model: nn.Module, encoded: Encoded, loss: Callable[[NDArray[np.int64]], torch.Tensor]) -> float:
    """Return the mean loss over batches of encoded texts; the model's mode is kept."""
    training = model.training
    model.eval()
    losses = [float(loss(rows)) for rows in encoded.batches_by_length()]
    model.train(training)
    return float(np.mean(losses))
