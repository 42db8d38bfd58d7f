"""Which features the model sees of a slate: they are declared, not coded.

A *field* is a named source of values:

* ``surface``, ``query`` (in lower case), ``user_id``, ``item_id``: as they come. ``slate.size``: how many items.
* ``query.words``, ``text.words``: the words of the query and of the item's text. ``match``, ``match.letters``: how many
  words, and what share of its letter triples, the query has in common with the text.
* ``context.NAME``, ``item.NAME``: a value of the slate's context or of the item's features, read as its type asks: text
  and booleans by value, lists as several values, numbers by logarithmic bucket, four to the octave. The fields of
  numbers are named ``context.NAME.log`` and ``item.NAME.log``.
* ``item.NAME.rank``, ``item.NAME.ratio``, ``item.NAME.step``: a number's rank among those of the slate, in tenths; its
  ratio to their median, and its ratio to that of the item touched last, both in logarithmic buckets.
* ``position``, ``position.log``: the place the item was shown at, exactly and by half octaves.
* ``session.size``, ``session.last``, ``session.ago``, ``session.met``: how much the visitor did before; the kind of the
  last act and whether it was on an item of the slate; how long ago it was; how many of the slate's items were touched.
  ``session.kinds``, ``session.since``: what was done with this item, by kind and count, and how long ago.
  ``session.place``: whether this item is the one touched last, or second to last, or earlier, and by what act; or that
  it was never touched. ``session.gap``, ``session.gap.log``: how many places below the item touched last the row is.
* ``PAST.rate``, ``PAST.count``, ``PAST.since``, from the slates closed before (`models.features.history`), where PAST
  is ``item_past``, ``user``, ``query_item`` or ``user_item``: clicks against what the positions promised; clicks and
  impressions; the time since a click.
* ``item_past.new``: has its one value where `Vectors.new` is true. Without it a new item, few of whose slots are known,
  would be predicted close to the base rate.

A *feature* is a field, or a cross of two or three joined by `` * ``. ``context.*`` and ``item.*`` stand for every name
that appears, and its values other than numbers; ``context.*.log``, ``item.*.log`` (or ``.rank``, ``.ratio``, ``.step``)
for the numbers. All are binary: a feature of a row has one slot for each value or combination of values. ``position``
and ``session.gap``, their logarithms, and every cross that holds one of them derive from position.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import product

import msgspec

from heft.models.features import fields

DEFAULT_FEATURES = (
    "surface", "context.*", "slate.size", "item_id", "item.*", "item.*.ratio", "text.words", "match", "match.letters",
    "query.words * text.words", "context.* * item.*", "user_id * item.*",
    "position * session.size", "position.log * item.*.rank", "position.log * session.place",
    "position.log * session.met * session.ago", "position.log * session.gap.log",
    "position.log * session.gap.log * session.ago", "session.gap * session.ago", "session.gap.log * session.last",
    "session.gap.log * session.last * session.met",
    "session.kinds", "session.kinds * session.met", "session.kinds * context.*", "session.since * session.ago",
    "session.last * session.ago", "session.last * item.*.step", "session.ago * item.*.ratio",
    "session.place * session.last", "session.place * session.last * session.ago", "session.place * context.*",
    "session.place * session.met * item.*.rank", "session.place * item.*.step",
    "item_past.rate", "item_past.new", "query_item.rate", "user_item.rate", "user_item.count", "user_item.since",
)  # fmt: skip
"""Those that paid on the logs they were tried on."""

_WILD = ("context.*", "context.*.log", "item.*", *("item.*" + suffix for suffix in fields.OF_NUMBERS))
_OF_NAMES = ("context.", "item.")
SLATE, ROW, POSITION = range(3)
"""What a feature depends on at most: the slate alone, the row, or the position of the row."""

_OF_POSITION = frozenset({"position", "position.log", "session.gap", "session.gap.log"})
_OF_ROW = frozenset(fields.FIXED[fields.ITEM_ID :])


class FeatureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model sees. Both heads see the same.

    Raises
    ------
    ValueError
        If a feature names a field that does not exist or crosses more than three, or a number is out of range.
    """

    features: tuple[str, ...] = DEFAULT_FEATURES
    """Fields, and crosses of fields joined by ``*`` with spaces around it."""
    history_bits: int = 17
    """Each of the four history tables has 2^history_bits places of 48 bytes; 3 to 26."""
    history_half_life_ms: int = 7 * 86_400_000
    """Clicks and impressions of the past count half after this time; above 0."""

    def __post_init__(self) -> None:
        known = [*fields.FIXED, *_WILD]
        for feature in self.features:
            terms = feature.split(" * ")
            if len(terms) > 3:
                msg = f"features: {feature!r} crosses {len(terms)} fields; at most 3 are supported"
                raise ValueError(msg)
            for field in terms:
                if field not in known and not field.startswith(_OF_NAMES):
                    near = get_close_matches(field, known, 1)
                    hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"
                    msg = f"features: {feature!r} names an unknown field {field!r}{hint}"
                    raise ValueError(msg)
        if not 3 <= self.history_bits <= 26:
            msg = f"features: history_bits is {self.history_bits}; expected 3 to 26"
            raise ValueError(msg)
        if self.history_half_life_ms <= 0:
            msg = f"features: history_half_life is {self.history_half_life_ms} ms; expected more than 0"
            raise ValueError(msg)


def expand(declared: Iterable[str], names: list[str]) -> list[tuple[int, tuple[str, ...]]]:
    """Return the features that declared ones stand for, given the ``names`` of all fields known so far.

    Each comes once, as what it depends on at most (`SLATE`, `ROW`, `POSITION`) and its fields in alphabetical order.
    The list is sorted, so it does not depend on the order in which features were declared or names appeared.
    """
    features: set[tuple[str, ...]] = set()
    for feature in declared:
        choices = [[name for name in names if matches(term, name)] for term in feature.split(" * ")]
        features |= {tuple(sorted(each)) for each in product(*choices) if len(set(each)) == len(each)}
    return sorted((_depends(each), each) for each in features)


def matches(term: str, name: str) -> bool:
    """Tell whether a term of a declared feature means the field ``name``; a plain name means its numbers too."""
    if "*" not in term:
        return name == term or (term.startswith(_OF_NAMES) and name == term + fields.OF_NUMBERS[0])
    prefix, _, suffix = term.partition("*")
    return name.startswith(prefix) and (name.endswith(suffix) if suffix else not name.endswith(fields.OF_NUMBERS))


def _depends(feature: tuple[str, ...]) -> int:
    if _OF_POSITION.intersection(feature):
        return POSITION
    return ROW if any(name in _OF_ROW or name.startswith("item.") for name in feature) else SLATE
