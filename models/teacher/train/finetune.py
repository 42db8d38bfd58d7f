"""Fine-tuning: a base learns from examples what is clicked, what converts, and what people judged relevant.

All heads are trained together. The click head is given a fixed offset beside the texts, which scoring leaves out: the
logit that the position adds, or the ranker's own prediction. The conversion head sees only clicks whose window has
ended. Held-out examples decide when to stop, and calibrate each head; later ones, which nothing has seen, measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from heft.models.teacher.data.augment import augment
from heft.models.teacher.data.examples import HEADS, RELEVANCE, DataError, Examples, Split
from heft.models.teacher.network import processes
from heft.models.teacher.network.bases import SIZES, Base, resolve_base
from heft.models.teacher.network.encoded import Encoded
from heft.models.teacher.network.model import Model, Progress, device_of, predict
from heft.models.teacher.network.teacher_folder import save_teacher
from heft.models.teacher.settings import FinetuneSettings
from heft.models.teacher.state import TOWERS, HeadState, TeacherError, TeacherState, write_atomically
from heft.models.teacher.text_vectors import TEXTS
from heft.models.teacher.train import card as cards
from heft.models.teacher.train import measure
from heft.models.teacher.train.starting_point import Start, begin_at_base
from heft.models.teacher.train.train import CHECKPOINT, Trainer
from heft.models.teacher.train.trainee import Trainee, trainee_of
from heft.models.teacher.train.translate import back_translate


def learning_rate_of(base: str, lora: int, frozen: bool = False) -> float:
    """Return the peak learning rate that suits a base: adapters and random weights learn ten times as fast."""
    if frozen:
        return 1e-3
    return 5e-4 if lora or base in SIZES else 5e-5


class Source(msgspec.Struct, frozen=True):
    """One file of the data, for the card."""

    name: str
    bytes: int
    digest: str


class _Measured(NamedTuple):
    """What held-out examples say of a trained model."""

    states: dict[str, HeadState]
    """By head, its calibration."""
    report: dict[str, dict[str, Any]]
    """By head, what the card says of it."""


def finetune(
    split: Split,
    out: Path,
    settings: FinetuneSettings,
    sources: list[Source],
    grades: tuple[float, float] | None = None,
    progress: Progress | None = None,
    base: Base | None = None,
) -> dict[str, Any]:
    """Fine-tune a base, write the teacher into its folder, and return its card.

    Of several processes only the first writes; the others return an empty card.

    Parameters
    ----------
    split
        What to train on, to stop and calibrate on, and to measure with.
    out
        The folder. When it holds the checkpoint of the same run, that run goes on.
    settings
        How to train.
    sources
        Files that the data comes from, for the card.
    grades
        Grades of judgements that mean 0 and 1.
    progress
        Called after every step.
    base
        The base of the settings, if it has been found already.

    Raises
    ------
    TeacherError
        If the settings contradict each other, the base cannot be loaded, or the folder holds another unfinished run.
    DataError
        If no head has labels of both kinds.
    """
    _require_sense(settings)
    base = base or resolve_base(settings.base)
    heads = _heads_with_labels(split.train)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    train = _augmented(split.train, settings)
    trainee = trainee_of(base, (train, split.validation, split.test), heads, settings, progress)
    starts = begin_at_base(trainee, base, split, settings)
    if not settings.apart:
        _begin_at_base_rates(trainee, train)
    prepare(trainee.model, settings)
    trainer = _train(trainee, train, split.validation, settings, out, progress)
    _without_adapters(trainee.model, settings)
    measured = _calibrated_and_measured(trainee, split, starts)
    if processes.number():
        return {}
    state = _save(out, trainee, split, settings, measured.states, grades)
    card = {
        "version": state.version,
        "base": settings.base,
        "licence": cards.licence_of(base.folder),
        "template": settings.template,
        "data": _data_for_card(split, sources),
        "training": {
            "steps": trainer.step,
            "best_step": trainer.best.step,
            "validation_loss": trainer.best.loss,
            "device": trainer.device.type,
        },
        "heads": measured.report,
        "settings": msgspec.to_builtins(settings),
    }
    cards.write_card(out, card)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return card


def _require_sense(settings: FinetuneSettings) -> None:
    if settings.static and (settings.towers or settings.frozen or settings.lora or settings.gradient_checkpointing):
        msg = "static runs no model: nothing for towers, frozen, lora or gradient checkpointing to do; choose one"
        raise TeacherError(msg)
    if settings.frozen and (settings.lora or settings.gradient_checkpointing):
        msg = "frozen leaves the base as it is: there is nothing for lora or gradient checkpointing to do; choose one"
        raise TeacherError(msg)
    if settings.frozen and settings.base in SIZES:
        msg = f"frozen keeps what a base knows, and {settings.base} is made from nothing; choose minilm or a folder"
        raise TeacherError(msg)


def _heads_with_labels(train: Examples) -> list[int]:
    """Return the heads that have positive and negative labels."""
    heads = [n for n in range(len(HEADS)) if 0 < train.positives[:, n].sum() < train.trials[:, n].sum()]
    if not heads:
        msg = "no head has labels: give a log, --relevance, or both"
        raise DataError(msg)
    return heads


def _augmented(train: Examples, settings: FinetuneSettings) -> Examples:
    reworded = {}
    if settings.back_translate:
        texts = (text for pair in train.pairs for text in pair)
        reworded = back_translate(texts, settings.back_translate, settings.device)
    return augment(train, settings.word_dropout, settings.synonyms, settings.seed, reworded)


def _begin_at_base_rates(trainee: Trainee, train: Examples) -> None:
    """Set the intercept of each head so that it predicts the base rate."""
    intercepts = [
        _prior(train.offset_of(head), train.trials[:, head], train.positives[:, head]) for head in trainee.heads
    ]
    with torch.no_grad():
        trainee.model.linear.bias.copy_(torch.tensor(intercepts))


def _prior(offset: NDArray[np.float64], trials: NDArray[np.float64], positives: NDArray[np.float64]) -> float:
    """Return the intercept at which as many positives are expected as there are."""
    low, high = -30.0, 30.0
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        if (trials * measure.sigmoid(middle + offset)).sum() < positives.sum():
            low = middle
        else:
            high = middle
    return low


def prepare(model: Model, settings: FinetuneSettings) -> None:
    """Freeze the encoder, put adapters beside its weights, or trade time for memory, as configured."""
    if settings.frozen:
        model.encoder.requires_grad_(False)
    if settings.gradient_checkpointing:
        model.encoder.gradient_checkpointing_enable()
    if settings.lora:
        from peft import LoraConfig, get_peft_model

        # The encoder has dropout of its own, so there is none before the adapters.
        adapters = LoraConfig(
            r=settings.lora, lora_alpha=2 * settings.lora, lora_dropout=0.0, target_modules="all-linear"
        )
        if settings.gradient_checkpointing:
            model.encoder.enable_input_require_grads()
        model.encoder = get_peft_model(model.encoder, adapters)
        model.encoder.to(next(model.linear.parameters()).device)


def loss_of(
    model: Model,
    encoded: Encoded,
    train: Examples,
    heads: list[int],
    batch: int,
    device: torch.device,
    multiple: int = 1,
) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """Return the loss of a batch of training rows, which is padded on to a ``multiple`` of tokens.

    It is the log loss in nats of the batch's labels, over the labels that a batch of the training part has on average.
    """
    # It is a sum over rows: several processes take a part of a batch each, and add their gradients.
    # Each label counts once, not each head: there are many clicks to a conversion, and they should weigh as many.
    scale = 1.0 / (batch * train.trials[:, heads].sum(1).mean())
    trials = torch.tensor(train.trials[:, heads] * scale, dtype=torch.float32)
    positives = torch.tensor(train.positives[:, heads] * scale, dtype=torch.float32)
    offsets = torch.tensor(np.stack([train.offset_of(head) for head in heads], 1), dtype=torch.float32)

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        of_batch = torch.from_numpy(rows)
        z = model(encoded.batch(rows, device, multiple)).float() + offsets[of_batch].to(device)
        n, k = trials[of_batch].to(device), positives[of_batch].to(device)
        return (k * functional.softplus(-z) + (n - k) * functional.softplus(z)).sum()

    return loss


def _validate(model: Model, encoded: Encoded, part: Examples, heads: list[int]) -> tuple[float, dict[str, float]]:
    """Return the log loss of all labels over that of each head's base rate, and the like by head for the log."""
    z = predict(model, encoded).astype(np.float64)
    found, loss, base = {}, 0.0, 0.0
    for n, head in enumerate(heads):
        trials, positives = part.trials[:, head], part.positives[:, head]
        measured = measure.metrics(z[:, n] + part.offset_of(head), trials, positives)
        if np.isfinite(measured["ne"]):
            found[f"ne/{HEADS[head]}"] = measured["ne"]
            loss += measured["logloss"] * trials.sum()
            base += measured["logloss"] * trials.sum() / measured["ne"]
    return float(loss / base) if base else 0.0, found


