"""A teacher's score of a pair as messages carry it: in steps of 1/256, so that learning a log again gives the same."""

from __future__ import annotations

import re
from typing import NamedTuple

STEPS = 256

MOST = 1_000.0
"""Largest logit that is accepted, as on the wire: no probability needs a larger one, so a larger one is a mistake."""

_VERSION = re.compile(r"[^@]*@[0-9]{1,15}")


class Logits(NamedTuple):
    """Calibrated logits of a pair, in steps of 1/256, without what a position adds.

    ``logit_256`` is that of a click, or of human relevance if the teacher has no click head. ``order_256`` is that of a
    conversion of the clicked item; None if the teacher has no conversion head.
    """

    logit_256: int
    order_256: int | None = None


def quantise(click: float, order: float | None = None) -> Logits | None:
    """Return logits in steps of 1/256; None if one of them is not between -`MOST` and `MOST`.

    Examples
    --------
    >>> quantise(-2.5, 0.125), quantise(1.0), quantise(float("nan"))
    (Logits(logit_256=-640, order_256=32), Logits(logit_256=256, order_256=None), None)
    """
    if not abs(click) <= MOST or (order is not None and not abs(order) <= MOST):  # NaN fails this too
        return None
    return Logits(round(click * STEPS), None if order is None else round(order * STEPS))


def wire_version(version: str, data_ends_ms: int | None) -> str:
    """Return the version that a score carries; it tells a learner when the data of the teacher ends.

    Examples
    --------
    >>> wire_version("6f1c", 1_541_548_800_000), wire_version("6f1c", None)
    ('6f1c@1541548800000', '6f1c@0')
    """
    return f"{version}@{data_ends_ms or 0}"


def is_wire_version(text: str) -> bool:
    """Return whether a text is a version as `wire_version` makes it.

    Examples
    --------
    >>> is_wire_version("6f1c@0"), is_wire_version("6f1c"), is_wire_version("6f1c@²")
    (True, False, False)
    """
    return len(text) <= 200 and _VERSION.fullmatch(text) is not None
