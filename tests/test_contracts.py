"""Import contracts are by folder: a new file is under those of its room from its first line on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

FORBIDDEN = "import faust\nimport prometheus_client\n\nfrom heft.stream.cli import main\n"
"""What no new file in any room may import; Faust and prometheus_client have their places, in files that exist."""


def lint(folder: Path) -> str:
    """Return what the contracts of the project say of the sources in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}  # noqa: TID251
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project's sources, to put new files in."""
    folder = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)  # what is linked is copied
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def said(copy: Path) -> str:
    """Return what the contracts say when every folder has a file that imports what it must not."""
    assert "0 broken" in lint(copy)
    for init in sorted((copy / "src" / "heft").rglob("__init__.py")):
        init.with_name("scratch.py").write_text(f'"""New here."""\n\n{FORBIDDEN}', encoding="utf-8")
    return lint(copy)


FOLDERS = [
    f"{top}/{path.parent.relative_to(ROOT / top).as_posix()}".removesuffix("/.").replace("/", ".")
    for top in ("stream", "models")
    for path in sorted((ROOT / top).rglob("__init__.py"))
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_new_file_with_a_forbidden_library_breaks_a_contract(said: str, folder: str) -> None:
    assert f"heft.{folder}.scratch -> faust" in said


@pytest.mark.parametrize("folder", [each for each in FOLDERS if each.count(".") and each != "stream.cli"])
def test_a_new_file_that_imports_upward_breaks_a_contract(said: str, folder: str) -> None:
    assert f"heft.{folder}.scratch -> heft.stream.cli.main" in said
