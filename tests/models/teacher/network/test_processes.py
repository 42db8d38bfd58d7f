"""Fine-tuning in several processes: the model of one, and one that writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
pytest.importorskip("transformers", reason="the teacher's libraries are not installed: pip install '.[teacher]'")

from heft.models.teacher.network.teacher_folder import load_teacher
from tests.support.teacher_log import judged

HOW = (
    "--base", "tiny", "--max-tokens", "16", "--device", "cpu", "--dropout", "0", "--epochs", "2",
    "--learning-rate", "0.001",
)  # fmt: skip


def finetune(file: Path, out: Path, processes: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command += ["heft", "teacher", "finetune", "--relevance", str(file), "--out", str(out), *HOW, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("card.md") == 1  # one of them speaks
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    return card


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--static", "--batch", "32")])
def test_two_processes_end_with_the_model_of_one(tmp_path: Path, more: tuple[str, ...]) -> None:
    file = judged(tmp_path)
    one, two = (finetune(file, tmp_path / str(count), count, *more) for count in (1, 2))
    models = [load_teacher(tmp_path / name, "cpu")[0].state_dict() for name in ("1", "2")]
    weights = [np.concatenate([p.float().numpy().ravel() for p in model.values()]) for model in models]
    assert one["training"] == pytest.approx(two["training"], nan_ok=True)
    assert one["heads"]["relevance"]["after_calibrated"]["logloss"] == pytest.approx(
        two["heads"]["relevance"]["after_calibrated"]["logloss"], abs=1e-4
    )
    # Sums in another order: where a gradient is next to nothing, Adam makes much of its rounding.
    assert np.abs(weights[0] - weights[1]).mean() < 1e-5
    assert len(list((tmp_path / "2" / "tensorboard").iterdir())) == 1
