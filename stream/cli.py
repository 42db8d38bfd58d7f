"""The command ``heft``. Each command imports what it needs when it runs, so that ``heft --help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="heft",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Importance-weighted online learning for e-commerce search and recommendation.",
)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the events on the wire."""
    from stream import events

    typer.echo(events.schema_json())


broker_app = typer.Typer(no_args_is_help=True, help="A Kafka broker of our own, on this machine.")
app.add_typer(broker_app, name="broker")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; heft.toml by default, if it is there.")]


@app.command()
def config(config: ConfigFile = None) -> None:
    """Print the configuration that holds, as TOML, every key explained."""
    from stream.config import load
    from stream.explain import to_toml

    typer.echo(to_toml(load(config)), nl=False)


@broker_app.command("run")
def broker_run(
    kind: Annotated[str, typer.Option(help="tansu (embedded, memory only) or kafka (Apache Kafka)")] = "tansu",
    port: Annotated[int, typer.Option(help="port on 127.0.0.1")] = 9092,
    data: Annotated[Path | None, typer.Option(help="where Apache Kafka keeps its data; default: nowhere")] = None,
) -> None:
    """Run a broker until Ctrl-C."""
    from stream.broker import run_until_stopped

    run_until_stopped(kind, port, data)


def main() -> None:
    """Run the command line. Errors of our own say what to do: no traceback helps beyond that."""
    try:
        app()
    except Exception as error:
        if not type(error).__module__.startswith(("stream.", "models.")):
            raise
        typer.secho(f"heft: {error}", fg=typer.colors.RED, err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
