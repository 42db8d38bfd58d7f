"""Raw fields to hashed slots: what the model sees of a slate, frozen when it is shown.

Features are declared, not coded. A *field* is a named source of values:

* ``surface``, ``query`` (in lower case), ``user_id``, ``item_id``: as they come. ``slate.size``: how many items.
* ``query.words``, ``text.words``: the words of the query and of the item's text. ``match``, ``match.letters``: how many
  words, and what share of its letter triples, the query has in common with the text.
* ``context.NAME``, ``item.NAME``: a value of the slate's context or of the item's features, treated as its type asks:
  text and booleans by value, lists as several values, numbers as ``context.NAME.log``, ``item.NAME.log``: by
  logarithmic bucket, four to the octave.
* ``item.NAME.rank``, ``item.NAME.ratio``, ``item.NAME.step``: a number among those of the slate in tenths, and on a
  logarithmic scale against their median and against that of the item touched last.
* ``position``, ``position.log``: the place the item was shown at, exactly and by half octaves.
* ``session.size``, ``session.last``, ``session.ago``, ``session.met``: how much the visitor did before, the kind of the
  last act and whether it was on an item of the slate, how long ago it was, and how many of the slate's items were
  touched. ``session.kinds``, ``session.since``: what was done with this item, by kind and count, and how long ago.
  ``session.place``: whether this is the item touched last, or second to last, and by what act; or one of those never
  touched. ``session.gap``, ``session.gap.log``: how many places
  below the item touched last the row is.
* ``PAST.rate``, ``PAST.count``, ``PAST.since`` of what was closed before (`history`), PAST being ``item_past``,
  ``user``, ``query_item`` or ``user_item``: clicks against what the positions promised; clicks and impressions; the
  time since a click.
* ``item_past.new``: one value where `Vectors.new` is true. Without it a new item, of which few slots are known, is
  taken for one of the base rate.

A *feature* is a field, or a cross of two or three joined by `` * ``. ``context.*`` and ``item.*`` stand for every name
that appears and its values other than numbers; ``context.*.log``, ``item.*.log`` (or ``.rank``, ``.ratio``, ``.step``)
for the numbers. All are binary: a feature of a row is one slot for each value or combination of values. ``position``
and ``session.gap``, their logarithms, and what is crossed with them derive from position.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from itertools import product
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.features import fields, slots
from heft.models.features.history import History
from heft.models.hashing import TextHashes, TripleHashes, hash_text, words
from heft.models.records import Act, Item, Slate, Value

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

_WILD = ("context.*", "context.*.log", "item.*", *("item.*" + suffix for suffix in fields.OF_NUMBERS))
_OF_NAMES = ("context.", "item.")
_OF_POSITION = frozenset({"position", "position.log", "session.gap", "session.gap.log"})
_OF_ROW = frozenset(fields.FIXED[fields.ITEM_ID :])
_MAX_WORDS = 24
_MAX_CACHED_TEXTS = 1 << 16
_MAX_CACHED_ITEMS = 1 << 15
_MAX_NAMES = 1 << 12


class FeatureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model sees; the same for both heads.

    Raises
    ------
    ValueError
        If a feature names a field that does not exist, or crosses more than three.
    """

    features: tuple[str, ...] = DEFAULT_FEATURES
    """Fields, and crosses of fields joined by ``*`` with spaces around it."""
    history_bits: int = 17
    """Each of the four history tables has 2^history_bits places of 48 bytes."""
    history_half_life_ms: int = 7 * 86_400_000
    """Clicks and impressions of the past count half after this time."""

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


def item_hash(item_id: str) -> int:
    """Return the hash by which `Vectors.items` knows an item: unsigned, 64 bits."""
    return hash_text(item_id) % 2**64


