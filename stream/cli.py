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


@app.command()
def replay(
    logs: Annotated[
        list[Path], typer.Argument(help="Event logs, one for each partition.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.json.")] = Path("runs/replay"),
    config: ConfigFile = None,
) -> None:
    """Run event logs through join, score and learn at full speed, and report how good each policy was."""
    from stream.config import load
    from stream.replay import replay_logs, write_report
    from stream.terminal import progress_over, show_report

    with progress_over(logs, "Replaying") as advance:
        stages, seconds = replay_logs(logs, load(config), advance)
    report = stages.report(seconds)
    path = write_report(report, out)
    show_report(report)
    typer.echo(path)


snapshots_app = typer.Typer(no_args_is_help=True, help="What a worker goes on from.")
app.add_typer(snapshots_app, name="snapshots")
SnapshotFile = Annotated[str, typer.Argument(help="a name as `heft snapshots list` prints it")]


@snapshots_app.command("list")
def snapshots_list(config: ConfigFile = None) -> None:
    """List the snapshots there are, oldest first."""
    from stream.snapshots import describe_all

    for line in describe_all(config):
        typer.echo(line)


@snapshots_app.command("show")
def snapshots_show(name: SnapshotFile, config: ConfigFile = None) -> None:
    """Show what a snapshot holds."""
    from stream.snapshots import show

    typer.echo(show(config, name))


@snapshots_app.command("rollback")
def snapshots_rollback(name: SnapshotFile, config: ConfigFile = None) -> None:
    """Make an older snapshot the one that workers start from. Stop the workers first."""
    from stream.snapshots import rollback

    typer.echo(rollback(config, name))


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