def _train(
    trainee: Trainee,
    train: Examples,
    validation: Examples,
    settings: FinetuneSettings,
    out: Path,
    progress: Progress | None,
) -> Trainer:
    """Train the model, or go on with the run in the folder; leave the best weights in the model."""
    device = device_of(settings.device)
    # In bfloat16 a new shape costs an H200 some 80 ms the first time, in float32 nothing: so there are few widths.
    multiple = 8 if settings.bf16 and device.type == "cuda" else 1
    trainer = Trainer(
        trainee.model,
        trainee.encoded.train,
        loss_of(trainee.model, trainee.encoded.train, train, trainee.heads, settings.batch, device, multiple),
        (lambda: _validate(trainee.model, trainee.encoded.validation, validation, trainee.heads))
        if len(validation)
        else None,
        settings,
        fast=() if settings.frozen or settings.static else ("linear.",),
    )
    identity = blake2b(msgspec.json.encode(settings) + train.digest().encode() + validation.digest().encode())
    trainer.run(out, identity.hexdigest(), progress)
    return trainer


def _without_adapters(model: Model, settings: FinetuneSettings) -> None:
    """Put into the base's own weights what was learned beside them."""
    if settings.lora:
        model.encoder = model.encoder.merge_and_unload()
    if settings.static:
        model.encoder = model.encoder.settled()


