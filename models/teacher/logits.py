"""What a teacher says of a pair, as it travels: logits in steps of 1/256, so that a log learned again is exact."""

from __future__ import annotations

import re
from typing import NamedTuple

STEPS = 256

MOST = 1_000.0
"""As on the wire: no probability needs a larger logit, and one that large is somebody's mistake."""

_VERSION = re.compile(r"[^@]*@[0-9]{1,15}")


class Logits(NamedTuple):
    """Calibrated logits of a pair, in steps of 1/256, position left out.

    ``logit_256`` is the click's, or that of human relevance where the teacher has no head for clicks; ``order_256`` the
    conversion's of a clicked item, None without such a head.
    """

    logit_256: int
    order_256: int | None = None


def quantise(click: float, order: float | None = None) -> Logits | None:
    """Return logits in steps of 1/256; None when one of them is no number from -`MOST` to `MOST`.

    Examples
    --------
    >>> quantise(-2.5, 0.125), quantise(1.0), quantise(float("nan"))
    (Logits(logit_256=-640, order_256=32), Logits(logit_256=256, order_256=None), None)
    """
    if not abs(click) <= MOST or (order is not None and not abs(order) <= MOST):  # NaN is none
        return None
    return Logits(round(click * STEPS), None if order is None else round(order * STEPS))


def wire_version(version: str, data_ends_ms: int | None) -> str:
    """Return the version that a score carries: a learner sees from it alone when the teacher's data ends.

    Examples
    --------
    >>> wire_version("6f1c", 1_541_548_800_000), wire_version("6f1c", None)
    ('6f1c@1541548800000', '6f1c@0')
    """
    return f"{version}@{data_ends_ms or 0}"


def is_wire_version(text: str) -> bool:
    """Whether a version is such a one.

    Examples
    --------
    >>> is_wire_version("6f1c@0"), is_wire_version("6f1c"), is_wire_version("6f1c@²")
    (True, False, False)
    """
    return len(text) <= 200 and _VERSION.fullmatch(text) is not None
