"""What a cluster has and what is wrong with it, for the eyes of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from rich.console import Console
from rich.text import Text

from heft.stream.cli.doctor import Finding
from heft.stream.kafka.topics import Found, Wanted
from heft.stream.terminal.table import Column, Fitted


def topics_table(wanted: Sequence[Wanted], found: Mapping[str, Found], made: Set[str]) -> Fitted[Wanted]:
    """Return the topics heft needs, as they are, and as they should be where they are missing."""

    def state(topic: Wanted) -> str:
        return "made" if topic.name in made else "there" if topic.name in found else "missing"

    def retention(topic: Wanted) -> str:
        there = found.get(topic.name)
        return there.settings.get("retention.ms", "not told") if there else topic.retention_ms

    columns: list[Column[Wanted]] = [
        Column("topic", lambda topic: topic.name, "left"),
        Column("state", state, "left"),
        Column("partitions", lambda topic: str(found.get(topic.name, topic).partitions)),
        Column("retention ms", retention),
        Column("role", lambda topic: topic.role, "left"),
    ]
    return Fitted(columns, wanted, lambda topic: "red" if state(topic) == "missing" else "")


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print what is wrong and what to do about it."""
    for finding in findings:
        console.print(Text(f"✗ {finding.what}", "red"))
        console.print(Text(f"  → {finding.do}"))
    if not findings:
        console.print(Text("✓ nothing wrong: a worker may start", "green"))
