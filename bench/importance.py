"""What a teacher is worth: every weighting at several learning rates, on the same samples as `uniform`.

What was shown after the teacher's data is judged; on the simulated shop by the expected log loss of a click that
someone meant, elsewhere by the clicks. Each weighting stands with the best of its learning rates, `uniform` too, since
a weight is a learning rate in disguise.

    HEFT_TEACHER__MODEL=DIR python -m bench importance shop.jsonl
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.evaluate import formulas
from heft.models.importance import weightings
from heft.models.rankers.arms import Arm, RankerConfig
from heft.models.records import Closed, Record, Shown, data_ends_ms
from heft.stream.config.settings import load
from heft.stream.learn.learner import Learner, LearnerConfig, Outcome
from heft.stream.score.scorer import Scorer
from heft.stream.shop.simulate import truth_path
from heft.stream.shop.truth import SlateTruth, read_truth
from heft.stream.teacher.clients import replay_sources
from heft.stream.teacher.commands import read_log

RATES = (0.3, 0.45, 0.7)
WEIGHTINGS = (
    *(
        weighting.name for weighting in weightings.WEIGHTINGS if not weighting.source
    ),  # what exchanges weights has none to sweep
    *(reading.name.lower() for reading in weightings.PublishedRecipe),
)
BLOCKS = 100
"""Stretches of time that are drawn again and again for an interval."""


class Losses(NamedTuple):
    """Sums by block of time [BLOCKS, ...] over all samples and over those on new items."""

    names: tuple[str, ...]
    loss: NDArray[np.float64]
    """[BLOCKS, 2, K + 1]"""
    counts: NDArray[np.float64]
    """Samples and clicks [BLOCKS, 2, 2]."""
    auc: dict[str, float]
    """On all samples, by the clicks that were logged."""


def sweep(names: Sequence[str] = WEIGHTINGS, rates: Sequence[float] = RATES) -> tuple[Arm, ...]:
    """Return an arm for each weighting and learning rate; the first is `uniform` at its default."""
    # What is stacked has a handful of numbers of its own, and wants smaller steps.
    own = [(weighting, rate / 9.0 if weighting == "stacked" else rate) for weighting in names for rate in rates]
    return (
        Arm("uniform"),
        *(Arm(f"{weighting}@{rate:.3g}", alpha=rate, weighting=weighting) for weighting, rate in own),
    )


def run(records: Iterable[Record], truths: dict[str, SlateTruth], ranker: RankerConfig, from_ms: int) -> Losses:
    """Learn the records once and return the losses of what was shown from a time on."""
    rows: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    said: list[NDArray[np.float32]] = []
    clicked: list[NDArray[np.uint8]] = []

    def observe(outcome: Outcome) -> None:
        vectors = outcome.vectors
        if outcome.head != "click" or vectors.at_ms < from_ms or not outcome.measured:
            return
        seen = vectors.seen
        p = np.clip(outcome.shown.p[seen].astype(np.float64), formulas.LEAST_P, 1.0 - formulas.LEAST_P)
        truth = truths.get(outcome.request_id)
        target = outcome.labels[seen].astype(np.float64) if truth is None else np.array(truth.human)[seen]
        loss = -(target[:, None] * np.log(p) + (1.0 - target[:, None]) * np.log1p(-p))
        new = vectors.new[seen]
        sums = np.stack([loss.sum(axis=0), loss[new].sum(axis=0)])
        counts = np.array([[len(target), target.sum()], [new.sum(), target[new].sum()]])
        rows.append((vectors.at_ms, sums, counts))
        said.append(outcome.shown.p[seen])
        clicked.append(outcome.labels[seen])

    learner = Learner(LearnerConfig(ranker=ranker), observe)
    for record in records:
        learner.apply(0, record)
    learner.flush()
    block = np.minimum(np.arange(len(rows)) * BLOCKS // len(rows), BLOCKS - 1)
    loss = np.zeros((BLOCKS, *rows[0][1].shape))
    counts = np.zeros((BLOCKS, 2, 2))
    for n, (_, sums, its) in enumerate(rows):
        loss[block[n]] += sums
        counts[block[n]] += its
    names = (*(arm.name for arm in ranker.click_arms), "mixture")
    p, y = np.concatenate(said), np.concatenate(clicked)
    auc = {name: formulas.auc(y, p[:, k]) for k, name in enumerate(names)}
    return Losses(names, loss, counts, auc)


def ne(losses: Losses, name: str, part: int = 0, blocks: NDArray[np.int64] | None = None) -> float:
    """Return the normalised entropy of an arm over all samples (0) or new items (1), over some blocks."""
    some = slice(None) if blocks is None else blocks
    n, clicks = losses.counts[some, part].sum(axis=0)
    return float(losses.loss[some, part, losses.names.index(name)].sum() / (n * formulas.entropy(clicks / n)))


def best(losses: Losses, weighting: str) -> str:
    """Return the arm of a weighting whose learning rate is best over all samples."""
    arms = [name for name in losses.names if name == weighting or name.startswith(f"{weighting}@")]
    return min(arms, key=lambda name: ne(losses, name))


def interval(losses: Losses, name: str, other: str, part: int = 0, seed: int = 1) -> tuple[float, float, float]:
    """Return the relative difference of two arms' losses, in percent, and a 95 % bootstrap interval over blocks."""
    a, b = (losses.loss[:, part, losses.names.index(each)] for each in (name, other))
    drawn = np.random.default_rng(seed).integers(0, BLOCKS, (2_000, BLOCKS))
    ratios = 100.0 * (a[drawn].sum(axis=1) / b[drawn].sum(axis=1) - 1.0)
    low, high = np.quantile(ratios, [0.025, 0.975]).tolist()
    return float(100.0 * (a.sum() / b.sum() - 1.0)), low, high


