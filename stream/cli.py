"""The command ``heft``. Each command imports what it needs when it runs, so that ``heft --help`` is quick."""

from __future__ import annotations

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


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
