"""``heft teacher``: pre-train, fine-tune, evaluate, serve. Torch is imported only when a command that needs it runs."""

# ruff: noqa: ARG001 -- options reach the settings by their names
from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from heft.models.teacher.settings import OF_FROZEN, FinetuneSettings, PretrainSettings, TrainSettings
from heft.stream.cli.log_options import LogForm, LogLevel

app = typer.Typer(no_args_is_help=True, help="The text model that learns how well an item fits a query.")

_FINETUNE, _PRETRAIN = FinetuneSettings(), PretrainSettings()  # every default is written once, there

Logs = Annotated[list[Path] | None, typer.Argument(help="Event logs.", exists=True, dir_okay=False)]
Base = Annotated[
    str, typer.Option(help="minilm, tiny, small, any transformers model's folder or its Hugging Face name.")
]
Relevance = Annotated[
    Path | None,
    typer.Option(help="Judgements, CSV or .csv.gz: columns query, text, grade.", exists=True, dir_okay=False),
]
GradeRange = Annotated[
    str | None, typer.Option(help="LOW:HIGH, the grades that mean probability 0 and 1; by default those of the file.")
]
Until = Annotated[
    str | None,
    typer.Option(
        help="Event time at which the training data ends, 2026-11-01T12:00 or milliseconds; what follows measures."
    ),
]
Keep = Annotated[
    float,
    typer.Option(min=1e-6, max=1.0, help="Share of the unclicked samples to learn from; labels are corrected for it."),
]
Epochs = Annotated[int, typer.Option(min=1)]
Batch = Annotated[int, typer.Option(min=1, help="Texts or pairs of a forward pass.")]
Rate = Annotated[float | None, typer.Option(help="Peak; by default one that suits the base.", min=0.0)]
Tokens = Annotated[int, typer.Option(min=4, help="Longer texts are cut.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; heft.toml by default, if it is there.")]
Out = Annotated[Path, typer.Option(help="Folder to write; an unfinished run in it goes on.")]


@app.command()
def finetune(
    ctx: typer.Context,
    out: Out,
    logs: Logs = None,
    base: Base = _FINETUNE.base,
    until: Until = None,
    relevance: Relevance = None,
    grade_range: GradeRange = None,
    keep_negatives: Keep = _FINETUNE.keep_negatives,
    epochs: Epochs = _FINETUNE.epochs,
    batch: Batch = _FINETUNE.batch,
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes of a step.")] = _FINETUNE.accumulate,
    learning_rate: Rate = None,
    l2: Annotated[float, typer.Option(min=0.0)] = _FINETUNE.l2,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9)] = _FINETUNE.dropout,
    lora: Annotated[int, typer.Option(min=0, help="Rank of low-rank adapters; 0 trains all weights.")] = _FINETUNE.lora,
    max_tokens: Tokens = _FINETUNE.max_tokens,
    patience: Annotated[
        int, typer.Option(min=1, help="Evaluations without progress before it stops.")
    ] = _FINETUNE.patience,
    bf16: Bf16 = False,
    towers: Annotated[
        bool,
        typer.Option("--towers", help="Read query and item apart; a base that knows sentences begins at its cosine."),
    ] = False,
    frozen: Annotated[
        bool,
        typer.Option(
            "--frozen",
            help="Leave the base as it is, learn how its vectors of query and item compare: a minute. By default "
            "8 epochs of batches of 256, l2 0.1, patience 20.",
        ),
    ] = False,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="Take the base's word vectors alone and let them learn: scores without torch, in microseconds, all of "
            "them on time. Settings as of --frozen.",
        ),
    ] = False,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual", help="Teach what the ranker lacks: its own prediction is given. Reads the log longer."
        ),
    ] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    word_dropout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of words left out in a copy of each pair.")
    ] = _FINETUNE.word_dropout,
    synonyms: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of a query's words replaced by others that lead to the same.")
    ] = _FINETUNE.synonyms,
    back_translate: Annotated[
        list[str] | None, typer.Option(help="Folder of a translation model; once there, and once more back.")
    ] = None,
    seed: int = _FINETUNE.seed,
    device: Device = _FINETUNE.device,
    config: ConfigFile = None,
) -> None:
    """Fine-tune a model on what was clicked and bought, on human judgements, or on both.

    On several GPUs or hosts: `torchrun --no-python heft teacher finetune ...`; each batch is shared among them.
    """
    _require_torch()
    from heft.models.teacher.train.finetune import learning_rate_of
    from heft.stream.config.settings import load, parse_time
    from heft.stream.teacher.commands import Material, card_table
    from heft.stream.teacher.commands import finetune as run
    from heft.stream.terminal.report_tables import open_console

    resolved = load(config)
    rate = learning_rate_of(base, lora, frozen or static) if learning_rate is None else learning_rate
    derived: dict[str, Any] = {
        "learning_rate": rate,
        "template": resolved.teacher.template,
        "back_translate": tuple(back_translate or ()),
    }
    if frozen or static:
        derived |= {name: value for name, value in OF_FROZEN.items() if _is_default(ctx, name)}
    settings = _settings(FinetuneSettings, ctx, **derived)
    material = Material(logs or [], relevance, grade_range, parse_time(until))
    if card := run(material, out, resolved, settings):
        open_console(stderr=True).print(card_table(card))
        typer.echo(out / "card.md")


