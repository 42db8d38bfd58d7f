"""Scoring against `sentence_transformers.CrossEncoder.predict`: same weights, same pairs, one thread, alternating.

The teacher is MiniLM fine-tuned on human judgements (crowdflower, titles): ``HEFT_BENCH_TEACHER`` names its folder, or
it is trained for an epoch, two minutes of one core, where ``HEFT_TEST_DATA`` holds the judgements. Pairs are those of
the queries it has not seen. Each ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heft.models.records import Slate
from heft.models.teacher.template import Pair, TeacherConfig, Template
from heft.stream.config.settings import environment
from heft.stream.events import wire
from heft.stream.events.log import read_lines

_ROUNDS = 5
_TIMED = 320  # pairs a round
_DATA = "crowdflower_train.csv.gz"
_NEEDED = ("torch", "transformers", "onnxruntime", "sentence_transformers")
_EXACT, _NEAR = ("torch float32", "onnxruntime float32"), ("onnxruntime int8", "torch bfloat16")


def compare(log: Path) -> None:
    """Print how fast each backend is beside CrossEncoder, how near, and what the cache brings on a log."""
    data = Path(environment("HEFT_TEST_DATA") or "") / _DATA
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing or not data.exists():
        print(f"  passed over: {', '.join(missing) or f'HEFT_TEST_DATA names no folder with {_DATA}'} is missing")
        return
    with TemporaryDirectory(prefix="heft-bench-") as folder:
        pairs, labels = _judged(data, unseen=True)
        teacher = Path(environment("HEFT_BENCH_TEACHER") or _trained(data, Path(folder)))
        _compare(teacher, Path(folder), pairs, labels)
    _cache(log)


def _compare(teacher: Path, folder: Path, pairs: list[Pair], labels: NDArray[np.float64]) -> None:
    import torch

    from heft.models.teacher.score.engine import Engine

    torch.set_num_threads(1)
    peer = _cross_encoder(teacher, folder)
    engines = {backend: Engine(teacher, "cpu", backend) for backend in (*_EXACT, *_NEAR)}
    sides: dict[str, Callable[[Sequence[Pair]], NDArray[Any]]] = {
        "CrossEncoder": lambda some: peer.predict([tuple(pair) for pair in some], show_progress_bar=False),
        **{backend: (lambda some, engine=engine: engine.logits(some)[:, 0]) for backend, engine in engines.items()},
    }
    whole = {name: np.asarray(score(pairs), np.float64) for name, score in sides.items()}
    rng = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_ROUNDS):
        some = [pairs[n] for n in rng.choice(len(pairs), _TIMED, replace=False)]
        for name, score in sides.items():
            seconds[name].append(_timed(lambda score=score, some=some: score(some)))
    base = whole["CrossEncoder"]
    for name, times in seconds.items():
        ratio = median(peer / own for peer, own in zip(seconds["CrossEncoder"], times, strict=True))
        print(
            f"  {name:<20} {ratio:5.2f}  {_TIMED / median(times):6.0f} pairs/s  max |Δ logit| "
            f"{np.abs(whole[name] - base).max():.1e}  AUC {_auc(whole[name], labels):.4f}  "
            f"rank correlation {_rank_correlation(whole[name], base):.4f}",
            flush=True,
        )
    _last_layer(engines[_EXACT[0]], pairs, labels)


def _last_layer(engine: Any, pairs: list[Pair], labels: NDArray[np.float64]) -> None:
    ratios = []
    for _ in range(_ROUNDS):
        score = _timed(lambda: engine.logits(pairs[:_TIMED]))
        ratios.append(_timed(lambda: engine.examine(pairs[:_TIMED], labels[:_TIMED])) / score)
    print(f"  probability, loss, EL2N and last-layer gradient norm: {median(ratios):.3f} of the time of a score")


def _cache(log: Path) -> None:
    """Print how many scores of a log's items one computed score serves: the speed-up of a cache that holds them all."""
    slates = [event for event in map(wire.decode, read_lines(log)) if isinstance(event, Slate) and not event.bot]
    for text in (TeacherConfig().template, "{query} | {item.text}"):
        template, seen, items, new = Template(text), set[Pair](), 0, [0, 0]
        for n, slate in enumerate(slates):
            for item in slate.items:
                pair = template.render(slate, item)
                items += 1
                new[2 * n >= len(slates)] += pair not in seen
                seen.add(pair)
        print(
            f"  {log.stem}, {text}: {items / sum(new):.2f} times as fast with the cache, {items / 2 / new[1]:.2f} over "
            f"the second half ({items:,} items, {sum(new):,} pairs)",
            flush=True,
        )


