"""What ``heft teacher`` does: read logs and files, show progress, and leave learning to models/teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
from rich.progress import Progress, TextColumn
from rich.text import Text

from heft.models.records import Record
from heft.models.teacher.data.examples import RELEVANCE, Examples, Split, together
from heft.models.teacher.data.judgements import read_relevance, split_by_query
from heft.models.teacher.data.log_samples import Log
from heft.models.teacher.settings import FinetuneSettings, PretrainSettings
from heft.models.teacher.template import Template
from heft.stream.config.settings import Config
from heft.stream.events.log import read_lines
from heft.stream.join.joiner import Joiner
from heft.stream.teacher.ranker_baseline import RankerBaseline
from heft.stream.terminal.progress import bar_columns
from heft.stream.terminal.report_tables import open_console, progress_over
from heft.stream.terminal.table import Column, Fitted, number

if TYPE_CHECKING:
    from heft.models.teacher.score.explain import Explanation, TokenShare
    from heft.models.teacher.train.finetune import Source
    from heft.models.teacher.train.refresh import Verdict

_Grades: TypeAlias = tuple[float, float]

_BAR_WIDTH = 15
_MEASURES = {"auc": "auc", "ne": "ne", "spearman": "spearman", "calibration": "calibr.", "logloss": "logloss"}


class _Head(NamedTuple):
    """A row of a table: a head, when it was measured, and its metrics by name."""

    name: str
    stage: str
    measures: dict[str, float]


class TeachError(ValueError):
    """A command without data, or with data that does not fit."""


def read_log(paths: Sequence[Path], config: Config) -> Iterator[Record]:
    """Yield the records of logs, joined as live, so that the teacher learns from the same samples as the learner.

    Several logs, of days or of partitions, are joined each by itself; their records come in the order of time.
    """
    with progress_over(paths, "Reading") as advance:
        yield from merge(*(_joined(path, config, advance) for path in paths), key=lambda record: record.key)


def _joined(path: Path, config: Config, advance: Callable[[int], None]) -> Iterator[Record]:
    joiner = Joiner(config.join, ["log"], config.decoder())
    for offset, raw in enumerate(read_lines(path)):
        joiner.push(0, offset, raw)
        if offset % 256 == 255:
            for _, record in joiner.drain():
                yield record
            joiner.rejected.clear()  # nobody reads them here, and up to 64 KB of each would stay in memory
            advance(256)
    for _, record in [*joiner.drain(), *joiner.finish()]:
        yield record


def labelled(paths: Sequence[Path], config: Config, template: str, residual: bool = False) -> Log:
    """Return the labelled samples of logs.

    With ``residual`` they come with the predictions of a ranker that learns the logs at the same time.
    """
    records = read_log(paths, config)
    if not residual:
        return Log(records, Template(template))
    baseline = RankerBaseline(config.learner)
    return Log(baseline.read(records), Template(template), baseline.clicks)


class Material(NamedTuple):
    """What a teacher is made of: logs, a file of judgements, or both.

    Attributes
    ----------
    logs
        Event logs: of one partition or of several, of one day or of several.
    relevance, grade_range
        Judgements, and the grades that mean 0 and 1.
    until_ms
        Event time at which the training data ends; what became known later is for measuring.
    """

    logs: Sequence[Path]
    relevance: Path | None = None
    grade_range: str | None = None
    until_ms: int | None = None


def finetune(material: Material, out: Path, config: Config, settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune a teacher; return its card. Of several processes, all but the first return an empty card."""
    from heft.models.teacher.network.bases import resolve_base
    from heft.models.teacher.network.processes import joined, number
    from heft.models.teacher.train.finetune import finetune as run

    base = resolve_base(settings.base)  # first: reading a log takes minutes, and the base may be missing
    split, grades = _split(material, config, settings)
    with joined(), steps("Fine-tuning") as progress:
        return run(split, out, settings, _sources(material), grades, None if number() else progress, base)


def pretrain(material: Material, out: Path, config: Config, settings: PretrainSettings) -> dict[str, Any]:
    """Pre-train a model on the texts of the material; return its card."""
    from heft.models.teacher.network.bases import resolve_base
    from heft.models.teacher.train.pretrain import pretrain as run

    base = resolve_base(settings.base)  # first, for the same reason
    pairs = []
    if material.logs:
        log = labelled(material.logs, config, config.teacher.template)
        pairs += log.texts(material.until_ms, settings.keep_negatives, settings.seed)
    if material.relevance:
        pairs += read_relevance(material.relevance, 0.0, 1.0)[0].pairs
    if not pairs:
        msg = "give a log, or --relevance"
        raise TeachError(msg)
    with steps("Pre-training") as progress:
        return run(pairs, out, settings, progress, base)


