"""What a teacher says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TeacherDescription(NamedTuple):
    """Which teacher it is, what it reads, and how."""

    version: str
    """As its scores carry it: with when its data ends (`wire_version`)."""
    template: str
    """What it reads; see `TeacherConfig.template`."""
    apart: bool = False
    """It reads the two texts of a pair apart: two vectors that are known give the score of their pair."""
    read_ahead: Sequence[str] = ()
    """Texts of its own log that it has read before it answers for the first time, the most used first."""
    static: bool = False
    """It needs no model to read a text, so it scores pairs of any texts at once."""
