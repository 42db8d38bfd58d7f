"""The encoder of a static teacher while it is trained: a vector for each token, in the place of a transformer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from heft.models.teacher.network.encoded import Apart, Encoded
from heft.models.teacher.state import TeacherError

_SETTLED_TOGETHER = 8_192  # tokens


class StaticEncoder(nn.Module):
    """A table of token vectors, which is called like an encoder of transformers.

    Parameters
    ----------
    words
        The table [V, R], which is not trained.
    learns
        Ids of the tokens whose vectors are trained. The trained parameter is their distance from the table, so weight
        decay draws them back to it.
    """

    words: torch.Tensor
    row: torch.Tensor

    def __init__(self, words: torch.Tensor, learns: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.config = SimpleNamespace(hidden_size=words.shape[1])
        self.moved: nn.Embedding | None = None
        if learns is not None:
            row = torch.zeros(len(words), dtype=torch.int64)
            row[learns] = torch.arange(1, len(learns) + 1)
            self.register_buffer("row", row, persistent=False)
            self.moved = nn.Embedding(len(learns) + 1, words.shape[1], padding_idx=0)  # row 0: all other tokens
            nn.init.zeros_(self.moved.weight)

    def get_input_embeddings(self) -> Any:
        """Return the function from token ids [T, L] to their vectors [T, L, R], float32."""
        return self._look_up

    def _look_up(self, ids: torch.Tensor) -> torch.Tensor:
        words = self.words[ids].float()
        return words if self.moved is None else words + self.moved(self.row[ids])

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        **_: torch.Tensor,
    ) -> SimpleNamespace:
        """Return the tokens' vectors as the last hidden state; each token attends equally to all tokens of its text."""
        hidden = inputs_embeds if input_ids is None else self._look_up(input_ids)
        out = SimpleNamespace(last_hidden_state=hidden, attentions=None)
        if output_attentions and attention_mask is not None:
            shares = attention_mask / attention_mask.sum(1, keepdim=True)
            out.attentions = [shares[:, None, None, :].expand(-1, 1, shares.shape[1], -1)]
        return out

    @torch.no_grad()
    def settled(self) -> StaticEncoder:
        """Return an encoder whose table, in float16, contains what was learned."""
        every = torch.arange(len(self.words), device=self.words.device)
        return StaticEncoder(torch.cat([self._look_up(some).half() for some in every.split(_SETTLED_TOGETHER)]))  # type: ignore[no-untyped-call]


def static_encoder(encoder: Any, tokenizer: Any, training: Encoded) -> StaticEncoder:
    """Return an encoder of a base's token embeddings; those of tokens that occur in training can be learned.

    Raises
    ------
    TeacherError
        If the base's tokenizer cannot be loaded without transformers, or would then read a text differently.
    """
    embeddings = encoder.get_input_embeddings().weight
    faults = {
        "has no separator": tokenizer.sep_token is None,  # two texts would be joined by words
        "is not a fast one": not tokenizer.is_fast,
        "cuts on the left": tokenizer.truncation_side != "right",
        "has tokens that the base has no vectors for": len(tokenizer) > len(embeddings),
    }
    for what, is_so in faults.items():
        if is_so:
            msg = f"static takes a base such as MiniLM or BERT: this one's tokenizer {what}"
            raise TeacherError(msg)
    assert isinstance(training, Apart), "a static teacher reads texts apart"
    in_training = sorted({token for ids in training.texts.columns["input_ids"] for token in ids})
    words = embeddings.detach()
    # Scaled to a mean square length of 1, so that a step moves the tokens of any base equally far.
    return StaticEncoder(words / words.square().sum(1).mean().sqrt(), torch.tensor(in_training))
