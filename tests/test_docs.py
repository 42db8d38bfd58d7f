"""What the documents say is what the code does: commands, configuration, examples, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer
from typer.core import TyperGroup

from heft.stream.cli.main import app
from heft.stream.config.as_toml import to_toml
from heft.stream.config.settings import Config, load
from heft.stream.events.mapping import MappingTable
from heft.stream.events.wire import Click, Impression, Order, decode, encode
from tests.support.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

MAPPED = MappingTable(
    topic="shop.orders",
    type="order",
    time="iso8601",
    where={"status": ["paid", "shipped"]},
    fields={
        "order_id": "id", "user_id": "customer.id", "at_ms": "paid_at",
        "item_id": "lines[].sku", "value": "lines[].total",
    },
)  # fmt: skip


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def mapping_of(config: Config) -> str:
    text = to_toml(config)
    return text[text.index("# How one kind of record") :]


def commands(command: object, path: tuple[str, ...] = ("heft",)) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            yield from commands(below, (*path, name))
    else:
        yield " ".join(path)


def test_the_readme_names_every_command_and_no_other() -> None:
    there = set(commands(typer.main.get_command(app)))
    table = {
        name
        for line in README.splitlines()
        if line.startswith("| `heft")
        for name in re.findall(r"`(heft [^`]*)`", line.split("|")[1])
    }
    assert {re.sub(r" (--|[A-Z]).*", "", name) for name in table} == there


def test_the_configuration_is_documented_as_it_is_printed() -> None:
    defaults, mapped = blocks(CONFIGURATION, "toml")
    assert defaults == to_toml(Config())
    assert mapped == mapping_of(Config(mapping=(MAPPED,)))


def test_an_order_of_several_lines_maps_as_the_configuration_shows(tmp_path: Path) -> None:
    file = tmp_path / "heft.toml"
    file.write_text(blocks(CONFIGURATION, "toml")[1], encoding="utf-8")
    lines = [{"sku": "a", "total": 5}, {"sku": "b", "total": 7.5}]
    order = {"id": "o", "status": "paid", "customer": {"id": "u"}, "paid_at": "2026-11-01T12:00:00Z", "lines": lines}
    decoded = load(file, {}).decoder()("shop.orders", msgspec.json.encode(order))
    assert [(each.item_id, each.value) for each in decoded if isinstance(each, Order)] == [("a", 5.0), ("b", 7.5)]


def test_the_events_of_the_readme_are_events() -> None:
    text = blocks(README, "json")[0]
    events = [decode(" ".join(raw.split()).encode()) for raw in re.split(r"\n(?=\{)", text)]
    assert [type(event).__name__ for event in events] == ["Slate", "Click", "Order", "Action"]


def test_the_mapping_of_the_readme_makes_an_impression_of_the_record_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "heft.toml"
    (toml,) = blocks(README, "toml")
    file.write_text(toml, encoding="utf-8")
    config = load(file, {})
    (_, raw) = blocks(README, "json")
    (event,) = config.decoder()("shop.lists", raw.encode())
    assert isinstance(event, Impression)
    assert (event.request_id, event.user_id, event.at_ms, event.surface) == ("q7", "u1", 1541548939000, "search")
    assert [(item.item_id, item.features) for item in event.items] == [("i9", {"price": 59.9}), ("i3", {"price": 19.9})]
    assert config.inputs == ("shop.lists", "clicks", "orders", "actions")
    click = Click(request_id="q7", user_id="u1", item_id="i9", at_ms=1541548950000)
    assert config.decoder()("clicks", encode(click)) == [click]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_documents_name_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    linked = {
        (document.parent / link.split("#")[0]) for link in re.findall(r"\]\(([^)#][^)]*)\)", text) if "://" not in link
    }
    named = {ROOT / name for name in re.findall(r"`((?:stream|models|bench|tests|monitoring)/[\w/.-]+)`", text)}
    assert [str(path) for path in linked | named if not path.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_documents_show_exist(document: Path) -> None:
    there = set(commands(typer.main.get_command(app)))
    shown = set(re.findall(r"(?:`|\.venv/bin/)heft ([a-z][a-z-]*)", document.read_text(encoding="utf-8")))
    assert shown <= {name.split()[1] for name in there}


def test_make_targets_that_documents_show_exist() -> None:
    there = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    documents = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", documents, re.MULTILINE)) <= there
