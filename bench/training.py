"""Fine-tuning MiniLM against the Hugging Face Trainer on the same pairs, and adapters against all weights.

The three take turns over the same pairs; a ratio is the median of the rounds'. The first steps of a turn warm up and do
not count.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from bench.relevance import SOURCE, judgements
from heft.models.teacher.data.examples import Examples, take
from heft.stream.config.settings import environment

PAIRS = 480
ROUNDS = 3
_BATCH = 32
_WARM = 3
_TOKENS = 128


def compare(pairs: int = PAIRS, rounds: int = ROUNDS) -> dict[str, float]:
    """Print pairs a second of each way and the ratios; return the ratios."""
    data = environment("HEFT_TEST_DATA")
    if data is None or not (Path(data) / SOURCE).exists():
        print(f"  HEFT_TEST_DATA names no folder with {SOURCE}")
        return {}
    examples = judgements(Path(data) / SOURCE)
    chosen = take(examples, np.random.default_rng(0).permutation(len(examples))[:pairs])
    ways: dict[str, Callable[[Examples], float]] = {
        "heft": lambda part: heft(part, lora=0),
        "Hugging Face Trainer": hugging_face,
        "heft, LoRA": lambda part: heft(part, lora=8),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            speeds[name].append(way(chosen))
    for name, each in speeds.items():
        print(f"  {name}: {median(each):.1f} pairs/s", flush=True)
    ratios = {
        "heft / Hugging Face Trainer": _ratio(speeds["heft"], speeds["Hugging Face Trainer"]),
        "LoRA / all weights": _ratio(speeds["heft, LoRA"], speeds["heft"]),
    }
    for name, ratio in ratios.items():
        print(f"  {name}: {ratio:.2f}", flush=True)
    return ratios


def heft(examples: Examples, lora: int) -> float:
    """Return pairs a second of our loop."""
    import torch

    from heft.models.teacher.network.bases import load_base, resolve_base
    from heft.models.teacher.network.encoded import Encoded
    from heft.models.teacher.network.model import Model
    from heft.models.teacher.settings import FinetuneSettings
    from heft.models.teacher.train.finetune import learning_rate_of, loss_of, prepare
    from heft.models.teacher.train.train import Trainer

    torch.manual_seed(0)
    settings = FinetuneSettings(
        epochs=1, batch=_BATCH, lora=lora, learning_rate=learning_rate_of("minilm", lora), device="cpu"
    )
    encoder, tokenizer = load_base(resolve_base("minilm"), list, _TOKENS, settings.dropout)
    model = Model(encoder, ["relevance"], "mean", settings.dropout)
    prepare(model, settings)
    encoded = Encoded(tokenizer, examples.pairs, _TOKENS)
    loss = loss_of(model, encoded, examples, [2], _BATCH, torch.device("cpu"))
    trainer = Trainer(model, encoded, loss, None, settings, fast=("linear.",))
    times: list[float] = []
    with TemporaryDirectory() as folder:
        trainer.run(Path(folder), "bench", lambda *_: times.append(perf_counter()))
    return _speed(times)


def hugging_face(examples: Examples) -> float:
    """Return pairs a second of the usual loop: batches padded to their longest text, AdamW, the same rate."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from heft.models.teacher.network.bases import resolve_base

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            times.append(perf_counter())

    torch.manual_seed(0)
    times: list[float] = []
    base = resolve_base("minilm").folder
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, local_files_only=True)
    texts = tokenizer(
        [q for q, _ in examples.pairs], [t for _, t in examples.pairs], truncation=True, max_length=_TOKENS
    )
    rows = [
        {name: texts[name][n] for name in texts} | {"labels": float(examples.positives[n, 2])}
        for n in range(len(examples))
    ]
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=_BATCH, num_train_epochs=1, learning_rate=5e-5, weight_decay=0.01,
            use_cpu=True, save_strategy="no", report_to=[], logging_strategy="no", disable_tqdm=True,
            dataloader_num_workers=0,
        )  # fmt: skip
        Trainer(
            model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer), callbacks=[Clock()]
        ).train()
    return _speed(times)


def _speed(ends: list[float]) -> float:
    """Pairs a second between the ends of the steps after those that warm up."""
    return _BATCH * (len(ends) - 1 - _WARM) / (ends[-1] - ends[_WARM])


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))