def _calibrated_and_measured(trainee: Trainee, split: Split, starts: list[Start]) -> _Measured:
    """Calibrate each head on the validation part, and measure it on the test part."""
    raw = [
        predict(trainee.model, part).astype(np.float64) for part in (trainee.encoded.validation, trainee.encoded.test)
    ]
    states, report = {}, {}
    for n, (head, start) in enumerate(zip(trainee.heads, starts, strict=True)):
        scale, shift = measure.calibrate(raw[0][:, n], split.validation.offset_of(head), split.validation, head)
        states[HEADS[head]] = HeadState(scale, shift)
        report[HEADS[head]] = {
            "scale": scale,
            "shift": shift,
            "before_is": start.source,
            "before": start.metrics,
            **_after(raw[1][:, n], split.test, head, scale, shift),
        }
    return _Measured(states, report)


def _after(z: NDArray[np.float64], test: Examples, head: int, scale: float, shift: float) -> dict[str, Any]:
    """Return what the card says of a head on the test part; ``z`` [N] are its logits, not calibrated."""
    trials, positives, offset = test.trials[:, head], test.positives[:, head], test.offset_of(head)
    graded = HEADS[head] == RELEVANCE
    calibrated = scale * z + shift
    return {
        "after_raw": measure.metrics(z + offset, trials, positives, graded),
        "after_calibrated": measure.metrics(calibrated + offset, trials, positives, graded),
        # A score leaves the position out. This is how well the text alone orders: no other AUC says so of a teacher.
        "after_without_position": measure.metrics(calibrated, trials, positives, graded),
        "calibration_table": measure.calibration_table(calibrated + offset, trials, positives),
        "calibration_table_raw": measure.calibration_table(z + offset, trials, positives),
    }


def _save(
    out: Path,
    trainee: Trainee,
    split: Split,
    settings: FinetuneSettings,
    heads: dict[str, HeadState],
    grades: tuple[float, float] | None,
) -> TeacherState:
    """Write the teacher into its folder; return its state, with its version."""
    state = TeacherState(
        heads=heads,
        template=settings.template,
        max_tokens=settings.max_tokens,
        pooling=trainee.model.pooling,
        version="",
        data_ends_ms=split.ends_ms,
        residual=settings.residual and "click" in heads,
        rates=split.rates,
        grades=grades,
    )
    (out / TEXTS).unlink(missing_ok=True)
    if trainee.model.pooling == TOWERS:
        write_atomically(out / TEXTS, msgspec.json.encode(split.texts))
    return save_teacher(out, trainee.model, trainee.tokenizer, state)


def _data_for_card(split: Split, sources: list[Source]) -> dict[str, Any]:
    return {
        "sources": [msgspec.to_builtins(source) for source in sources],
        "digest": split.train.digest(),
        "begins_ms": split.begins_ms,
        "ends_ms": split.ends_ms,
        "training_examples": len(split.train),
        "validation_examples": len(split.validation),
        "test_examples": len(split.test),
    }
