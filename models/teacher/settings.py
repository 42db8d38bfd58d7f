"""How a teacher is pre-trained and fine-tuned: every choice and its default, without the libraries that train."""

from __future__ import annotations

import msgspec


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is trained."""

    keep_negatives: float = 1.0
    """Share in (0, 1] of the unclicked samples to learn from; labels are corrected for it."""
    epochs: int = 2
    batch: int = 32
    """Examples of a forward pass."""
    accumulate: int = 1
    """Forward passes of a step."""
    learning_rate: float = 5e-5
    l2: float = 0.01
    """Decoupled weight decay of matrices."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls linearly to nothing."""
    evaluations: int = 2
    """Evaluations an epoch."""
    patience: int = 2
    """Evaluations without a better validation loss after which training stops."""
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
    """Rank of low-rank adapters on all linear layers; 0: all weights are trained."""
    towers: bool = False
    """Read query and item apart: what is shared by many pairs is read once, and a head begins at the base's cosine."""
    frozen: bool = False
    """Read them apart, leave the base as it is, and learn how its vectors of query and item compare: seconds."""
    static: bool = False
    """Read them apart and take of the base its tokens' vectors alone: no model runs, and every score is on time."""
    residual: bool = False
    """Teach clicks what the ranker lacks: its own logit, as shown, is the offset in the place of the position's."""
    gradient_checkpointing: bool = False
    word_dropout: float = 0.0
    """Probability of a word to be left out in a copy of each training pair."""
    synonyms: float = 0.0
    """Probability of a query's word to be replaced, in that copy, by one that leads to the same products."""
    back_translate: tuple[str, ...] = ()
    """Folders of translation models, there and back, through which that copy goes first."""
    device: str = "auto"

    @property
    def apart(self) -> bool:
        """Whether query and item are read apart."""
        return self.towers or self.frozen or self.static


OF_FROZEN = {"epochs": 8, "batch": 256, "l2": 0.1, "patience": 20}
"""What suits a frozen base, and a static one, where nothing else is asked for: a step costs next to nothing."""


class PretrainSettings(TrainSettings, frozen=True, kw_only=True):
    """How a model is pre-trained."""

    base: str = "small"
    epochs: int = 10
    batch: int = 64
    max_tokens: int = 64
    dropout: float = 0.0
    device: str = "auto"
