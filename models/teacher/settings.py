"""How a teacher is pre-trained and fine-tuned: every choice and its default, without the libraries that train."""

from __future__ import annotations

import msgspec


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is trained."""

    keep_negatives: float = 1.0
    """Share in (0, 1] of the unclicked samples to learn from; offsets correct for the others."""
    epochs: int = 2
    batch: int = 32
    """Examples of a forward pass."""
    accumulate: int = 1
    """Forward passes whose gradients make one step."""
    learning_rate: float = 5e-5
    l2: float = 0.01
    """Decoupled weight decay of matrices."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to 0."""
    evaluations: int = 2
    """Evaluations in each epoch."""
    patience: int = 2
    """Training stops after so many evaluations without a better validation loss."""
    checkpoint_steps: int = 200
    bf16: bool = False
    seed: int = 0


class FinetuneSettings(TrainSettings, frozen=True, kw_only=True):
    """How a base is fine-tuned."""

    base: str = "minilm"
    template: str = ""
    max_tokens: int = 128
    """Longer pairs of texts are cut."""
    dropout: float = 0.1
    lora: int = 0
    """Rank of low-rank adapters on all linear layers; 0: no adapters, all weights are trained."""
    towers: bool = False
    """Read query and item apart: a text that many pairs share is read once, and a head begins at the base's cosine."""
    frozen: bool = False
    """Read them apart, leave the base as it is, and learn only how its vectors of query and item compare: seconds."""
    static: bool = False
    """Read them apart, with nothing of the base but its token vectors: no model runs, and every score is on time."""
    residual: bool = False
    """Teach the click head what the ranker lacks: the ranker's own logit replaces the position's as the offset."""
    gradient_checkpointing: bool = False
    word_dropout: float = 0.0
    """Probability of each word to be left out in a copy of each training pair."""
    synonyms: float = 0.0
    """Probability of each word of a query to be replaced, in that copy, by one that leads to the same products."""
    back_translate: tuple[str, ...] = ()
    """Folders of translation models, into another language and back, which reword that copy first."""
    device: str = "auto"

    @property
    def apart(self) -> bool:
        """Whether query and item are read apart."""
        return self.towers or self.frozen or self.static


OF_FROZEN = {"epochs": 8, "batch": 256, "l2": 0.1, "patience": 20}
"""Defaults for a frozen or static base, whose steps cost next to nothing."""


class PretrainSettings(TrainSettings, frozen=True, kw_only=True):
    """How a model is pre-trained."""

    base: str = "small"
    epochs: int = 10
    batch: int = 64
    max_tokens: int = 64
    dropout: float = 0.0
    device: str = "auto"
