"""``heft teacher``: pre-train, fine-tune and evaluate. Torch is imported when a command runs, and only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    no_args_is_help=True, help="The text model that says what a query and an item have to do with each other."
)

Logs = Annotated[list[Path] | None, typer.Argument(help="Event logs.", exists=True, dir_okay=False)]
Relevance = Annotated[
    Path | None,
    typer.Option(help="Judgements, CSV or .csv.gz: columns query, text, grade.", exists=True, dir_okay=False),
]
GradeRange = Annotated[
    str | None, typer.Option(help="LOW:HIGH, the grades that mean probability 0 and 1; by default those of the file.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; heft.toml by default, if it is there.")]
Out = Annotated[Path, typer.Option(help="Folder to write; an unfinished run in it goes on.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Rate = Annotated[float | None, typer.Option(help="Peak; by default one that suits the base.", min=0.0)]


@app.command()
def finetune(
    out: Out,
    logs: Logs = None,
    base: Annotated[str, typer.Option(help="minilm, tiny, small, or a folder with any transformers model.")] = "minilm",
    relevance: Relevance = None,
    grade_range: GradeRange = None,
    keep_negatives: Annotated[
        float, typer.Option(min=1e-6, max=1.0, help="Share of the unclicked samples to train on; corrected for.")
    ] = 1.0,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Examples of a forward pass.")] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes of a step.")] = 1,
    learning_rate: Rate = None,
    l2: Annotated[float, typer.Option(min=0.0)] = 0.01,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9)] = 0.1,
    lora: Annotated[int, typer.Option(min=0, help="Rank of low-rank adapters; 0 trains all weights.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=4, help="Longer pairs of texts are cut.")] = 128,
    patience: Annotated[int, typer.Option(min=1, help="Evaluations without progress before it stops.")] = 2,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    seed: int = 0,
    device: Device = "auto",
    config: ConfigFile = None,
) -> None:
    """Fine-tune a model on what was clicked and bought, on human judgements, or on both."""
    _require_torch()
    from models.teacher.finetune import learning_rate_of
    from stream.config import load
    from stream.teach import finetune as run
    from stream.teach import show_card

    options: dict[str, Any] = {
        "base": base, "epochs": epochs, "batch": batch, "accumulate": accumulate,
        "learning_rate": learning_rate_of(base, lora) if learning_rate is None else learning_rate,
        "l2": l2, "dropout": dropout, "lora": lora, "max_tokens": max_tokens, "patience": patience,
        "bf16": bf16, "gradient_checkpointing": gradient_checkpointing, "seed": seed, "device": device,
    }  # fmt: skip
    card = run(logs or [], relevance, grade_range, keep_negatives, out, load(config), options)
    show_card(card)
    typer.echo(out / "card.md")


@app.command()
def pretrain(
    out: Out,
    logs: Logs = None,
    base: Annotated[str, typer.Option(help="tiny, small, minilm, or a folder to go on from.")] = "small",
    relevance: Relevance = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Texts of a forward pass.")] = 64,
    learning_rate: Rate = None,
    max_tokens: Annotated[int, typer.Option(min=4, help="Longer texts are cut.")] = 64,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    seed: int = 0,
    device: Device = "auto",
    config: ConfigFile = None,
) -> None:
    """Pre-train a language model on the texts of a log: a base for `heft teacher finetune`."""
    _require_torch()
    from models.teacher.finetune import learning_rate_of
    from stream.config import load
    from stream.teach import pretrain as run

    options: dict[str, Any] = {
        "base": base, "epochs": epochs, "batch": batch, "max_tokens": max_tokens, "bf16": bf16, "seed": seed,
        "learning_rate": learning_rate_of(base, 0) if learning_rate is None else learning_rate, "device": device,
    }  # fmt: skip
    card = run(logs or [], relevance, out, load(config), options)
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
    from models.teacher.card import without_nan
    from stream.config import load
    from stream.teach import evaluate as run
    from stream.teach import show_evaluation

    report = run(model, logs or [], relevance, grade_range, device, load(config))
    if as_json:
        typer.echo(json.dumps(without_nan(report), indent=2, ensure_ascii=False))
    else:
        show_evaluation(report)


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
    ways: Annotated[Literal["exact", "any"] | None, typer.Option(help="See teacher.ways of the configuration.")] = None,
    device: Device = "auto",
    config: ConfigFile = None,
) -> None:
    """Score for the workers of other hosts, over HTTP: they name it as teacher.url."""
    _require_torch()
    from msgspec.structs import replace

    from stream.config import load
    from stream.teacher_server import serve as run

    teacher = load(config).teacher
    run(replace(teacher, model=str(model), device=device, ways=ways or teacher.ways), host, port)


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
    from models.teacher.explain import explain as run
    from models.teacher.text import Pair
    from stream.teach import show_explanation

    found = run(model, Pair(query, text), head, device)
    if as_json:
        tokens = [token._asdict() for token in found.tokens]
        typer.echo(json.dumps(found._asdict() | {"tokens": tokens}, indent=2, ensure_ascii=False))
    else:
        show_explanation(found)
