"""Where tests find what they read: the project, the golden files, and real logs."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
DATA = Path(os.environ.get("HEFT_TEST_DATA", ROOT.parent / "shared" / "data"))  # noqa: TID251
