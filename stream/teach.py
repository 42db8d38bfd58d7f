"""The shell around the teacher: reads logs and files, shows progress, and leaves the learning to models/teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from models.sample import Record
from models.teacher.data import Examples, Log, Split, read_relevance, split_by_query, together
from models.teacher.settings import FinetuneSettings, PretrainSettings
from models.teacher.text import Template
from stream.config import Config
from stream.join import Joiner
from stream.log import read_lines
from stream.terminal import console, progress_over

_METRICS = ("spearman", "auc", "logloss", "ne", "calibration")


class TeachError(ValueError):
    """A command that names no data, or data that does not fit."""


def read_log(paths: Sequence[Path], config: Config) -> Iterator[Record]:
    """Yield the records of logs, joined as live: what the teacher learns from is what the learner learns from."""
    with progress_over(paths, "Reading") as advance:
        for path in paths:
            joiner = Joiner(config.join, ["log"], config.decoder())
            for offset, raw in enumerate(read_lines(path)):
                joiner.push(0, offset, raw)
                if offset % 256 == 255:
                    for _, record in joiner.drain():
                        yield record
                    advance(256)
            for _, record in [*joiner.drain(), *joiner.finish()]:
                yield record


class Material(NamedTuple):
    """What a teacher is made of: logs, a file of judgements, or both.

    Attributes
    ----------
    logs
        Event logs, one after the other.
    relevance, grade_range
        Judgements, and the grades that mean 0 and 1.
    until_ms
        Event time at which the training data ends; what became known later is for measuring.
    keep_negatives
        Share of the unclicked samples that is trained on or read.
    """

    logs: Sequence[Path]
    relevance: Path | None = None
    grade_range: str | None = None
    until_ms: int | None = None
    keep_negatives: float = 1.0


def finetune(material: Material, out: Path, config: Config, settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune a teacher; return its card, or nothing in any but the first of several processes."""
    from models.teacher.finetune import Source
    from models.teacher.finetune import finetune as run
    from models.teacher.processes import joined, number

    split, grades = _split(material, config, settings.seed)
    files = [*material.logs, *([material.relevance] if material.relevance else [])]
    sources = [Source(*_identity(path)) for path in files]
    with joined(), steps("Fine-tuning") as progress:
        return run(split, out, settings, sources, grades, None if number() else progress)


def pretrain(material: Material, out: Path, config: Config, settings: PretrainSettings) -> dict[str, Any]:
    """Pre-train a model on the texts of the material; return its card."""
    from models.teacher.pretrain import pretrain as run

    pairs = []
    if material.logs:
        log = Log(read_log(material.logs, config), Template(config.teacher.template))
        pairs += log.texts(material.until_ms, material.keep_negatives, settings.seed)
    if material.relevance:
        pairs += read_relevance(material.relevance, 0.0, 1.0)[0].pairs
    if not pairs:
        msg = "give a log, or --relevance"
        raise TeachError(msg)
    with steps("Pre-training") as progress:
        return run(pairs, out, settings, progress)


def evaluate(
    model: Path, logs: Sequence[Path], relevance: Path | None, grade_range: str | None, device: str, config: Config
) -> dict[str, Any]:
    """Measure a teacher on logs or on a file of judgements."""
    from models.teacher.evaluate import evaluate as run
    from models.teacher.model import TeacherError, read_state

    state = read_state(model)
    if state is None:
        msg = f"{model}: no teacher.json; `heft teacher finetune --out {model}` makes one"
        raise TeacherError(msg)
    if bool(logs) == (relevance is not None):
        msg = "give a log to evaluate on, or --relevance FILE.csv"
        raise TeachError(msg)
    if relevance:
        low, high = _grades(grade_range) if grade_range else state.grades or (None, None)
        examples: Examples = read_relevance(relevance, low, high)[0]
    else:
        log = Log(read_log(logs, config), Template(state.template))
        examples = log.examples(state.rates or log.base_rates())
    with steps("Scoring") as progress:
        return run(model, examples, device, progress)


def show_evaluation(report: dict[str, Any]) -> None:
    """Print the metrics of each head."""
    table = Table("head", *_METRICS, "labels", "positive", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name, head in report["heads"].items():
        values = (f"{head[metric]:.4f}" for metric in _METRICS)
        table.add_row(name, *values, f"{head['labels']:,.0f}", f"{head['positives']:,.1f}")
    console.print(table)


def show_card(card: dict[str, Any]) -> None:
    """Print what fine-tuning brought."""
    table = Table("head", "", *_METRICS, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name, head in card["heads"].items():
        for label, key in (
            ("before", "before"),
            ("after", "after_calibrated"),
            ("text alone", "after_without_position"),
        ):
            table.add_row(name, label, *(f"{head[key][metric]:.4f}" for metric in _METRICS))
    console.print(table)


@contextmanager
def steps(title: str) -> Iterator[Any]:
    """Show a bar over steps; yield what to tell steps done, steps in all, and a note."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _split(material: Material, config: Config, seed: int) -> tuple[Split, tuple[float, float] | None]:
    log = None
    if material.logs:
        read = Log(read_log(material.logs, config), Template(config.teacher.template))
        log = read.split(material.until_ms, material.keep_negatives, seed)
    if material.relevance is None:
        if log is None:
            msg = "give a log to learn from, --relevance FILE.csv, or both"
            raise TeachError(msg)
        return log, None
    known = _grades(material.grade_range) if material.grade_range else (None, None)
    examples, low, high = read_relevance(material.relevance, *known)
    judged = split_by_query(examples)
    return (together(log, judged) if log else judged), (low, high)


def _grades(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        msg = f"--grade-range is {text!r}; expected LOW:HIGH, the grades that mean 0 and 1, such as 1:4"
        raise TeachError(msg) from None


def _identity(path: Path) -> tuple[str, int, str]:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return path.name, path.stat().st_size, digest.hexdigest()
