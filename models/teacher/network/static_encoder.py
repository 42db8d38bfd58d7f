"""What a static teacher learns with in the place of a transformer: a vector for each token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from heft.models.teacher.network.encoded import Apart, Encoded
from heft.models.teacher.state import TeacherError

_SETTLED_TOGETHER = 8_192  # tokens


class StaticEncoder(nn.Module):
    """A table of the tokens' vectors; called as an encoder of transformers is.

    Parameters
    ----------
    words
        The table [V, R], which stays as it is.
    learns
        Tokens whose vectors move away from the table's. How far is a parameter of its own: weight decay draws them back
        to where they were.
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
        """Return what looks tokens up: from ids [T, L] to vectors [T, L, R], float32."""
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
        """Return the tokens' vectors as the last hidden state; each token heeds all of its text alike."""
        hidden = inputs_embeds if input_ids is None else self._look_up(input_ids)
        out = SimpleNamespace(last_hidden_state=hidden, attentions=None)
        if output_attentions and attention_mask is not None:
            shares = attention_mask / attention_mask.sum(1, keepdim=True)
            out.attentions = [shares[:, None, None, :].expand(-1, 1, shares.shape[1], -1)]
        return out

    @torch.no_grad()
    def settled(self) -> StaticEncoder:
        """Return an encoder whose table, float16, holds what was learned."""
        every = torch.arange(len(self.words), device=self.words.device)
        return StaticEncoder(torch.cat([self._look_up(some).half() for some in every.split(_SETTLED_TOGETHER)]))  # type: ignore[no-untyped-call]


def static_encoder(encoder: Any, tokenizer: Any, training: Encoded) -> StaticEncoder:
    """Return the vectors that a base's tokens have before it reads them together; those met in training can be learned.

    Raises
    ------
    TeacherError
        If the base's tokenizer could not be loaded without transformers, or would read a text otherwise then.
    """
    embeddings = encoder.get_input_embeddings().weight
    wrong = {
        "has no separator": tokenizer.sep_token is None,  # it would put words of its own between two texts
        "is not a fast one": not tokenizer.is_fast,
        "cuts on the left": tokenizer.truncation_side != "right",
        "has tokens that the base has no vectors for": len(tokenizer) > len(embeddings),
    }
    for what, so in wrong.items():
        if so:
            msg = f"static takes a base such as MiniLM or BERT: this one's tokenizer {what}"
            raise TeacherError(msg)
    assert isinstance(training, Apart), "a static teacher reads texts apart"
    met = sorted({token for ids in training.texts.columns["input_ids"] for token in ids})
    words = embeddings.detach()
    # Of length 1, so that a step takes a token of any base as far.
    return StaticEncoder(words / words.square().sum(1).mean().sqrt(), torch.tensor(met))