def _timed(run: Callable[[], object]) -> float:
    begun = perf_counter()
    run()
    return perf_counter() - begun


def _judged(data: Path, *, unseen: bool) -> tuple[list[Pair], NDArray[np.float64]]:
    with gzip.open(data, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if _unseen(row["query"]) == unseen]
    pairs = [Pair(row["query"], row["product_title"]) for row in rows]
    return pairs, np.array([row["median_relevance"] == "4" for row in rows], np.float64)


def _unseen(query: str) -> bool:
    return int(hashlib.md5(query.encode(), usedforsecurity=False).hexdigest(), 16) % 5 == 0


def _trained(data: Path, folder: Path) -> Path:
    from heft.models.teacher.data.judgements import read_relevance, split_by_query
    from heft.models.teacher.settings import FinetuneSettings
    from heft.models.teacher.train.finetune import Source, finetune, learning_rate_of

    file = folder / "judged.csv"
    pairs, labels = _judged(data, unseen=False)
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = ((*pair, int(label)) for pair, label in zip(pairs, labels, strict=True))
        csv.writer(out).writerows([("query", "text", "grade"), *rows])
    examples, low, high = read_relevance(file, 0.0, 1.0)
    rate, reads = learning_rate_of("minilm", 0), TeacherConfig().template
    settings = FinetuneSettings(template=reads, base="minilm", epochs=1, learning_rate=rate, max_tokens=64)
    finetune(split_by_query(examples), folder / "teacher", settings, [Source(_DATA, 0, "")], (low, high))
    return folder / "teacher"


def _cross_encoder(teacher: Path, folder: Path) -> Any:
    """Return a CrossEncoder with the teacher's weights: its encoder, mean pooling and calibrated head."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification
    from transformers.modeling_outputs import SequenceClassifierOutput

    from heft.models.teacher.network.teacher_folder import load_teacher

    class MeanPooled(BertForSequenceClassification):
        def forward(
            self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, **_: Any
        ) -> Any:
            hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return SequenceClassifierOutput(logits=self.classifier((hidden * weights).sum(1) / weights.sum(1)))

    model, tokenizer, state = load_teacher(teacher, "cpu")
    config = model.encoder.config
    config.num_labels = 1
    plain = BertForSequenceClassification(config)
    plain.bert.load_state_dict(model.encoder.state_dict(), strict=False)
    head = next(iter(state.heads.values()))
    with torch.no_grad():
        plain.classifier.weight.copy_(model.linear.weight[:1] * head.scale)
        plain.classifier.bias.copy_(model.linear.bias[:1] * head.scale + head.shift)
    plain.save_pretrained(folder / "peer")
    tokenizer.save_pretrained(folder / "peer")
    options: dict[str, Any] = {"device": "cpu", "max_length": state.max_tokens, "local_files_only": True}
    peer = CrossEncoder(str(folder / "peer"), activation_fn=torch.nn.Identity(), **options)
    peer.model.__class__ = MeanPooled
    return peer


def _auc(z: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    ranks = _ranks(z)
    positives = labels.sum()
    return float((ranks[labels > 0].sum() - positives * (positives - 1) / 2) / (positives * (len(z) - positives)))


def _ranks(z: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(z, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])
