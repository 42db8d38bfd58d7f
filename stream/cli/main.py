"""The command ``heft``. Each command imports what it needs when it runs, so that ``heft --help`` is quick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from heft.stream.cli import teacher as teacher_cli
from heft.stream.cli.log_options import LogForm, LogLevel

app = typer.Typer(
    name="heft",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


app.add_typer(teacher_cli.app, name="teacher")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"heft {version('heft')}")
        raise typer.Exit


@app.callback()
def heft(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Importance-weighted online learning for e-commerce search and recommendation."""


ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; heft.toml by default, if it is there.")]


@app.command()
def schema() -> None:
    """Print the JSON Schema of the events on the wire."""
    from heft.stream.events import wire

    typer.echo(wire.schema_json())


@app.command()
def topics(
    create: Annotated[bool, typer.Option("--create", help="make those that are missing")] = False,
    config: ConfigFile = None,
) -> None:
    """List the topics heft needs, as they should be and as they are."""
    from heft.stream.cli.cluster_tables import topics_table
    from heft.stream.config.settings import load
    from heft.stream.kafka.topics import Topics, wanted_topics
    from heft.stream.terminal.report_tables import open_console

    settings = load(config)
    with Topics(settings) as cluster:
        made = {wanted.name for wanted in cluster.create()} if create else set()
        found = cluster.found()
    wanted = wanted_topics(settings)
    console = open_console()
    console.print(topics_table(wanted, found, made))
    if any(topic.name not in found for topic in wanted):
        console.print("`heft topics --create` makes what is missing")


@app.command()
def publish(
    log: Annotated[Path, typer.Argument(help="event log: .jsonl, .jsonl.gz or .jsonl.zst")],
    speed: Annotated[float | None, typer.Option(min=1e-6, help="event time per wall time; default: at once")] = None,
    config: ConfigFile = None,
) -> None:
    """Send an event log to the topics, by type, keyed by user."""
    from heft.stream.config.settings import load
    from heft.stream.kafka.publish import publish as send
    from heft.stream.terminal.progress import counting

    with counting("events") as progress:
        sent = send(log, load(config), speed, progress)
    typer.echo(", ".join(f"{topic} {n}" for topic, n in sent.items()) or "the log is empty")


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="folder: one log for each partition")],
    since: Annotated[str | None, typer.Option(help="event time, ISO 8601 or milliseconds: from here on")] = None,
    until: Annotated[str | None, typer.Option(help="event time: up to here")] = None,
    config: ConfigFile = None,
) -> None:
    """Write the topics into event logs, one for each partition."""
    from heft.stream.config.settings import load, parse_time
    from heft.stream.kafka.bulk_reader import input_partitions
    from heft.stream.kafka.publish import record as write
    from heft.stream.terminal.progress import counting

    settings = load(config)
    since_ms, until_ms = parse_time(since), parse_time(until)
    with counting("records") as progress:
        written = write(out, settings, range(input_partitions(settings)), since_ms, until_ms, progress)
    for path, count in written.items():
        typer.echo(f"{path}: " + (", ".join(f"{topic} {n}" for topic, n in count.items()) or "empty"))


@app.command()
def tail(
    topic: Annotated[str, typer.Argument(help="any topic; samples and scored are decoded")],
    n: Annotated[int, typer.Option("-n", min=1, help="newest records of each partition")] = 10,
    config: ConfigFile = None,
) -> None:
    """Show the newest records of a topic as JSON, one a line."""
    from heft.stream.config.settings import load
    from heft.stream.kafka.publish import newest_json

    for line in newest_json(load(config), topic, n):
        typer.echo(line)


@app.command()
def doctor(config: ConfigFile = None) -> None:
    """Look at a cluster before the first worker starts; exit code 1 when something is wrong."""
    from rich.text import Text

    from heft.stream.cli.cluster_tables import show_findings
    from heft.stream.cli.doctor import examine
    from heft.stream.config.settings import load
    from heft.stream.terminal.report_tables import open_console

    settings = load(config)
    with open_console(stderr=True).status("") as status:
        findings = examine(settings, lambda text: status.update(Text(f"looking at {text}", overflow="fold")))
    show_findings(findings, open_console())
    if findings:
        raise typer.Exit(1)


broker_app = typer.Typer(no_args_is_help=True, help="A Kafka broker of our own, on this machine.")
app.add_typer(broker_app, name="broker")


@app.command()
def config(config: ConfigFile = None) -> None:
    """Print the configuration that holds, as TOML, every key explained."""
    from heft.stream.config.as_toml import to_toml
    from heft.stream.config.settings import load

    typer.echo(to_toml(load(config)), nl=False)


