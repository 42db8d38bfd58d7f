"""A teacher as a folder: how it is written, and how it is loaded to compute with it.

The folder holds the encoder (of a static teacher its word vectors) and the tokenizer as transformers saves them,
``heads.safetensors``, ``teacher.json`` (what scoring needs to know) and a card (what the teacher was made of, and how
good it is).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file

from heft.models.teacher.network.bases import load_encoder, load_tokenizer
from heft.models.teacher.network.model import Model, device_of
from heft.models.teacher.network.static_encoder import StaticEncoder
from heft.models.teacher.network.static_reader import WORDS_FILE
from heft.models.teacher.state import (
    HEADS_FILE,
    STATIC,
    TeacherState,
    digest_of,
    require_state,
    require_version,
    write_atomically,
)


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


def load_teacher(
    folder: Path, device: str = "auto", state: TeacherState | None = None
) -> tuple[Model, Any, TeacherState]:
    """Return model, tokenizer and state of a teacher's folder.

    Parameters
    ----------
    folder
        Of the teacher, or a link to it.
    device
        ``cpu``, ``cuda``, or ``auto``.
    state
        What was read from the folder already, if it was.

    Raises
    ------
    TeacherError
        If there is no finished teacher in the folder, or its weights are not those of its version.
    """
    folder = folder.resolve()  # all files are then of one teacher, even if the link changes meanwhile
    state = state or require_state(folder)
    if state.pooling == STATIC:
        encoder: Any = StaticEncoder(load_file(folder / WORDS_FILE)["encoder.words"])
    else:
        encoder = load_encoder(folder)
    tokenizer = load_tokenizer(folder)
    learned = load_file(folder / HEADS_FILE)
    projection = learned.pop("projection", None)
    model = Model(encoder, tuple(state.heads), state.pooling, projected=projection is not None)
    model.linear.load_state_dict(learned)
    if model.projection is not None:
        model.projection.load_state_dict({"weight": projection})
    require_version(folder, _version(model, state), state)
    return model.to(device_of(device)).eval(), tokenizer, state
