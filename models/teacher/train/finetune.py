"""Fine-tuning: a base learns from examples what is clicked, what converts, and what people judged relevant.

All heads are trained together. The click head is given as a fixed offset, which scoring leaves out, the logit that the
position adds, or all that the ranker itself said; the conversion head sees only clicks whose window has ended. Held-out
examples decide when to stop and calibrate each head; later ones, seen by nothing, say how good it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from heft.models.teacher.data.augment import augment
from heft.models.teacher.data.examples import HEADS, RELEVANCE, Examples, Split
from heft.models.teacher.network import processes
from heft.models.teacher.network.encoded import Apart, Encoded, Read, encode
from heft.models.teacher.network.model import (
    Model,
    Progress,
    device_of,
    load_base,
    load_teacher,
    pooling_of,
    predict,
    read,
    require_labels,
    resolve_base,
    save_teacher,
)
from heft.models.teacher.network.static_encoder import static_encoder
from heft.models.teacher.settings import FinetuneSettings
from heft.models.teacher.state import (
    STATIC,
    TOWERS,
    HeadState,
    TeacherError,
    TeacherState,
    read_state,
    write_atomically,
)
from heft.models.teacher.text_vectors import TEXTS
from heft.models.teacher.train import card as cards
from heft.models.teacher.train import measure
from heft.models.teacher.train.train import CHECKPOINT, Trainer
from heft.models.teacher.train.translate import back_translate


def learning_rate_of(base: str, lora: int, frozen: bool = False) -> float:
    """Return the peak learning rate that suits a base: adapters and random weights learn ten times as fast."""
    if frozen:
        return 1e-3
    return 5e-4 if lora or resolve_base(base) is None else 5e-5


class Source(msgspec.Struct, frozen=True):
    """One file of the data: its name, size and digest."""

    name: str
    bytes: int
    digest: str


def finetune(
    split: Split,
    out: Path,
    settings: FinetuneSettings,
    sources: list[Source],
    grades: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tune a base, write the teacher into its folder, return its card; of several processes the first alone does.

    Parameters
    ----------
    split
        What to train on, to stop and calibrate on, and to measure with.
    out
        The folder. When it holds the checkpoint of the same run, that run goes on.
    settings
        How; a learning rate is that of the base where it is the default.
    sources
        For the card.
    grades
        Grades of judgements that mean 0 and 1.
    progress
        TeacherScores every step.

    Raises
    ------
    TeacherError
        If the base cannot be loaded, or the folder holds another unfinished run.
    DataError
        If no head has labels of both kinds.
    """
    _require_sense(settings)
    heads = [n for n in range(len(HEADS)) if 0 < split.train.positives[:, n].sum() < split.train.trials[:, n].sum()]
    require_labels([HEADS[n] for n in heads])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    device = device_of(settings.device)
    train = _augmented(split.train, settings)
    encoder, tokenizer = load_base(
        settings.base, lambda: [text for pair in train.pairs for text in pair], settings.max_tokens, settings.dropout
    )
    of_pairs = pooling_of(encoder, resolve_base(settings.base))
    pooling = STATIC if settings.static else TOWERS if settings.apart else of_pairs
    parts = (train, split.validation, split.test)
    encoded: list[Encoded] = []
    if not settings.frozen:
        encoded = [encode(tokenizer, part.pairs, settings.max_tokens, pooling) for part in parts]
    if settings.static:
        encoder = static_encoder(encoder, tokenizer, encoded[0])
    model = Model(encoder, [HEADS[n] for n in heads], pooling, settings.dropout, settings.frozen).to(device)
    if settings.frozen:
        encoded = _read_once(model, tokenizer, parts, settings.max_tokens, progress)
    before, before_is = _before(model, tokenizer, split, heads, settings, encoded)
    with torch.no_grad():
        prior = [_prior(_offset(train, head), train.trials[:, head], train.positives[:, head]) for head in heads]
        if not settings.apart:
            model.linear.bias.copy_(torch.tensor(prior))
    prepare(model, settings)
    # In bfloat16 a new shape seems to cost an H200 some 80 ms the first time, in float32 nothing: few widths, then.
    multiple = 8 if settings.bf16 and device.type == "cuda" else 1
    trainer = Trainer(
        model,
        encoded[0],
        loss_of(model, encoded[0], train, heads, settings.batch, device, multiple),
        (lambda: _validate(model, encoded[1], split.validation, heads)) if len(split.validation) else None,
        settings,
        fast=() if settings.frozen or settings.static else ("linear.",),
    )
    identity = blake2b(msgspec.json.encode(settings) + train.digest().encode() + split.validation.digest().encode())
    trainer.run(out, identity.hexdigest(), progress)
    if settings.lora:
        model.encoder = model.encoder.merge_and_unload()
    if settings.static:
        model.encoder = model.encoder.settled()

    raw = [predict(model, part).astype(np.float64) for part in encoded[1:]]
    states, measured = {}, {}
    for n, head in enumerate(heads):
        offsets = [_offset(part, head) for part in split[1:3]]
        scale, shift = measure.calibrate(raw[0][:, n], offsets[0], split.validation, head)
        states[HEADS[head]] = HeadState(scale, shift)
        measured[HEADS[head]] = {
            "scale": scale,
            "shift": shift,
            "before_is": before_is[n],
            "before": before[n],
            **_after(raw[1][:, n], offsets[1], split.test, head, scale, shift),
        }
    state = TeacherState(
        heads=states,
        template=settings.template,
        max_tokens=settings.max_tokens,
        pooling=model.pooling,
        version="",
        data_ends_ms=split.ends_ms,
        residual=settings.residual and "click" in states,
        rates=split.rates,
        grades=grades,
    )
    if processes.number():
        return {}
    (out / TEXTS).unlink(missing_ok=True)
    if pooling == TOWERS:
        write_atomically(out / TEXTS, msgspec.json.encode(split.texts))
    state = save_teacher(out, model, tokenizer, state)
    card = {
        "version": state.version,
        "base": settings.base,
        "licence": cards.licence_of(resolve_base(settings.base)),
        "template": settings.template,
        "data": {
            "sources": [msgspec.to_builtins(source) for source in sources],
            "digest": split.train.digest(),
            "begins_ms": split.begins_ms,
            "ends_ms": split.ends_ms,
            "training_examples": len(split.train),
            "validation_examples": len(split.validation),
            "test_examples": len(split.test),
        },
        "training": {
            "steps": trainer.step,
            "best_step": trainer.best.step,
            "validation_loss": trainer.best.loss,
            "device": device.type,
        },
        "heads": measured,
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
    if settings.frozen and resolve_base(settings.base) is None:
        msg = f"frozen keeps what a base knows, and {settings.base} is made from nothing; choose minilm or a folder"
        raise TeacherError(msg)


def _read_once(
    model: Model, tokenizer: Any, parts: Sequence[Examples], max_tokens: int, progress: Progress | None
) -> list[Encoded]:
    """Return the parts with each text read once, whatever parts it is in."""
    whole = Apart(tokenizer, [pair for part in parts for pair in part.pairs], max_tokens)
    vectors = torch.from_numpy(read(model, whole.texts, progress))
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [Read(whole, slice(end - len(part), end), vectors) for part, end in zip(parts, ends, strict=True)]


def _augmented(train: Examples, settings: FinetuneSettings) -> Examples:
    reworded = {}
    if settings.back_translate:
        texts = (text for pair in train.pairs for text in pair)
        reworded = back_translate(texts, settings.back_translate, settings.device)
    return augment(train, settings.word_dropout, settings.synonyms, settings.seed, reworded)


def _offset(examples: Examples, head: int) -> NDArray[np.float64]:
    return examples.offset if HEADS[head] == "click" else np.zeros(len(examples))


def _prior(offset: NDArray[np.float64], trials: NDArray[np.float64], positives: NDArray[np.float64]) -> float:
    """The intercept at which the expected positives are the actual ones."""
    low, high = -30.0, 30.0
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        if (trials * measure.sigmoid(middle + offset)).sum() < positives.sum():
            low = middle
        else:
            high = middle
    return low


def prepare(model: Model, settings: FinetuneSettings) -> None:
    """Put adapters beside the weights, or give up memory for time, where the settings say so."""
    if settings.frozen:
        model.encoder.requires_grad_(False)
    if settings.gradient_checkpointing:
        model.encoder.gradient_checkpointing_enable()
    if settings.lora:
        from peft import LoraConfig, get_peft_model

        # The encoder drops out already: not once more before every linear layer.
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
    """Return the loss of a batch of training rows, padded on to a ``multiple`` of tokens."""
    # Several processes take a part of a batch each and add their gradients, so it is a sum over rows.
    # Log loss per label of the whole part, whatever the batch holds. Each label counts once, not each head: there are
    # many clicks to a conversion, and their gradients should weigh as many.
    scale = 1.0 / (batch * train.trials[:, heads].sum(1).mean())
    trials = torch.tensor(train.trials[:, heads] * scale, dtype=torch.float32)
    positives = torch.tensor(train.positives[:, heads] * scale, dtype=torch.float32)
    offsets = torch.tensor(np.stack([_offset(train, head) for head in heads], 1), dtype=torch.float32)

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        among = torch.from_numpy(rows)
        z = model(encoded.batch(rows, device, multiple)).float() + offsets[among].to(device)
        n, k = trials[among].to(device), positives[among].to(device)
        return (k * functional.softplus(-z) + (n - k) * functional.softplus(z)).sum()

    return loss


def _validate(model: Model, encoded: Encoded, part: Examples, heads: list[int]) -> tuple[float, dict[str, float]]:
    """The log loss of all labels together, over that of each head's base rate."""
    z = predict(model, encoded).astype(np.float64)
    found, loss, base = {}, 0.0, 0.0
    for n, head in enumerate(heads):
        trials, positives = part.trials[:, head], part.positives[:, head]
        measured = measure.metrics(z[:, n] + _offset(part, head), trials, positives)
        if np.isfinite(measured["ne"]):
            found[f"ne/{HEADS[head]}"] = measured["ne"]
            loss += measured["logloss"] * trials.sum()
            base += measured["logloss"] * trials.sum() / measured["ne"]
    return float(loss / base) if base else 0.0, found


def _after(
    z: NDArray[np.float64], offset: NDArray[np.float64], test: Examples, head: int, scale: float, shift: float
) -> dict[str, Any]:
    trials, positives = test.trials[:, head], test.positives[:, head]
    graded = HEADS[head] == RELEVANCE
    calibrated = scale * z + shift
    return {
        "after_raw": measure.metrics(z + offset, trials, positives, graded),
        "after_calibrated": measure.metrics(calibrated + offset, trials, positives, graded),
        # A score leaves the position out: how well text alone orders, and with it the only honest AUC of a teacher.
        "after_without_position": measure.metrics(calibrated, trials, positives, graded),
        "calibration_table": measure.calibration_table(calibrated + offset, trials, positives),
        "calibration_table_raw": measure.calibration_table(z + offset, trials, positives),
    }


def _before(
    model: Model, tokenizer: Any, split: Split, heads: list[int], settings: FinetuneSettings, encoded: list[Encoded]
) -> tuple[list[dict[str, float]], list[str]]:
    """Metrics of the base: of its own heads where it is a teacher, of the cosine of the two texts where it is not."""
    folder = resolve_base(settings.base)
    state = read_state(folder) if folder is not None else None
    if state is not None and state.pooling != model.pooling:
        state = None  # its heads read other vectors
    teacher = load_teacher(folder, settings.device)[0] if folder is not None and state is not None else None
    if teacher is not None and teacher.projection is not None:
        if model.projection is not None:
            model.projection.load_state_dict(teacher.projection.state_dict())
        else:
            teacher = state = None  # likewise
    own = list(state.heads) if state is not None else []
    z: dict[int, NDArray[np.float64]] = {}
    if teacher is not None and state is not None:
        with torch.no_grad():
            for n, head in enumerate(heads):
                if HEADS[head] in own:
                    model.linear.weight[n] = teacher.linear.weight[own.index(HEADS[head])]
                    model.linear.bias[n] = teacher.linear.bias[own.index(HEADS[head])]
        raw = predict(model, encoded[2]).astype(np.float64)  # as the teacher would: where it begins
        for n, head in enumerate(heads):
            if HEADS[head] in own:
                calibration = state.heads[HEADS[head]]
                z[head] = calibration.scale * raw[:, n] + calibration.shift + _offset(split.test, head)
    if len(z) < len(heads):
        held_out = split.validation if len(split.validation) else split.train
        sides = [encoded[1] if len(split.validation) else None, encoded[2]]
        both = [
            predict(model, of, vectors=True).sum(1)  # of unit vectors' products: their cosine
            if isinstance(of, Apart)
            else cosines(model, tokenizer, part, settings.max_tokens)
            for of, part in zip(sides, (held_out, split.test), strict=True)
        ]
        for head in set(heads) - set(z):
            scale, shift = measure.fit_platt(
                both[0], _offset(held_out, head), held_out.trials[:, head], held_out.positives[:, head]
            )
            z[head] = scale * both[1] + shift + _offset(split.test, head)
            if settings.apart:
                # The head begins where the base stands: at the cosine.
                with torch.no_grad():
                    model.linear.weight[heads.index(head)] = max(scale, 0.0)
                    model.linear.bias[heads.index(head)] = shift
    metrics = [
        measure.metrics(z[head], split.test.trials[:, head], split.test.positives[:, head], HEADS[head] == RELEVANCE)
        for head in heads
    ]
    return metrics, ["the base's own head" if HEADS[head] in own else "cosine, calibrated" for head in heads]


def cosines(model: Model, tokenizer: Any, part: Examples, max_tokens: int) -> NDArray[np.float64]:
    """Return the cosine of the two texts of each pair."""
    unit = []
    for side in range(2):
        texts = list(dict.fromkeys(pair[side] for pair in part.pairs))
        at = {text: n for n, text in enumerate(texts)}
        vectors = predict(model, Encoded(tokenizer, [(text, "") for text in texts], max_tokens), vectors=True)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit.append((vectors / np.maximum(lengths, 1e-9))[[at[pair[side]] for pair in part.pairs]])
    return np.asarray((unit[0] * unit[1]).sum(1), np.float64)
