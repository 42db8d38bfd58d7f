"""The options of commands that run for long: what they log, and how."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option("--log-level", help="What is logged at least.")
]
LogForm = Annotated[Literal["text", "json"], typer.Option("--log", help="Log lines as text, or as JSON objects.")]
