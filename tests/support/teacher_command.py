"""``heft teacher`` inside this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from heft.stream.cli.main import app


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["teacher", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