def evaluate(
    model: Path, logs: Sequence[Path], relevance: Path | None, grade_range: str | None, device: str, config: Config
) -> dict[str, Any]:
    """Measure a teacher on logs or on a file of judgements."""
    from heft.models.teacher.state import require_state
    from heft.models.teacher.train.evaluate import evaluate as run

    state = require_state(model)
    if bool(logs) == (relevance is not None):
        msg = "give a log to evaluate on, or --relevance FILE.csv"
        raise TeachError(msg)
    if relevance:
        low, high = _grades(grade_range) if grade_range else state.grades or (None, None)
        examples: Examples = read_relevance(relevance, low, high)[0]
    else:
        log = labelled(logs, config, state.template, state.residual)
        # At the beginning of a log the ranker that learns it knows nothing yet, so there only later slates count.
        after_ms = state.data_ends_ms or 0 if state.residual else 0
        examples = log.examples(state.rates or log.base_rates(), after_ms)
    with steps("Scoring") as progress:
        return run(model, examples, device, progress)


def refresh(
    material: Material, running: Path, held_back: float, fewest_clicks: int, device: str, config: Config
) -> Verdict:
    """Train the running teacher again with its own settings, on logs up to now; let it take over if surely better.

    Parameters
    ----------
    material
        Logs, and judgements if the running teacher was trained on some.
    running
        Folder of the running teacher, or the link to it.
    held_back
        Share in (0, 1) of the log's samples, the last ones, on which the two are compared.
    fewest_clicks
        Fewest clicks among them for a promotion.
    device
        ``cpu``, ``cuda``, or ``auto``.
    config
        For the join and the template.

    Raises
    ------
    TeachError
        If the running teacher was not trained on a log, or was trained on judgements and none are given.
    """
    from heft.models.teacher.state import OtherRunError, read_state
    from heft.models.teacher.train.finetune import finetune as run
    from heft.models.teacher.train.refresh import compare, promote

    if not material.logs:
        msg = "give the log up to now: what came last in it decides between the two"
        raise TeachError(msg)
    state = read_state(running)
    if state is None or state.data_ends_ms is None:
        msg = f"{running}: no teacher of a log; `heft teacher finetune LOG --out {running}` makes one"
        raise TeachError(msg)
    if RELEVANCE in state.heads and material.relevance is None:
        msg = f"{running} was made of human judgements too: give them with --relevance FILE.csv"
        raise TeachError(msg)
    recipe = msgspec.convert(json.loads((running / "card.json").read_text())["settings"], FinetuneSettings)
    settings = msgspec.structs.replace(recipe, template=config.teacher.template, device=device)
    candidate = running.with_name(f"{running.name}.next")
    if (candidate / "teacher.json").exists():
        shutil.rmtree(candidate)  # it was not promoted last time; an unfinished one goes on
    log = labelled(material.logs, config, settings.template, settings.residual)
    of_log = log.split(log.time_at(1.0 - held_back), settings.keep_negatives, settings.seed)
    split, grades = _with_judgements(of_log, material, state.grades)
    with steps("Fine-tuning") as progress:
        try:
            run(split, candidate, settings, _sources(material), grades, progress)
        except OtherRunError:  # of an earlier refresh that was killed before the log grew
            shutil.rmtree(candidate)
            run(split, candidate, settings, _sources(material), grades, progress)
    after_ms = max(state.data_ends_ms, split.ends_ms or 0)
    same = state.template == settings.template
    of_running = log if same else labelled(material.logs, config, state.template, state.residual)
    samples = of_running.later(after_ms), log.later(after_ms)
    verdict = compare(running, candidate, samples, after_ms, device, fewest_clicks)
    (candidate / "refresh.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdict)) + b"\n")
    if verdict.promote:
        promote(running, candidate)
    return verdict


def evaluation_table(report: dict[str, Any]) -> Fitted[_Head]:
    """Return the metrics of each head."""
    columns: list[Column[_Head]] = [
        Column("head", lambda head: head.name, "left"),
        *(_measured(key, heading) for key, heading in _MEASURES.items()),
        Column("labels", lambda head: f"{head.measures['labels']:,.0f}"),
        Column("positive", lambda head: f"{head.measures['positives']:,.1f}"),
        _measured("ece", "ece"),
        _measured("auc_without_position", "auc of the text alone"),
    ]
    return Fitted(columns, [_Head(name, "", measures) for name, measures in report["heads"].items()])


def card_table(card: dict[str, Any]) -> Fitted[_Head]:
    """Return the metrics of each head before and after fine-tuning."""
    stages = {"before": "before", "after": "after_calibrated", "text alone": "after_without_position"}
    columns: list[Column[_Head]] = [
        Column("head", lambda head: head.name, "left"),
        Column("measured", lambda head: head.stage, "left"),
        *(_measured(key, heading) for key, heading in _MEASURES.items()),
    ]
    heads = [_Head(name, stage, head[key]) for name, head in card["heads"].items() for stage, key in stages.items()]
    return Fitted(columns, heads)


def _measured(key: str, heading: str) -> Column[_Head]:
    return Column(heading, lambda head: number(head.measures.get(key)))


def explanation_table(found: Explanation) -> Fitted[TokenShare]:
    """Return what a teacher looked at, with two bars for each token."""
    most = max(token.attention for token in found.tokens)
    strongest = max(abs(token.gradient_input) for token in found.tokens) or 1.0

    def attention(token: TokenShare) -> Text:
        return Text(f"{token.attention:.3f} {_bar(token.attention / most)}")

    def gradient(token: TokenShare) -> Text:
        share = token.gradient_input
        return Text.assemble(f"{share:+.4f} ", (_bar(abs(share) / strongest), "green" if share > 0 else "red"))

    columns: list[Column[TokenShare]] = [
        Column("token", lambda token: token.token, "left"),
        Column("attention", attention, "left"),
        Column("gradient x input", gradient, "left"),
    ]
    return Fitted(columns, found.tokens)


def show_explanation(found: Explanation) -> None:
    """Print a prediction of a teacher, and what it looked at."""
    prediction = f"{found.head} {found.probability:.4f} (logit {found.logit:+.3f}), teacher {found.version}"
    open_console(stderr=True).print(prediction, explanation_table(found), sep="\n")


def _bar(share: float) -> str:
    return "█" * round(share * _BAR_WIDTH)


@contextmanager
def steps(title: str) -> Iterator[Any]:
    """Show a progress bar; yield the function to call with the steps done, the steps in all, and a note."""
    columns = (*bar_columns(title), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=open_console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _split(material: Material, config: Config, settings: FinetuneSettings) -> tuple[Split, _Grades | None]:
    if settings.residual and not material.logs:
        msg = "--residual teaches what a ranker lacks on a log: give a log"
        raise TeachError(msg)
    if not material.logs:
        return _with_judgements(None, material)
    log = labelled(material.logs, config, settings.template, settings.residual)
    return _with_judgements(log.split(material.until_ms, settings.keep_negatives, settings.seed), material)


def _with_judgements(
    of_log: Split | None, material: Material, grades: _Grades | None = None
) -> tuple[Split, _Grades | None]:
    """Return a log with the judgements, and the grades that mean 0 and 1.

    These are the named ones, else ``grades``, else the lowest and the highest of the file.
    """
    if material.relevance is None:
        if of_log is None:
            msg = "give a log to learn from, --relevance FILE.csv, or both"
            raise TeachError(msg)
        return of_log, None
    known = _grades(material.grade_range) if material.grade_range else grades or (None, None)
    examples, low, high = read_relevance(material.relevance, *known)
    judged = split_by_query(examples)
    return (together(of_log, judged) if of_log else judged), (low, high)


def _grades(text: str) -> _Grades:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        msg = f"--grade-range is {text!r}; expected LOW:HIGH, the grades that mean 0 and 1, such as 1:4"
        raise TeachError(msg) from None


def _sources(material: Material) -> list[Source]:
    from heft.models.teacher.train.finetune import Source

    files = [*material.logs, *([material.relevance] if material.relevance else [])]
    return [Source(*_identity(path)) for path in files]


def _identity(path: Path) -> tuple[str, int, str]:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return path.name, path.stat().st_size, digest.hexdigest()
