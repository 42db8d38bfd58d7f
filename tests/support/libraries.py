"""heft where some libraries cannot be imported: what an installation without them would do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

TORCH = ("torch", "transformers", "peft", "tensorboard")
LOOK_UP = ("safetensors", "tokenizers")
"""What a static teacher needs."""

_WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # an import of it fails from here on
import heft.stream.worker.app, heft.stream.learn.learner, heft.stream.replay.replay, heft.stream.teacher.commands
import heft.models.teacher.data.log_samples, heft.models.teacher.template
from heft.stream.cli.main import main
main()
"""


def heft_without(libraries: Sequence[str]) -> tuple[str, ...]:
    """Arguments to Python that run heft where these libraries cannot be imported."""
    return "-c", _WITHOUT, ",".join(libraries)


def without(libraries: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *heft_without(libraries), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
