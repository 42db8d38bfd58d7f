"""A base by its name: a model of the Hugging Face hub, as a folder of the cache that its tools share on this machine.

A model in the cache is taken as it is, without asking the hub; any other is fetched in its newest version. Settings of
the library decide where the cache is (``HF_HOME``), whether the hub may be asked (``HF_HUB_OFFLINE``), and with which
token (``hf auth login``).
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

from heft.models.teacher.state import HEADS_FILE, TeacherError

# Configuration, vocabularies, weights as plain numbers (pickles can run code), description and licence.
_FILES = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors", HEADS_FILE, "README.md", "LICENSE*")
_FOLDERS = "*/*"  # the same weights for other libraries


def folder_of(name: str) -> Path:
    """Return the folder of a model, which is fetched if it is not on this machine.

    Several processes may call this at once: the library's locks let one of them fetch a file while the others wait.

    Parameters
    ----------
    name
        ``OWNER/NAME``, or one of the few names without an owner.

    Raises
    ------
    TeacherError
        If there is no such model, or it cannot be fetched; the message says why.
    """
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if _is_whole(folder):
            return folder
    except HFValidationError:
        msg = "nor can it be the name of a model on the Hugging Face hub"
        raise TeacherError(msg) from None
    except LocalEntryNotFoundError:
        pass
    enable_progress_bars()  # these may be gigabytes
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=_FOLDERS))
    except Exception as error:  # a network, a proxy or a full disk can raise anything
        msg = f"and the Hugging Face hub gave no model of this name: {_why(error)}"
        raise TeacherError(msg) from None
    finally:
        disable_progress_bars()
    if not _is_whole(folder):
        msg = (
            f"and the model of this name on the Hugging Face hub is not whole in {folder}: it takes config.json and "
            "model.safetensors. Weights in pickle format are not fetched: save_pretrained of transformers, where you "
            "trust them, makes a folder that can be named instead"
        )
        raise TeacherError(msg)
    return folder


def _is_whole(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    weights = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return all((folder / name).exists() for name in ("config.json", *weights))


def _why(error: Exception) -> str:
    offline = isinstance(error.__cause__, OfflineModeIsEnabled)
    match error:
        case LocalEntryNotFoundError() if offline:
            return "HF_HUB_OFFLINE forbids to ask it and the cache (HF_HOME) has none; unset it, or copy the cache here"
        case GatedRepoError():
            return "its licence has to be accepted on its page, and then a token is needed: hf auth login"
        case RepositoryNotFoundError():
            return "it knows none, or shows it to a token only (hf auth login)"
        case LocalEntryNotFoundError():
            return f"it cannot be reached ({_first_line(error.__cause__ or error)}) and the cache (HF_HOME) has none"
        case _:
            return _first_line(error)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
