"""A teacher made anew takes over when it is surely better on what came after, and only then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
pytest.importorskip("transformers", reason="the teacher's libraries are not installed: pip install '.[teacher]'")

import msgspec
import torch

from heft.models.teacher.data.examples import DataError, Split
from heft.models.teacher.data.log_samples import LaterSamples
from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.state import TeacherError, TeacherState, read_state, write_atomically
from heft.models.teacher.train.finetune import finetune
from heft.models.teacher.train.refresh import Verdict, compare, promote
from heft.models.teacher.train.train import CHECKPOINT
from heft.stream.events.wire import encode
from tests.support.finetuning import SOURCES, settings, shop
from tests.support.teacher_command import run
from tests.support.teacher_log import events, judged

AFTER = 1_700_000_000_000


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One that learned next to nothing, and one that learned well."""
    torch.set_num_threads(1)
    made = []
    for name, examples, epochs in (("weak", 60, 1), ("good", 600, 4)):
        made.append(tmp_path_factory.mktemp(name) / "teacher")
        data = Split(shop(examples, 1), shop(150, 2), shop(150, 3), None, AFTER - 1_000, AFTER)
        finetune(data, made[-1], settings(epochs=epochs), SOURCES)
    return made[0], made[1]


def later(slates: int, seed: int = 7) -> LaterSamples:
    """Three items a slate; of those that are good more are clicked, of cheap ones more are bought."""
    part = shop(3 * slates, seed)
    rng = np.random.default_rng(seed)
    labels = (rng.random(3 * slates) < part.positives[:, 0] / part.trials[:, 0]).astype(np.float64)
    heads = np.zeros(3 * slates, np.int64)
    places = [("", n % 3) for n in range(3 * slates)]
    return LaterSamples(part.pairs, np.repeat(np.arange(slates), 3), heads, labels, places, np.full(3 * slates, np.nan))


def decide(running: Path, candidate: Path, samples: LaterSamples, after_ms: int = AFTER) -> Verdict:
    return compare(running, candidate, (samples, samples), after_ms, "cpu")


def test_the_better_one_is_promoted_and_the_worse_one_is_not(teachers: tuple[Path, Path]) -> None:
    weak, good = teachers
    samples = later(1_500)
    up, down = decide(weak, good, samples), decide(good, weak, samples)
    assert up.promote
    assert up.difference["click"] + up.half_width["click"] < 0
    assert (up.running, up.candidate) == (down.candidate, down.running)
    assert up.clicks == samples.labels.sum()
    assert not down.promote
    assert "not surely better" in down.why
    assert down.difference["click"] == pytest.approx(-up.difference["click"])


def test_too_little_evidence_promotes_nothing(teachers: tuple[Path, Path]) -> None:
    weak, good = teachers
    few = decide(weak, good, later(100))
    assert not few.promote
    assert "too few" in few.why
    same = decide(good, good, later(1_500))
    assert not same.promote
    assert same.difference["click"] == 0.0
    nothing = decide(weak, good, later(0))
    assert not nothing.promote
    assert nothing.slates == 0


def test_what_either_may_have_seen_decides_nothing(teachers: tuple[Path, Path]) -> None:
    weak, good = teachers
    with pytest.raises(DataError, match="after the data of both"):
        decide(weak, good, later(600), AFTER - 1)


def place(folder: Path, version: str) -> Path:
    """A folder that is as much of a teacher as taking its place needs."""
    folder.mkdir()
    state = TeacherState(heads={}, template="{query}", max_tokens=8, pooling="mean", version=version)
    write_atomically(folder / "teacher.json", msgspec.json.encode(state))
    return folder


def version(folder: Path) -> str:
    state = read_state(folder)
    assert state is not None
    return state.version


