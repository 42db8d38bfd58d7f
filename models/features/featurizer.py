"""Raw fields to hashed slots: what the model sees of a slate, frozen when it is shown.

Texts are hashed here, in Python, and remembered; `models.features.slots` does the rest in one compiled call a slate.
Which features there are is declared in `models.features.config`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.features import fields, slots
from heft.models.features.config import FeatureConfig, expand, matches
from heft.models.features.history import History
from heft.models.features.vectors import Vectors
from heft.models.hashing import TextHashes, TripleHashes, hash_text, words
from heft.models.records import Act, Item, Slate, Value

_MAX_WORDS = 24
_MAX_CACHED_TEXTS = 1 << 16
_MAX_CACHED_ITEMS = 1 << 15
_MAX_NAMES = 1 << 12

_as_bytes = msgspec.msgpack.Encoder().encode
_before_slate = struct.Struct("=3q").pack  # when it was shown, user, query


def _words(item: int, pairs: list[int], number_fields: list[int], letters: list[int], numbers: list[float]) -> bytes:
    """Return what `models.features.slots.fill` reads of an item, or of the slate itself, as 64-bit words.

    In this order: the item's hash; how many pairs, numbers and letter triples there are; the pairs of field and value;
    the field of each number; the sorted hashes of the letter triples; the numbers.
    """
    many = len(pairs), len(numbers), len(letters)
    return _layout(4 + sum(many), many[1])(
        item, many[0] // 2, many[1], many[2], *pairs, *number_fields, *letters, *numbers
    )


@lru_cache(4096)
def _layout(integers: int, reals: int) -> Callable[..., bytes]:
    """Return the function that packs so many 64-bit integers and then so many doubles."""
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
        """How often a slate or an item brought a field that some feature reads, but that there was no room for."""
        self._hashes = TextHashes()
        self._names: list[str] = list(fields.FIXED)
        self._known: list[str] = []  # the names of context and item fields that are read, in the order they came
        self._context: dict[str, int] = {}
        self._item: dict[str, int] = {}
        self._triples = TripleHashes()
        self._texts: dict[str, tuple[list[int], list[int]]] = {}
        self._known_words: dict[bytes, bytes] = {}  # of slates and of items, by everything they depend on
        self._compile()

    def shown(self, slate: Slate, session: list[Act]) -> Vectors:
        """Return what the model sees of a slate, given what the visitor did strictly before, oldest first."""
        hashes, items, known = self._hashes, slate.items, self._known_words
        n, query = len(items), slate.query.strip().lower()
        key = _as_bytes((slate.surface, query, slate.context))
        user, query_hash = hash_text(slate.user_id), hashes[query]
        words = [_before_slate(slate.at_ms, user, query_hash), known.get(key) or self._slate_words(slate, query, key)]
        for item in items:
            item_words = None if item.text else self._number_words(item)
            if item_words is None:
                # The key is bytes: comparing dictionaries would fetch each of their values from memory.
                key = _as_bytes((item.item_id, item.features, item.text))
                item_words = known.get(key) or self._item_words(item, key)
            words.append(item_words)
        positions = [row if item.position is None else item.position for row, item in enumerate(items)]
        seen = np.array([item.seen for item in items])
        for act in session:
            positions += (hashes[act.item_id], hashes[act.kind], act.at_ms)
        words.append(array("q", positions).tobytes())
        packed = b"".join(words)
        history, row_items, row_positions = self.history, np.empty(n, np.uint64), np.empty(n, np.uint16)
        new = np.empty(n, np.bool_)
        indptr, filled = slots.fill(
            np.frombuffer(packed, np.int64), np.frombuffer(packed, np.float64), self._features,
            history.keys, history.entries, history.totals, row_items, row_positions, new,
        )  # fmt: skip
        request = hash_text(slate.request_id) % 2**64
        return Vectors(
            slate.at_ms, request, user % 2**64, query_hash % 2**64, row_items, row_positions, seen, new, indptr, filled
        )  # fmt: skip

    def clicked(self, vectors: Vectors, row: int) -> None:
        """Note a click on a row of a slate; only the times of last clicks move."""
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
        """Return the words of the slate itself, without its items, and remember them."""
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
        """Return the words of an item that has known number fields only, else None.

        Such an item is not remembered: packing its numbers is quicker than looking it up.
        """
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
        """Return the words of an item, and remember them: most items are shown in many slates."""
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
        # Ignored fields are counted each time they come, so words that lack one are made anew each time.
        if self.ignored_fields == ignored:
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
        """Give a new name its fields and return the first; -1 if no feature reads it, or there is no room."""
        full = prefix + name
        suffixes = fields.OF_NUMBERS if prefix == "item." else fields.OF_NUMBERS[:1]
        wanted = any(matches(term, full + suffix) for term in self._declared for suffix in ("", *suffixes))
        if not wanted:
            if len(known) < _MAX_NAMES:
                known[name] = -1  # only to answer faster next time; names that are read do not need this room
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
        """Expand the wildcards over the names known so far."""
        index = {name: field for field, name in enumerate(self._names)}
        features = expand(self.config.features, self._names)
        compiled: NDArray[Any] = np.full(len(features), -1, slots.FEATURE)
        compiled["kind"] = [kind for kind, _ in features]
        compiled["salt"] = [hash_text(" * ".join(feature)) % 2**64 for _, feature in features]
        for row, (_, feature) in enumerate(features):
            compiled["terms"][row, : len(feature)] = [index[name] for name in feature]
        self._features = compiled
        self._declared = {term for feature in self.config.features for term in feature.split(" * ")}
        read = set(compiled["terms"].reshape(-1).tolist())
        self._reads_letters = fields.MATCH_LETTERS in read
        self._reads_words = not read.isdisjoint(
            (fields.QUERY_WORDS, fields.TEXT_WORDS, fields.MATCH, fields.MATCH_LETTERS)
        )
        self._texts.clear()
        self._known_words.clear()
