"""Pre-training on the shop's own texts, before any label: a masked language model, or a causal one for decoders."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from heft.models.teacher.data.examples import DataError, Pairs
from heft.models.teacher.network import processes
from heft.models.teacher.network.bases import Base, load_base, reads_left_to_right, resolve_base
from heft.models.teacher.network.encoded import Encoded
from heft.models.teacher.network.model import Progress, device_of, predict_loss
from heft.models.teacher.settings import PretrainSettings
from heft.models.teacher.state import TeacherError
from heft.models.teacher.train import card as cards
from heft.models.teacher.train.train import CHECKPOINT, Trainer

_MASKED = 0.15  # share of the tokens that the model has to guess (Devlin et al. 2019, section 3.1)
_HELD_OUT = 20  # one text in so many validates
_FEWEST_TEXTS = 40


def pretrain(
    pairs: Pairs, out: Path, settings: PretrainSettings, progress: Progress | None = None, base: Base | None = None
) -> dict[str, Any]:
    """Pre-train a model on pairs of texts and write it as transformers does; return its card.

    Parameters
    ----------
    pairs
        Texts of a query and of an item that was shown for it, each pair once: a model learns which words go together.
    out
        The folder; a base for `finetune`. When it holds the checkpoint of the same run, that run goes on.
    settings
        How to train.
    progress
        Called after every step.
    base
        The base of the settings, if it has been found already.

    Raises
    ------
    TeacherError
        If the base cannot be loaded, or ``torchrun`` started several processes.
    DataError
        If there are too few texts.
    """
    if processes.count() > 1:
        msg = "pre-training runs in one process; start it without torchrun"
        raise TeacherError(msg)
    if len(pairs) < _FEWEST_TEXTS:
        msg = f"{len(pairs)} texts are too few to pre-train on; at least {_FEWEST_TEXTS} are needed"
        raise DataError(msg)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    device = device_of(settings.device)
    base = base or resolve_base(settings.base)
    encoder, tokenizer = load_base(
        base, lambda: [text for pair in pairs for text in pair], settings.max_tokens, settings.dropout
    )
    causal = reads_left_to_right(encoder.config)
    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    if base.folder is None:
        model = kind.from_config(encoder.config)  # type: ignore[no-untyped-call]
    else:
        model = kind.from_pretrained(base.folder, config=encoder.config, local_files_only=True, dtype=torch.float32)
    model.to(device)
    held_out = [n % _HELD_OUT == 0 for n in range(len(pairs))]
    parts = [[pair for pair, held in zip(pairs, held_out, strict=True) if held == wanted] for wanted in (False, True)]
    train, validation = (Encoded(tokenizer, part, settings.max_tokens) for part in parts)
    objective = _Objective(model, tokenizer, causal, device)

    def validate() -> tuple[float, dict[str, float]]:
        return predict_loss(model, validation, lambda rows: objective.loss(validation, rows, fixed=True)), {}

    trainer = Trainer(model, train, lambda rows: objective.loss(train, rows), validate, settings)
    loss_before = validate()[0]
    digest = blake2b(msgspec.json.encode(settings) + msgspec.json.encode(pairs), digest_size=16).hexdigest()
    trainer.run(out, digest, progress)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {
        "base": settings.base,
        "licence": cards.licence_of(base.folder),
        "objective": "causal language model" if causal else "masked language model",
        "texts": len(pairs),
        "digest": digest,
        "loss_before": loss_before,
        "loss_after": trainer.best.loss,
        "steps": trainer.step,
        "settings": msgspec.to_builtins(settings),
    }
    cards.write_json(out, card)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return card


class _Objective:
    """The loss of a language model on some texts."""

    def __init__(self, model: Any, tokenizer: Any, causal: bool, device: torch.device) -> None:
        self._model = model
        self._causal = causal
        self._device = device
        self._mask, self._vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self._special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
        self._rows = torch.zeros(0)
        # The output layer, as wide as the vocabulary, costs most: it sees only the tokens to be guessed, one in seven.
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: inputs[0].flatten(0, 1)[self._rows])

    def loss(self, encoded: Encoded, rows: NDArray[np.int64], fixed: bool = False) -> torch.Tensor:
        """Return the mean cross-entropy in nats of the tokens to be guessed; ``fixed`` always chooses the same."""
        inputs = encoded.batch(rows, torch.device("cpu"))
        ids = inputs["input_ids"]
        if self._causal:
            wanted = torch.where(inputs["attention_mask"] > 0, ids, -100)[:, 1:]
        else:
            generator = torch.Generator().manual_seed(int(rows[0])) if fixed else None
            chosen = torch.rand(ids.shape, generator=generator) < _MASKED
            chosen &= ~torch.isin(ids, self._special)
            how = torch.rand(ids.shape, generator=generator)
            random = torch.randint(self._vocabulary, ids.shape, generator=generator)
            wanted = torch.where(chosen, ids, -100)
            # Of the tokens to be guessed, 80 % are masked, 10 % are replaced by a random one, and 10 % stay.
            ids = torch.where(chosen & (how < 0.8), self._mask, torch.where(chosen & (how < 0.9), random, ids))
            inputs["input_ids"] = ids
        if self._causal:
            wanted = functional.pad(wanted, (0, 1), value=-100)  # the last token has nothing to guess
        wanted = wanted.flatten()
        self._rows = torch.nonzero(wanted >= 0).flatten().to(self._device)
        logits = self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()}).logits
        total = functional.cross_entropy(logits.float(), wanted[wanted >= 0].to(self._device), reduction="sum")
        return total / max(1, len(self._rows))