def test_a_promoted_teacher_is_found_where_the_old_one_was(tmp_path: Path) -> None:
    running = place(tmp_path / "teacher", "one")
    for name in ("two", "three", "two"):
        promote(running, place(tmp_path / "teacher.next", name))
        assert version(running) == name
        assert running.is_symlink()
        assert not (tmp_path / "teacher.next").exists()
    # Whoever reads an older one reads on.
    assert version(tmp_path / "teacher-one") == "one"
    assert version(tmp_path / "teacher-three") == "three"


def test_what_is_not_finished_takes_no_place(tmp_path: Path) -> None:
    running = place(tmp_path / "teacher", "one")
    (tmp_path / "teacher.next").mkdir()
    with pytest.raises(TeacherError, match="nothing was promoted"):
        promote(running, tmp_path / "teacher.next")
    assert version(running) == "one"
    assert not running.is_symlink()


def test_weights_that_are_not_those_of_the_version_are_refused(tmp_path: Path, teachers: tuple[Path, Path]) -> None:
    folder = shutil.copytree(teachers[1], tmp_path / "mixed")
    shutil.copy(teachers[0] / "heads.safetensors", folder / "heads.safetensors")
    with pytest.raises(TeacherError, match="weights are not those"):
        load_teacher(folder, "cpu")


def test_a_refresh_goes_from_a_log_to_a_decision(tmp_path: Path) -> None:
    log, running = tmp_path / "log.jsonl", tmp_path / "teacher"
    log.write_bytes(b"".join(encode(event) + b"\n" for event in events()))
    small = ("--base", "tiny", "--max-tokens", "16", "--device", "cpu", "--learning-rate", "0.002")
    run("finetune", log, "--out", running, *small, "--epochs", "1")
    first = version(running)
    report: dict[str, Any] = json.loads(run("refresh", log, "--model", running, "--device", "cpu", "--json"))
    assert report["running"] == first
    assert not report["promote"]  # a slate an hour for twelve days is no evidence
    assert "too few" in report["why"]
    assert version(running) == first
    assert json.loads((tmp_path / "teacher.next" / "refresh.json").read_text()) == report


def test_a_refresh_that_was_killed_does_not_keep_the_next_from_a_longer_log(tmp_path: Path) -> None:
    log, running = tmp_path / "log.jsonl", tmp_path / "teacher"
    log.write_bytes(b"".join(encode(event) + b"\n" for event in events()))
    small = ("--base", "tiny", "--max-tokens", "16", "--device", "cpu", "--epochs", "1")
    run("finetune", log, "--out", running, *small)
    left = tmp_path / "teacher.next" / CHECKPOINT
    left.parent.mkdir()
    torch.save({"identity": "of the log as it was"}, left)
    run("refresh", log, "--model", running, "--device", "cpu")
    assert version(left.parent)
    assert not left.exists()


def test_a_teacher_of_judgements_is_made_anew_with_judgements(tmp_path: Path) -> None:
    log, running, grades = tmp_path / "log.jsonl", tmp_path / "teacher", judged(tmp_path)
    log.write_bytes(b"".join(encode(event) + b"\n" for event in events()))
    small = ("--base", "tiny", "--max-tokens", "16", "--device", "cpu", "--learning-rate", "0.002", "--epochs", "1")
    run("finetune", log, "--relevance", grades, "--grade-range", "0:5", "--out", running, *small)
    with pytest.raises(ValueError, match=r"human judgements too: give them with --relevance"):
        run("refresh", log, "--model", running, "--device", "cpu")
    run("refresh", log, "--relevance", grades, "--model", running, "--device", "cpu")
    one, two = read_state(running), read_state(tmp_path / "teacher.next")
    assert one is not None
    assert two is not None
    assert list(one.heads) == list(two.heads) == ["click", "conversion", "relevance"]
    assert one.grades == two.grades == (0.0, 5.0), "what a grade means does not change by itself"
    sources = json.loads((tmp_path / "teacher.next" / "card.json").read_text())["data"]["sources"]
    assert [source["name"] for source in sources] == [log.name, grades.name]
