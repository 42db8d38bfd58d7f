"""What a shop gets: a wheel whose modules all lie under one name, beside whatever the shop's own are called."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.places import ROOT


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "heft"
    # A copy, since building leaves its own files beside the sources; links stay links, as in a clone.
    ours = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("stream", "models", "src"):
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=ours)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sources, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def shop(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a shop whose environment has the wheel, and a package of its own named `models`."""
    folder = tmp_path_factory.mktemp("shop")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (packages / "models").mkdir()
    (packages / "models" / "__init__.py").write_text('OWNER = "the shop"\n')
    # The libraries heft stands on are those of this environment, not fetched again. A folder named in a .pth file is
    # searched after the shop's own packages, and its own .pth files, an editable heft's among them, are not read.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_everything_installed_lies_under_one_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"heft"}


def test_every_module_of_the_project_is_in_the_wheel(wheel: Path) -> None:
    files = [*(ROOT / "stream").rglob("*.py"), *(ROOT / "models").rglob("*.py")]
    sources = {f"heft/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert sources <= set(zipfile.ZipFile(wheel).namelist())


def test_a_shop_s_own_package_named_models_stays_its_own(shop: Path) -> None:
    where = "import models, heft.models, heft.stream; print(models.OWNER, heft.models.__file__)"
    owner, file = run(shop / "env" / "bin" / "python", "-c", where, cwd=shop).rsplit(" ", 1)
    assert owner == "the shop"
    assert Path(file.strip()).is_relative_to(shop)


@pytest.mark.slow
def test_the_command_runs_where_it_was_installed(shop: Path) -> None:
    heft = shop / "env" / "bin" / "heft"
    assert "replay" in run(heft, "--help", cwd=shop)
    run(heft, "simulate", "--requests", "50", "--out", shop / "shop.jsonl", cwd=shop)
    run(heft, "replay", shop / "shop.jsonl", "--out", shop / "report", cwd=shop)
    assert (shop / "report" / "report.json").exists()