class Vectors(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A slate as the model saw it when it was shown: all that an open slate keeps. Never changed.

    ``slots[indptr[3r]:indptr[3r+1]]`` are row r's slots that owe nothing to position, those from there to
    ``indptr[3r+2]`` come from the position it was shown at, those to ``indptr[3r+3]`` from position 0 for every row.
    The first two together are the features as shown, the first and third those of the position-free score.
    """

    at_ms: int
    request: int
    """Hashes (unsigned, 64 bits) of request, user and query."""
    user: int
    query: int
    items: NDArray[np.uint64]
    """[n] hashes of the item ids, in the order of the slate."""
    positions: NDArray[np.uint16]
    """[n]"""
    seen: NDArray[np.bool_]
    """[n] whether the item was on screen; the others are not learned."""
    new: NDArray[np.bool_]
    """[n] whether the item had fewer than 20 (decayed) impressions."""
    indptr: NDArray[np.int32]
    """[3 n + 1]"""
    slots: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.items)

    def row(self, item_id: str) -> int:
        """Return the row of an item, or -1."""
        found = np.flatnonzero(self.items == np.uint64(item_hash(item_id)))
        return int(found[0]) if found.size else -1

    def one(self, row: int) -> Vectors:
        """Return one row alone, such as a clicked item that waits for its order."""
        start, end = self.indptr[3 * row], self.indptr[3 * row + 3]
        return Vectors(
            self.at_ms, self.request, self.user, self.query,
            self.items[row : row + 1].copy(), self.positions[row : row + 1].copy(),
            self.seen[row : row + 1].copy(), self.new[row : row + 1].copy(),
            self.indptr[3 * row : 3 * row + 4] - start, self.slots[start:end].copy(),
        )  # fmt: skip

    def state(self) -> tuple[Any, ...]:
        """Return numbers and arrays; ``Vectors(*state)`` is the same again."""
        return tuple(getattr(self, name) for name in self.__struct_fields__)


_as_bytes = msgspec.msgpack.Encoder().encode


def _words(item: int, pairs: list[int], number_fields: list[int], letters: list[int], numbers: list[float]) -> bytes:
    """Return what `models.features.slots.fill` wants to know of an item, or of the slate itself, as 64-bit words.

    The item's hash; how many pairs, numbers and letters there are; pairs of field and value; the field of each number;
    sorted hashes of letter triples; the numbers.
    """
    many = len(pairs), len(numbers), len(letters)
    return _layout(4 + sum(many), many[1])(
        item, many[0] // 2, many[1], many[2], *pairs, *number_fields, *letters, *numbers
    )


@lru_cache(4096)
def _layout(integers: int, reals: int) -> Callable[..., bytes]:
    return struct.Struct(f"={integers}q{reals}d").pack


class Featurizer:
    """Turns slates into `Vectors`, and keeps the history they read.

    `shown` reads the history and changes nothing that a prediction depends on; `clicked` and `closed` move it.

    Parameters
    ----------
    config
        What to look at.

    Examples
    --------
    >>> featurizer = Featurizer(FeatureConfig(features=("item_id", "position")))
    >>> slate = Slate(request_id="r", user_id="u", at_ms=1541548939000, items=[Item("a"), Item("b")])
    >>> vectors = featurizer.shown(slate, [])
    >>> len(vectors), vectors.indptr.tolist()
    (2, [0, 1, 2, 3, 4, 5, 6])
    """

    def __init__(self, config: FeatureConfig | None = None) -> None:
        self.config = config or FeatureConfig()
        self.history = History(self.config.history_bits, self.config.history_half_life_ms)
        self.ignored_fields = 0
        """How often a slate or an item brought a field that some feature reads and that there was no room for."""
        self._hashes = TextHashes()
        self._names: list[str] = list(fields.FIXED)
        self._known: list[str] = []  # the names of context and item fields that are read, as they came
        self._context: dict[str, int] = {}
        self._item: dict[str, int] = {}
        self._triples = TripleHashes()
        self._texts: dict[str, tuple[list[int], list[int]]] = {}
        self._known_words: dict[bytes, bytes] = {}  # of slates and of items, by all that they are made of
        self._compile()

    def shown(self, slate: Slate, session: list[Act]) -> Vectors:
        """Return what the model sees of a slate, given what the visitor did strictly before, oldest first."""
        hashes, items, known = self._hashes, slate.items, self._known_words
        n, query = len(items), slate.query.strip().lower()
        key = _as_bytes((slate.surface, query, slate.context))
        words = [known.get(key) or self._slate_words(slate, query, key)]
        for item in items:
            brought = None if item.text else self._number_words(item)
            if brought is None:
                # As bytes: a comparison with a dictionary would wait for each of its values to come from memory.
                key = _as_bytes((item.item_id, item.features, item.text))
                brought = known.get(key) or self._item_words(item, key)
            words.append(brought)
        positions = [row if item.position is None else item.position for row, item in enumerate(items)]
        seen = np.array([item.seen for item in items])
        for act in session:
            positions += (hashes[act.item_id], hashes[act.kind], act.at_ms)
        words.append(array("q", positions).tobytes())
        packed = b"".join(words)
        user = hash_text(slate.user_id) % 2**64
        asked = hashes[query] % 2**64
        out = np.empty(n, np.uint64), np.empty(n, np.uint16), np.empty(n, np.bool_), np.empty(3 * n + 1, np.int32)
        history = self.history
        filled = slots.fill(
            n, slate.at_ms, np.uint64(user), np.uint64(asked),
            np.frombuffer(packed, np.int64), np.frombuffer(packed, np.float64),
            self._terms, self._salts, self._bounds, self._needed, history.keys, history.times, history.counts,
            history.clicked_ms, history.half_life_ms, *out,
        )  # fmt: skip
        hashed, places, new, indptr = out
        request = hash_text(slate.request_id) % 2**64
        return Vectors(slate.at_ms, request, user, asked, hashed, places, seen, new, indptr, filled)

    def clicked(self, vectors: Vectors, row: int) -> None:
        """Note a click on a row of a slate: how recent the last click is moves."""
        self.history.clicked(vectors.at_ms, np.uint64(vectors.user), np.uint64(vectors.query), vectors.items[row])

    def closed(self, vectors: Vectors, labels: NDArray[np.uint8]) -> None:
        """Count a slate whose labels [n] are known: clicks and impressions move together."""
        self.history.closed(
            vectors.at_ms, np.uint64(vectors.user), np.uint64(vectors.query), vectors.items, vectors.positions,
            vectors.seen, labels,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that later vectors depend on."""
        return {"known": list(self._known), "ignored_fields": self.ignored_fields, "history": self.history.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same config."""
        self._names, self._known = list(fields.FIXED), []
        self._context, self._item = {}, {}
        self._compile()
        for full in state["known"]:
            prefix, _, name = full.partition(".")
            self._register(self._context if prefix == "context" else self._item, prefix + ".", name)
        self.ignored_fields = state["ignored_fields"]
        self.history.restore(state["history"])

    def _slate_words(self, slate: Slate, query: str, key: bytes) -> bytes:
        """Return what a slate brings along besides its items, and remember it."""
        hashes, ignored = self._hashes, self.ignored_fields
        pairs: list[int] = []
        number_fields: list[int] = []
        numbers: list[float] = []
        letters: list[int] = []
        if slate.surface:
            pairs += (fields.SURFACE, hashes[slate.surface])
        if query:
            pairs += (fields.QUERY, hashes[query])
            if self._reads_words:
                found, letters = self._text(query, fields.QUERY_WORDS)
                pairs += found
        for name, value in slate.context.items():
            field = self._context.get(name)
            if field is None:
                field = self._register(self._context, "context.", name)
            if field >= 0:
                self._put(field, value, pairs, number_fields, numbers)
        return self._remember(key, _words(0, pairs, number_fields, letters, numbers), ignored)

    def _number_words(self, item: Item) -> bytes | None:
        """Return what an item brings along that has known numbers alone: they are read sooner than remembered."""
        known = self._item
        number_fields: list[int] = []
        numbers: list[float] = []
        for name, value in item.features.items():
            field = known.get(name)
            if field is None or type(value) is not float:
                return None
            if field >= 0:
                number_fields.append(field)
                numbers.append(value)
        many = len(numbers)
        return _layout(4 + many, many)(self._hashes[item.item_id], 0, many, 0, *number_fields, *numbers)

    def _item_words(self, item: Item, key: bytes) -> bytes:
        """Return what an item brings along, and remember it: most slates show what other slates showed."""
        known, ignored = self._item, self.ignored_fields
        pairs: list[int] = []
        number_fields: list[int] = []
        numbers: list[float] = []
        letters: list[int] = []
        for name, value in item.features.items():
            field = known.get(name)
            if field is None:
                field = self._register(known, "item.", name)
            if field < 0:
                continue
            if type(value) is float:
                number_fields.append(field)
                numbers.append(value)
            else:
                self._put(field, value, pairs, number_fields, numbers)
        if self._reads_words and item.text:
            found, letters = self._text(item.text, fields.TEXT_WORDS)
            pairs += found
        item_words = _words(self._hashes[item.item_id], pairs, number_fields, letters, numbers)
        return self._remember(key, item_words, ignored)

    def _remember(self, key: bytes, found: bytes, ignored: int) -> bytes:
        if self.ignored_fields == ignored:  # what is ignored is counted each time, so it is read each time
            if len(self._known_words) >= _MAX_CACHED_ITEMS:
                self._known_words.clear()
            self._known_words[key] = found
        return found

    def _put(self, field: int, value: Value, pairs: list[int], number_fields: list[int], numbers: list[float]) -> None:
        if isinstance(value, str):
            pairs += (field, self._hashes[value])
        elif isinstance(value, bool):
            pairs += (field, self._hashes["true" if value else "false"])
        elif isinstance(value, (int, float)):
            number_fields.append(field)
            numbers.append(value)
        elif isinstance(value, list):
            for each in value[: fields.MAX_VALUES]:
                pairs += (field, self._hashes[each])

    def _text(self, text: str, field: int) -> tuple[list[int], list[int]]:
        """Return the words of a text as pairs, and the sorted hashes of its letter triples; remembered."""
        known = self._texts.get(text)
        if known is None or (known[0] and known[0][0] != field):
            if len(self._texts) >= _MAX_CACHED_TEXTS:
                self._texts.clear()
            found = words(text, _MAX_WORDS)
            pairs = [number for word in found for number in (field, self._hashes[word])]
            triples = {triple for word in found for triple in self._triples[word]} if self._reads_letters else ()
            known = self._texts[text] = pairs, sorted(triples)
        return known

    def _register(self, known: dict[str, int], prefix: str, name: str) -> int:
        """Give a name that appears for the first time its fields; -1 if no feature reads it, or there is no room."""
        full = prefix + name
        suffixes = fields.OF_NUMBERS if prefix == "item." else fields.OF_NUMBERS[:1]
        wanted = any(_matches(term, full + suffix) for term in self._declared for suffix in ("", *suffixes))
        if not wanted:
            if len(known) < _MAX_NAMES:
                known[name] = -1  # remembered to be quick; takes no room from the names that are read
            return -1
        if len(self._names) + 1 + len(suffixes) > fields.MAX_FIELDS:
            self.ignored_fields += 1
            return -1
        self._known.append(full)
        field = known[name] = len(self._names)
        self._names += [full, *(full + suffix for suffix in suffixes)]
        self._compile()
        return field

    def _compile(self) -> None:
        """Expand the wildcards over the names known by now."""
        index = {name: field for field, name in enumerate(self._names)}
        expanded: set[tuple[str, ...]] = set()
        for declared in self.config.features:
            choices = [[name for name in self._names if _matches(term, name)] for term in declared.split(" * ")]
            expanded |= {tuple(sorted(each)) for each in product(*choices) if len(set(each)) == len(each)}
        features = sorted((_depends(each), each) for each in expanded)
        kinds = [kind for kind, _ in features]
        self._terms = np.full((len(features), 3), -1, np.int64)
        for row, (_, feature) in enumerate(features):
            self._terms[row, : len(feature)] = [index[name] for name in feature]
        self._bounds = np.searchsorted(np.array(kinds, np.int64), [1, 2]).astype(np.int64)
        self._salts = np.array([hash_text(" * ".join(feature)) % 2**64 for _, feature in features], np.uint64)
        self._declared = {term for feature in self.config.features for term in feature.split(" * ")}
        self._needed = np.zeros(fields.MAX_FIELDS, np.bool_)
        self._needed[self._terms[self._terms >= 0]] = True
        self._reads_letters = bool(self._needed[fields.MATCH_LETTERS])
        of_words = [fields.QUERY_WORDS, fields.TEXT_WORDS, fields.MATCH, fields.MATCH_LETTERS]
        self._reads_words = bool(self._needed[of_words].any())
        self._texts.clear()
        self._known_words.clear()


def _depends(feature: tuple[str, ...]) -> int:
    """Return 0 if a feature depends on the slate alone, 1 if on the row, 2 if on its position."""
    if _OF_POSITION.intersection(feature):
        return 2
    return int(any(name in _OF_ROW or name.startswith("item.") for name in feature))


def _matches(term: str, name: str) -> bool:
    """Tell whether a term of a declared feature means a field; a name means its numbers too."""
    if "*" not in term:
        return name == term or (term.startswith(_OF_NAMES) and name == term + fields.OF_NUMBERS[0])
    prefix, _, suffix = term.partition("*")
    return name.startswith(prefix) and (name.endswith(suffix) if suffix else not name.endswith(fields.OF_NUMBERS))