@broker_app.command("run")
def broker_run(
    kind: Annotated[str, typer.Option(help="tansu (embedded, memory only) or kafka (Apache Kafka)")] = "tansu",
    port: Annotated[int, typer.Option(help="port on 127.0.0.1")] = 9092,
    data: Annotated[Path | None, typer.Option(help="where Apache Kafka keeps its data; default: nowhere")] = None,
) -> None:
    """Run a broker until Ctrl-C."""
    from heft.stream.kafka.local_broker import run_until_stopped

    run_until_stopped(kind, port, data)


@app.command()
def replay(
    logs: Annotated[
        list[Path] | None, typer.Argument(help="Event logs, one for each partition.", exists=True, dir_okay=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json.")] = Path("runs/replay"),
    from_topics: Annotated[bool, typer.Option("--from-topics", help="Read the input topics instead of logs.")] = False,
    since: Annotated[str | None, typer.Option(help="Event time to begin at: 2026-11-01T12:00 or milliseconds.")] = None,
    until: Annotated[str | None, typer.Option(help="Event time to stop before.")] = None,
    in_line_scorer: Annotated[
        bool, typer.Option("--in-line-scorer", help="Every score of the teacher is on time.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Run event logs or topics through join, score and learn at full speed; report how good each arm was."""
    from heft.stream.config.settings import load, parse_time
    from heft.stream.replay.replay import replay_logs, replay_topics, write_report
    from heft.stream.teacher.clients import replay_sources
    from heft.stream.terminal.progress import counting
    from heft.stream.terminal.report_tables import open_console, progress_over, show_report

    if bool(logs) == from_topics:
        msg = "give event logs to replay, or --from-topics"
        raise typer.BadParameter(msg)
    settings = load(config)
    score_sources = replay_sources(settings, in_line_scorer)
    if logs:
        with progress_over(logs, "Replaying") as advance:
            stages, seconds = replay_logs(logs, settings, advance, score_sources=score_sources)
    else:
        with counting("records replayed") as advance:
            stages, seconds = replay_topics(settings, parse_time(since), parse_time(until), advance, score_sources)
    report = stages.report(seconds)
    path = write_report(report, out)
    show_report(report, open_console(stderr=True))
    typer.echo(path)


@app.command()
def worker(
    stages: Annotated[str, typer.Option(help="which of join,score,learn this worker runs")] = "join,score,learn",
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="go on, and count, where records to go on from are gone")
    ] = False,
    processes: Annotated[
        bool | None,
        typer.Option(
            "--processes/--one-process", help="learn in a process beside join and score; default: with three cores"
        ),
    ] = None,
    log_level: LogLevel = "warning",
    log: LogForm = "text",
    config: ConfigFile = None,
) -> None:
    """Run stages as stream consumers until SIGTERM or Ctrl-C; several workers share the partitions."""
    from heft.stream.cli.processes import Options, cores, groups_of, run_apart
    from heft.stream.config.settings import load
    from heft.stream.terminal.logs import set_up_logging
    from heft.stream.worker.app import run_worker, stages_of

    set_up_logging(log_level, log)
    settings, names = load(config), stages_of(stages)
    groups = groups_of(names)
    if len(groups) == 1 or processes is False or (processes is None and cores() <= len(groups)):
        run_worker(settings, names, accept_loss=accept_loss)
        return
    raise typer.Exit(run_apart(settings, groups, Options(accept_loss, log_level, log)))


@app.command()
def status(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help="workers; default: the one of the configuration")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Ask workers how they are; exit code 0 when all are ready, 1 when not, 2 when one cannot be reached."""
    from heft.stream.cli.status import ask, own_url, show, worst
    from heft.stream.config.settings import load
    from heft.stream.terminal.report_tables import open_console

    answers = [ask(url) for url in urls or [own_url(load(config).metrics)]]
    show(answers, open_console())
    raise typer.Exit(worst(answers))


snapshots_app = typer.Typer(no_args_is_help=True, help="What a worker goes on from.")
app.add_typer(snapshots_app, name="snapshots")
SnapshotFile = Annotated[str, typer.Argument(help="a name as `heft snapshots list` prints it")]


@snapshots_app.command("list")
def snapshots_list(config: ConfigFile = None) -> None:
    """List the snapshots there are, oldest first."""
    from heft.stream.cli.snapshots import describe_all, snapshots_table
    from heft.stream.terminal.report_tables import open_console

    described, console = list(describe_all(config)), open_console()
    console.print(snapshots_table(described))
    for each in described:
        if each.damage:
            console.print(f"{each.name.file}: {each.damage}", markup=False, style="red")


@snapshots_app.command("show")
def snapshots_show(name: SnapshotFile, config: ConfigFile = None) -> None:
    """Show what a snapshot holds."""
    from heft.stream.cli.snapshots import show
    from heft.stream.terminal.report_tables import open_console

    open_console().print(show(config, name), markup=False, highlight=False)


@snapshots_app.command("verify")
def snapshots_verify(older: SnapshotFile, newer: SnapshotFile, config: ConfigFile = None) -> None:
    """Learn `scored` again from one snapshot to a later one, and compare."""
    from heft.stream.cli.snapshots import verify
    from heft.stream.terminal.progress import counting

    with counting("messages learned again") as advance:
        digest = verify(config, older, newer, advance)
    typer.echo(f"the same: {digest}")


@snapshots_app.command("rollback")
def snapshots_rollback(name: SnapshotFile, config: ConfigFile = None) -> None:
    """Make an older snapshot the one that workers start from. Stop the workers first."""
    from heft.stream.cli.snapshots import rollback

    typer.echo(rollback(config, name))


import_app = typer.Typer(no_args_is_help=True, help="Turn public logs into event logs.")
app.add_typer(import_app, name="import")

LogFile = Annotated[Path, typer.Option(help="Log to write: .jsonl, .jsonl.gz or .jsonl.zst.")]


@import_app.command("trivago")
def import_trivago(
    file: Annotated[Path, typer.Argument(help="CSV of the RecSys Challenge 2019, plain or .gz.", exists=True)],
    out: LogFile,
) -> None:
    """Hotel searches: result lists, clickouts and what else visitors did."""
    from heft.stream.importers import trivago
    from heft.stream.importers.run import import_log

    source = trivago.table(file)
    import_log(source, trivago.events(source), out)


@import_app.command("open-bandit")
def import_open_bandit(
    path: Annotated[Path, typer.Argument(help="CSV with its items beside it, or the folder of both.", exists=True)],
    out: LogFile,
) -> None:
    """Fashion recommendations with known propensities."""
    from heft.stream.importers import open_bandit
    from heft.stream.importers.run import import_log

    rows, items = open_bandit.find(path)
    source = open_bandit.table(rows)
    import_log(source, open_bandit.events(source, open_bandit.items(items)), out)


@app.command()
def simulate(
    out: Annotated[Path | None, typer.Option(help="Log to write; its truth goes into a file beside it.")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Send events to the topics as they happen.")] = False,
    requests: Annotated[int | None, typer.Option(min=1, help="How many; --publish goes on for ever without.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which shop: the same seed gives the same log.")] = 1,
    judgements: Annotated[
        int, typer.Option(min=0, help="With --out, how many human judgements on its first slates lie beside it.")
    ] = 0,
    speed: Annotated[
        float, typer.Option(min=1e-3, help="Event time per wall time; join.lateness grows with it.")
    ] = 1.0,
    config: ConfigFile = None,
) -> None:
    """Let a simulated shop do business, into a log or live into the topics."""
    from heft.stream.config.settings import load
    from heft.stream.shop.simulate import judgements_path, opened_now, publish_live, truth_path, write_log
    from heft.stream.shop.traffic import Shop
    from heft.stream.terminal.progress import counting

    if publish == (out is not None) or (out is not None and requests is None) or (publish and judgements):
        msg = "give --requests and --out with the log to write, or --publish; --judgements go with --out"
        raise typer.BadParameter(msg)
    with counting("events") as advance:
        if out is not None and requests is not None:
            made = write_log(Shop(seed=seed), requests, out, advance, judgements)
        else:
            made = publish_live(opened_now(seed), load(config), speed, requests, advance)
    typer.echo(", ".join(f"{kind} {n}" for kind, n in made.items()))
    if out is not None:
        typer.echo(f"{out}, the truth in {truth_path(out)}")
        if judgements:
            typer.echo(f"human judgements in {judgements_path(out)}")


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="How long the shop is open.", min=10)] = 150.0,
    seed: Annotated[int, typer.Option(help="Which shop.")] = 1,
    no_teacher: Annotated[
        bool, typer.Option("--no-teacher", help="Race without a teacher: none is fine-tuned, no torch is needed.")
    ] = False,
    frozen: Annotated[bool, typer.Option("--frozen", help="Let a transformer score, not word vectors alone.")] = False,
) -> None:
    """Watch a simulated shop's traffic go through a broker, and models race to predict it; Ctrl-C ends it.

    Where the teacher's libraries are not installed the race goes on without one, and says what installs them.
    """
    from heft.stream.demo.run import run_demo
    from heft.stream.demo.teachers import FROZEN, STATIC

    if no_teacher and frozen:
        msg = "--frozen is about the teacher that --no-teacher spares; choose one"
        raise typer.BadParameter(msg)
    raise typer.Exit(run_demo(seconds, seed, teach=not no_teacher, kind=FROZEN if frozen else STATIC))


def main() -> None:
    """Run the command line."""
    with say_what_failed():
        app()


@contextmanager
def say_what_failed() -> Iterator[None]:
    """End with one line and status 1 where an error of our own says what to do: no traceback helps beyond that."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("heft."):
            raise
        from heft.stream.state.credentials import without_credentials

        typer.secho(without_credentials(f"heft: {error}"), fg=typer.colors.RED, err=True)
        raise SystemExit(1) from None
