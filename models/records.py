"""Slates and the five records of the ordered log.

The join writes these records, the score stage adds reference scores, the learner reads them, live and in replay. A
slate is one shown list, clicked or not. Every record has a key ``(due_ms, kind, id, id)``; the keys of a partition only
rise.

Rules of evolution: a new field has a default and goes last, no field changes its type, unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

MIN_AT_MS = 10**12
"""Times below this are seconds sent by mistake (10^12 ms is September 2001)."""

AtMs = Annotated[int, msgspec.Meta(ge=MIN_AT_MS, lt=10**14)]
"""Milliseconds since the epoch, UTC."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Value: TypeAlias = str | int | float | bool | list[str] | None
"""A feature value; ``None`` means missing, as absence does."""

Logit: TypeAlias = Annotated[float, msgspec.Meta(ge=-1_000, le=1_000)]

Key: TypeAlias = tuple[int, int, str, str]
"""``(due_ms, kind, id, id)``: the total order of the records of one partition."""

FIRST_KEY: Key = (0, -1, "", "")
"""Below every record's key."""


class Item(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One item of a slate, as it was shown.

    ``position`` counts from 0 and defaults to the place in the list. ``score`` is what the shop's own ranker served;
    ``propensity`` is the probability in (0, 1] with which its policy showed the item there. ``seen=False``: the item
    was never on screen. ``teacher``: the logits that the teacher gave the ranker for the item, see `Slate`.
    """

    item_id: Id
    position: Annotated[int, msgspec.Meta(ge=0, lt=1_000_000)] | None = None
    text: str = ""
    score: float | None = None
    features: dict[str, Value] = {}
    propensity: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seen: bool = True
    teacher: tuple[Logit, Logit | None] | None = None


class Act(msgspec.Struct, frozen=True, order=True, gc=False):
    """Something the visitor did before a slate was shown: a click (kind ``click``) or any action."""

    item_id: str
    kind: str
    at_ms: AtMs


class Slate(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="impression", tag_field="type"):
    """One shown list with all its items and everything known when it was shown: an impression on the wire.

    ``session`` is what the visitor did before, as the shop itself reports it; when it is ``None`` the join supplies it.
    ``teacher`` is the version of the teacher that the ranker asked in line, as `heft teacher serve` answers it. The
    logits it gave for each item (of a click, and of an order or null) are the item's ``teacher``. Such a slate is not
    scored again.
    """

    request_id: Id
    user_id: Id
    at_ms: AtMs
    items: Annotated[list[Item], msgspec.Meta(min_length=1, max_length=1000)]
    surface: str = ""
    query: str = ""
    context: dict[str, Value] = {}
    session: list[Act] | None = None
    event_id: Id | None = None
    bot: bool = False
    teacher: Annotated[str, msgspec.Meta(pattern="^([^@]+@[0-9]+)?$", max_length=200)] = ""


class ReferenceScore(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A teacher's logits for one item, in steps of 1/256.

    ``version`` ends with the time at which the teacher's data ends (`models.teacher.logits.wire_version`). ``on_time``:
    a ranker could have known the score at the slate's ``at_ms``. ``order_256``: the logit of a conversion, from a
    teacher with a head for it.
    """

    item_id: str
    logit_256: int
    version: str
    on_time: bool
    order_256: int | None = None


class Shown(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A slate was shown; due at its ``at_ms``. ``session``: what the visitor did strictly before, oldest first."""

    due_ms: int
    slate: Slate
    session: list[Act]
    scores: list[ReferenceScore] = []

    @property
    def key(self) -> Key:
        """Return where the record stands in the order of its partition."""
        return (self.due_ms, 0, self.slate.request_id, "")


class Clicked(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """An item was clicked; due at the later of the click and its impression."""

    due_ms: int
    request_id: str
    item_id: str

    @property
    def key(self) -> Key:
        """Return where the record stands in the order of its partition."""
        return (self.due_ms, 1, self.request_id, self.item_id)


class Converted(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """An order, credited to a click; due ``clock_skew`` after the order. ``value`` in the shop's currency."""

    due_ms: int
    order_id: str
    item_id: str
    request_id: str
    value: float

    @property
    def key(self) -> Key:
        """Return where the record stands in the order of its partition."""
        return (self.due_ms, 2, self.order_id, self.item_id)


class Closed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The click window of a slate has ended: its labels are known. ``scores``: all reference scores by then."""

    due_ms: int
    request_id: str
    scores: list[ReferenceScore] = []

    @property
    def key(self) -> Key:
        """Return where the record stands in the order of its partition."""
        return (self.due_ms, 3, self.request_id, "")


class Matured(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The conversion window of a click has ended: exactly one for every click in its window."""

    due_ms: int
    request_id: str
    item_id: str
    converted: bool
    value: float

    @property
    def key(self) -> Key:
        """Return where the record stands in the order of its partition."""
        return (self.due_ms, 4, self.request_id, self.item_id)


def data_ends_ms(version: str) -> int:
    """Return when a teacher's data ends, in milliseconds since the epoch, from the version of its scores; 0 if unknown.

    The teacher may know the labels of slates that were shown until then.

    Examples
    --------
    >>> data_ends_ms("6f1c@1541548800000"), data_ends_ms("6f1c@0"), data_ends_ms("6f1c")
    (1541548800000, 0, 0)
    """
    end = version.rpartition("@")[2]
    return int(end) if "@" in version and end.isascii() and end.isdigit() else 0


Record: TypeAlias = Shown | Clicked | Converted | Closed | Matured