def in_line(records: Iterable[Record]) -> list[Record]:
    """Return records in which every score was there when its slate was shown."""
    records = list(records)
    late = {record.request_id: record.scores for record in records if isinstance(record, Closed)}
    moved: list[Record] = []
    for record in records:
        if isinstance(record, Shown):
            later = [msgspec.structs.replace(each, on_time=True) for each in late.get(record.slate.request_id, [])]
            record = msgspec.structs.replace(record, scores=[*record.scores, *later])
        elif isinstance(record, Closed):
            record = msgspec.structs.replace(record, scores=[])
        moved.append(record)
    return moved


def compare(log: Path) -> None:
    """Print what each weighting brings on a log, with scores on time only and with all of them in line."""
    config = load()
    make = replay_sources(config)
    if make is None:
        print("  no teacher: name its folder in HEFT_TEACHER__MODEL", flush=True)
        return
    scorer = Scorer(make())
    joined = list(read_log([log], config))
    scorer.expect(joined)
    records = [scorer.score(record) for record in joined]
    version = next(score.version for record in records if isinstance(record, Shown | Closed) for score in record.scores)
    beside = truth_path(log)
    truths = {truth.request_id: truth for truth in read_truth(beside)[1]} if beside.exists() else {}
    every = RankerConfig(click_arms=sweep(), click_teacher_arms=())
    cases = (
        ("without a teacher", RankerConfig(click_teacher_arms=()), records),
        ("scores on time", config.learner.ranker, records),
        ("scores in line", config.learner.ranker, in_line(records)),
        ("every weighting and learning rate, scores in line", every, in_line(records)),
    )
    for title, ranker, given in cases:
        show(title, run(given, truths, ranker, data_ends_ms(version)))


def show(title: str, losses: Losses) -> None:
    """Print each weighting at its best learning rate beside `uniform` at its own."""
    control = best(losses, "uniform")
    print(f"  {title}: difference in log loss to {control}, %, with 95 % intervals; all traffic, new items", flush=True)
    for weighting in dict.fromkeys(name.partition("@")[0] for name in losses.names):
        name = best(losses, weighting)
        here, new = (interval(losses, name, control, part) for part in (0, 1))
        numbers = "   ".join(f"{mean:+6.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in (here, new))
        print(f"    {name:18} NE {ne(losses, name):.4f} AUC {losses.auc[name]:.4f}   {numbers}", flush=True)
