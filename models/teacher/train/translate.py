"""Texts in other words: translated into another language and back, by models that the user names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from heft.models.teacher.network.model import device_of
from heft.models.teacher.state import TeacherError

_BATCH = 64
_TOKENS = 64


@torch.inference_mode()
def back_translate(texts: Iterable[str], folders: Sequence[str], device: str = "auto") -> dict[str, str]:
    """Return what each text becomes after all models have translated it, one after the other.

    Parameters
    ----------
    texts
        May repeat; each is translated once.
    folders
        Of encoder-decoder models: one into another language and one back, or a single one that paraphrases.
    device
        ``cpu``, ``cuda``, or ``auto``.

    Raises
    ------
    TeacherError
        If a folder holds no model.
    """
    originals = [text for text in dict.fromkeys(texts) if text]
    current = originals
    for folder in folders:
        if not (Path(folder) / "config.json").exists():
            msg = f"{folder}: no config.json; expected a folder with a translation model"
            raise TeacherError(msg)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).to(device_of(device)).eval()
        translated: list[str] = []
        for start in range(0, len(current), _BATCH):
            inputs = tokenizer(
                current[start : start + _BATCH], padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
            )
            ids = model.generate(
                input_ids=inputs["input_ids"].to(model.device),
                attention_mask=inputs["attention_mask"].to(model.device),
                max_new_tokens=_TOKENS,
                do_sample=False,
            )
            translated += tokenizer.batch_decode(ids, skip_special_tokens=True)
        current = [new.strip() or old for new, old in zip(translated, current, strict=True)]
    return dict(zip(originals, current, strict=True))