@app.command()
def pretrain(
    ctx: typer.Context,
    out: Out,
    logs: Logs = None,
    base: Base = _PRETRAIN.base,
    until: Until = None,
    relevance: Relevance = None,
    keep_negatives: Keep = _PRETRAIN.keep_negatives,
    epochs: Epochs = _PRETRAIN.epochs,
    batch: Batch = _PRETRAIN.batch,
    learning_rate: Rate = None,
    max_tokens: Tokens = _PRETRAIN.max_tokens,
    bf16: Bf16 = False,
    seed: int = _PRETRAIN.seed,
    device: Device = _PRETRAIN.device,
    config: ConfigFile = None,
) -> None:
    """Pre-train a language model on the texts of a log: a base for `heft teacher finetune`."""
    _require_torch()
    from heft.models.teacher.train.finetune import learning_rate_of
    from heft.stream.config.settings import load, parse_time
    from heft.stream.teacher.commands import Material
    from heft.stream.teacher.commands import pretrain as run

    rate = learning_rate_of(base, 0) if learning_rate is None else learning_rate
    settings = _settings(PretrainSettings, ctx, learning_rate=rate)
    material = Material(logs or [], relevance, until_ms=parse_time(until))
    card = run(material, out, load(config), settings)
    typer.echo(f"{out}: {card['texts']:,} texts, loss {card['loss_before']:.3f} before, {card['loss_after']:.3f} after")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="Folder of a teacher.", exists=True, file_okay=False)],
    logs: Logs = None,
    relevance: Relevance = None,
    grade_range: GradeRange = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
    config: ConfigFile = None,
) -> None:
    """Measure a teacher on a log or on judgements: on all of it, so give it what it has not seen."""
    _require_torch()
    from heft.models.teacher.train.card import without_nan
    from heft.stream.config.settings import load
    from heft.stream.teacher.commands import evaluate as run
    from heft.stream.teacher.commands import evaluation_table
    from heft.stream.terminal.report_tables import open_console

    report = run(model, logs or [], relevance, grade_range, device, load(config))
    if as_json:
        typer.echo(json.dumps(without_nan(report), indent=2, ensure_ascii=False))
    else:
        open_console(stderr=True).print(evaluation_table(report))


@app.command()
def refresh(
    model: Annotated[Path, typer.Option(help="The running teacher: its folder, or the link to it.", exists=True)],
    logs: Logs = None,
    relevance: Relevance = None,
    grade_range: GradeRange = None,
    held_back: Annotated[
        float,
        typer.Option(min=0.01, max=0.9, help="Share of the log, its end, on which the two are compared."),
    ] = 0.2,
    fewest_clicks: Annotated[int, typer.Option(min=1, help="Fewest clicks there for a promotion.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
    config: ConfigFile = None,
) -> None:
    """Train the teacher again on the log up to now; the new one takes over if it is surely better on the log's end."""
    _require_torch()
    import msgspec

    from heft.stream.config.settings import load
    from heft.stream.teacher.commands import Material
    from heft.stream.teacher.commands import refresh as run

    verdict = run(Material(logs or [], relevance, grade_range), model, held_back, fewest_clicks, device, load(config))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode())
    else:
        typer.echo(f"{'promoted' if verdict.promote else 'not promoted'}, {verdict.why}")


_Settings = TypeVar("_Settings", bound=TrainSettings)


def _settings(kind: type[_Settings], ctx: typer.Context, **more: Any) -> _Settings:
    """The settings that are options of the command, and others."""
    given = {name: ctx.params[name] for name in kind.__struct_fields__ if name in ctx.params}
    return kind(**(given | more))


def _is_default(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def _require_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("transformers") is None:
        typer.secho("heft: the teacher needs libraries of its own: pip install 'heft[teacher]'", fg="red", err=True)
        raise typer.Exit(1)


# ---------------------------------------------------------------- at work


@app.command()
def serve(
    model: Annotated[Path, typer.Option(help="Folder of a teacher; a new version in it is taken as it comes.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8600,
    backends: Annotated[
        Literal["exact", "any"] | None, typer.Option(help="See teacher.backends of the configuration.")
    ] = None,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Serve other hosts though HEFT_TEACHER__TOKEN is not set.")
    ] = False,
    device: Device = "auto",
    log_level: LogLevel = "warning",
    log: LogForm = "text",
    config: ConfigFile = None,
) -> None:
    """Score for the workers of other hosts, over HTTP; their teacher.url names this server."""
    from msgspec.structs import replace

    from heft.stream.config.settings import load
    from heft.stream.serve.teacher import serve as run
    from heft.stream.terminal.logs import set_up_logging

    set_up_logging(log_level, log)
    teacher = load(config).teacher
    teacher = replace(teacher, model=str(model), device=device, backends=backends or teacher.backends)
    run(teacher, host, port, without_token=without_token)


@app.command()
def explain(
    model: Annotated[Path, typer.Option(help="Folder of a teacher.", exists=True, file_okay=False)],
    query: Annotated[str, typer.Argument(help="The text of the query, as the template renders it.")],
    text: Annotated[str, typer.Argument(help="The text of the item.")],
    head: Annotated[str | None, typer.Option(help="click, conversion or relevance; by default the first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Show what a teacher looked at in one sample: attention, and gradient times input, of each token."""
    _require_torch()
    from heft.models.teacher.score.explain import explain as run
    from heft.models.teacher.template import Pair
    from heft.stream.teacher.commands import show_explanation

    found = run(model, Pair(query, text), head, device)
    if as_json:
        tokens = [token._asdict() for token in found.tokens]
        typer.echo(json.dumps(found._asdict() | {"tokens": tokens}, indent=2, ensure_ascii=False))
    else:
        show_explanation(found)
