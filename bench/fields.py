"""heft's fields in plain Python, as strings: what the peers see of a slate, as defined there (`models.features`).

Written to be fast as Python goes: what belongs to the slate is computed once for all its rows, words are remembered by
text, and only the fields that some feature reads are computed. A *term* is what a declared feature names: a field, or
``context.*`` and the like for every name that appears. The values of each term of a slate and of a row are lists of
strings; crossing them is left to the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import floor, log2
from typing import Any

Terms = dict[str, list[str]]
"""The values of terms that have any."""

Act = tuple[int, str, str]
"""What the visitor did before: when, with which item, and what."""

_WORD = re.compile(r"\w+")
_MAX_WORDS = 24
_MAX_VALUES = 32
_MAX_CACHED = 1 << 16
_OF_THE_PAST = ("rate", "count", "since")
_NEW_BELOW = 20.0
_OF_NUMBERS = (".log", ".rank", ".ratio", ".step")
_FORBIDDEN = str.maketrans(dict.fromkeys(" :|\n\r\t", "_"))


def terms_of(features: Sequence[str]) -> list[str]:
    """Return the terms that features name, each once.

    Examples
    --------
    >>> terms_of(["position", "context.* * item.*", "position * item.*"])
    ['position', 'context.*', 'item.*']
    """
    return list(dict.fromkeys(term for feature in features for term in feature.split(" * ")))


class Clean(dict[str, str]):
    """Text without what has a meaning in VW's format, remembered."""

    def __missing__(self, text: str) -> str:
        if len(self) >= _MAX_CACHED:
            self.clear()
        value = self[text] = text.translate(_FORBIDDEN)
        return value


class Texts(dict[str, tuple[list[str], set[str]]]):
    """The first words of a text and their letter triples, remembered."""

    def __missing__(self, text: str) -> tuple[list[str], set[str]]:
        if len(self) >= _MAX_CACHED:
            self.clear()
        words = list(dict.fromkeys(_WORD.findall(text.lower())))[:_MAX_WORDS]
        triples = {f" {word} "[i : i + 3] for word in words for i in range(len(word))}
        value = self[text] = words, triples
        return value


class History:
    """Clicks, impressions and expected clicks of items, users and pairs of the past; counts halve in a half-life.

    Counts are kept as of the first slate: what comes later counts more, instead of all else less (forward decay).
    """

    def __init__(self, half_life_ms: float = 7 * 86_400_000.0, most: int = 400_000) -> None:
        self.half_life_ms = half_life_ms
        self.most = most
        self._start = 0
        self._past: dict[Any, list[float]] = {}  # key -> clicks, impressions, expected clicks
        self._by_position: dict[int, list[float]] = {}  # position -> clicks, impressions
        self._clicked: dict[Any, int] = {}  # key -> when the slate last clicked was shown

    def closed(self, at: int, user: str, query: str, shown: list[tuple[str, int, int]]) -> None:
        """Count the (item, position, label) of a slate whose labels are known."""
        self._start = self._start or at
        weight = 2.0 ** ((at - self._start) / self.half_life_ms)
        past, by_position = self._past, self._by_position
        for item, position, label in shown:
            clicks, shows = by_position.get(min(position, _LAST_POSITION), _NEVER_SHOWN)
            expected = weight * (clicks + weight) / (shows + 20.0 * weight)
            for key in (item, (0, user), (query, item), (user, item, 0)):
                counts = past.get(key)
                if counts is None:
                    past[key] = [weight * label, weight, expected]
                else:
                    counts[0] += weight * label
                    counts[1] += weight
                    counts[2] += expected
        for _, position, label in shown:
            counts = by_position.setdefault(min(position, _LAST_POSITION), [0.0, 0.0])
            counts[0] += weight * label
            counts[1] += weight
        while len(past) > self.most:
            del past[next(iter(past))]

    def clicked(self, at: int, user: str, query: str, item: str) -> None:
        """Note a click on a slate shown at a time."""
        for key in (item, (0, user), (query, item), (user, item, 0)):
            self._clicked[key] = max(at, self._clicked.get(key, 0))
        while len(self._clicked) > self.most:
            del self._clicked[next(iter(self._clicked))]

    def left(self, at: int) -> float:
        """Return the factor that makes counts what they are at a time."""
        return float(0.5 ** ((at - self._start) / self.half_life_ms)) if self._start else 1.0

    def shows(self, key: Any, left: float) -> float:
        """Return the impressions of a key, as they count at a time."""
        return left * self._past.get(key, _NOTHING)[1]

    def put(self, terms: Terms, names: list[str], key: Any, at: int, left: float) -> None:
        """Put rate, count and time since a click of a key, under the names given; an empty name is not read."""
        rate, count, since = names
        if since and key in self._clicked:
            terms[since] = [str(floor(log2(1.0 + max(at - self._clicked[key], 0) / 1000.0)))]
        past = self._past.get(key)
        if past is None:
            return
        clicks, shows, expected = past
        if rate:
            terms[rate] = [str(floor(3.0 * log2((left * clicks + 1.0) / (left * expected + 1.0))))]
        if count:
            terms[count] = [f"{floor(log2(1.0 + 2.0 * left * clicks))}_{floor(log2(1.0 + left * shows))}"]


_NEVER_SHOWN = [0.0, 0.0]
_NOTHING = [0.0, 0.0, 0.0]
_LAST_POSITION = 127  # from here on positions count as one


class Source:
    """A name of the context or of an item: the terms that read it, and its values as strings, remembered.

    ``terms`` read what is no number, ``beside`` the bucket, rank, ratio and step of a number.
    """

    __slots__ = ("beside", "name", "terms", "values")

    def __init__(self, prefix: str, name: str, reads: Sequence[str]) -> None:
        self.name = name
        self.terms = [term for term in reads if _matches(term, prefix + name)]
        self.beside = [[term for term in reads if _matches(term, prefix + name + suffix)] for suffix in _OF_NUMBERS]
        self.values: dict[Any, str] = {}

    def value(self, value: Any) -> str:
        """Return a value that is no list as a string."""
        # True, 1 and 1.0 are one key of a dictionary.
        key = value if type(value) is str else (value, type(value))
        known = self.values.get(key)
        if known is None:
            if len(self.values) >= _MAX_CACHED:
                self.values.clear()
            if isinstance(value, str):
                text = value.translate(_FORBIDDEN)
            else:
                text = str(value) if isinstance(value, bool) else _bucket(value)
            known = self.values[key] = f"{self.name}={text}"
        return known


class Sources(dict[str, Source]):
    """The names of the context, or of items, met so far."""

    def __init__(self, prefix: str, reads: Sequence[str]) -> None:
        self._prefix, self._reads = prefix, reads

    def __missing__(self, name: str) -> Source:
        source = self[name] = Source(self._prefix, name, self._reads)
        return source

    def put(self, terms: Terms, named: dict[str, Any]) -> None:
        """Put the values of some names."""
        for name, value in named.items():
            source = self[name]
            if value is None:
                continue
            wanted = source.terms
            if type(value) is float or type(value) is int:
                wanted = source.beside[0]
            if not wanted:
                continue
            if type(value) is list:
                values = [source.value(each) for each in dict.fromkeys(value[:_MAX_VALUES])]
            else:
                values = [source.value(value)]
            for term in wanted:
                if term in terms:
                    terms[term] += values
                elif values:
                    terms[term] = values.copy()


class Fields:
    """Computes the terms that a list of features reads.

    Parameters
    ----------
    features
        Features as heft declares them.

    Raises
    ------
    ValueError
        If a term is not known here.
    """

    def __init__(self, features: Sequence[str]) -> None:
        self.history = History()
        reads = terms_of(features)
        self._open = [term for term in reads if term.startswith(("context.", "item."))]
        unknown = [term for term in reads if term not in _KNOWN and term not in self._open]
        if unknown:
            msg = f"bench: the peers have no field {unknown[0]!r}; bench/fields.py computes {', '.join(_KNOWN)}"
            raise ValueError(msg)
        self._reads = set(reads)
        self._context, self._item = (Sources(prefix, self._open) for prefix in ("context.", "item."))
        self._positions: dict[int, tuple[list[str], list[str]]] = {}
        self._item_past, self._user_past, self._query_item, self._user_item = (
            [f"{past}.{what}" * (f"{past}.{what}" in reads) for what in _OF_THE_PAST]
            for past in ("item_past", "user", "query_item", "user_item")
        )
        self._reads_words = not self._reads.isdisjoint({"query.words", "text.words", "match", "match.letters"})
        self._beside = any(term.endswith(_OF_NUMBERS) for term in self._open)
        self._clean = Clean()
        self._texts = Texts()

    def shown(self, slate: dict[str, Any], acts: list[Act]) -> tuple[Terms, list[Terms]]:
        """Return the terms of a slate, and of each of its rows, given what the visitor did strictly before."""
        at, user, items = slate["at_ms"], slate["user_id"], slate["items"]
        query = slate.get("query", "").strip().lower()
        reads, clean = self._reads, self._clean
        whole: Terms = {"slate.size": [_bucket(len(items))], "user_id": [clean[user]]}
        surface = slate.get("surface")
        if surface:
            whole["surface"] = [clean[surface]]
        query_words: list[str] = []
        query_triples: set[str] = set()
        if query:
            whole["query"] = [clean[query]]
            if self._reads_words:
                query_words, query_triples = self._texts[query]
                whole["query.words"] = query_words
        self._context.put(whole, slate.get("context", {}))
        left = self.history.left(at)
        last, kinds, later, touched = _session(whole, at, items, acts)
        if any(self._user_past):
            self.history.put(whole, self._user_past, (0, user), at, left)
        whole = {term: values for term, values in whole.items() if term in reads or "*" in term}

        beside = self._compare(items, touched) if self._beside else None
        places = [item.get("position", place) for place, item in enumerate(items)]
        others = ["other"] if touched >= 0 else ["none"]
        put_past, put_item = self.history.put, self._item.put
        past_item, past_query_item, past_user_item = any(self._item_past), any(self._query_item), any(self._user_item)
        reads_gap, reads_new = "session.gap" in reads, "item_past.new" in reads
        rows = []
        for place, item in enumerate(items):
            item_id = item["item_id"]
            row: Terms = {"item_id": [clean[item_id]]} if "item_id" in reads else {}
            put_item(row, item.get("features", {}))
            if beside is not None:
                row |= beside[place]
            text = item.get("text")
            if text and self._reads_words:
                words, triples = self._texts[text]
                row["text.words"] = words
                if query_words and words:
                    met = sum(word in words for word in query_words)
                    row["match"] = [f"{min(len(query_words), 8)}_{min(met, 8)}"]
                    row["match.letters"] = [str(10 * len(query_triples & triples) // len(query_triples))]
            done = last.get(item_id)
            if done is not None:
                when, _, kind = done
                row["session.kinds"] = [f"{clean[each]}_{_octave(n)}" for each, n in kinds[item_id].items()]
                row["session.since"] = [str(floor(log2(1.0 + (at - when) / 1000.0)))]
                row["session.place"] = [f"{clean[kind]}_{min(later[item_id], 2)}"]
            elif acts:
                row["session.place"] = others
            if past_item:
                put_past(row, self._item_past, item_id, at, left)
            if reads_new and self.history.shows(item_id, left) < _NEW_BELOW:
                row["item_past.new"] = ["new"]
            if past_query_item:
                put_past(row, self._query_item, (query, item_id), at, left)
            if past_user_item:
                put_past(row, self._user_item, (user, item_id, 0), at, left)
            position = places[place]
            known = self._positions.get(position)
            if known is None:
                known = self._positions[position] = [str(position)], [str(_octave(2 * position))]
            row["position"], row["position.log"] = known
            if touched >= 0:
                gap = position - places[touched]
                if reads_gap:
                    row["session.gap"] = [str(gap)]
                row["session.gap.log"] = [f"{_octave(2 * abs(gap))}{'-' if gap < 0 else ''}"]
            rows.append(row)
        return whole, rows

    def _compare(self, items: list[dict[str, Any]], touched: int) -> list[Terms]:
        """Set each number beside the slate's others of its name: rank, ratio to the median, step from the touched."""
        numbers: dict[str, list[tuple[float, int]]] = {}
        for place, item in enumerate(items):
            for name, value in item.get("features", {}).items():
                if type(value) is float or type(value) is int:
                    numbers.setdefault(name, []).append((value, place))
        beside: list[Terms] = [{} for _ in items]
        for name, pairs in numbers.items():
            _, ranks, ratios, steps = self._item[name].beside
            pairs.sort()
            many = len(pairs)
            median = pairs[many // 2][0]
            of_touched = next((value for value, place in pairs if place == touched), 0.0) if steps else 0.0
            smaller, before = 0, pairs[0][0]
            for i, (value, place) in enumerate(pairs):
                if value > before:
                    smaller, before = i, value
                out = beside[place]
                for term in ranks:
                    out.setdefault(term, []).append(f"{name}={1 + 9 * smaller // many if smaller else 0}")
                if value > 0:
                    if ratios and median > 0:
                        for term in ratios:
                            out.setdefault(term, []).append(f"{name}={_bucket(value / median)}")
                    if of_touched > 0:
                        for term in steps:
                            out.setdefault(term, []).append(f"{name}={_bucket(value / of_touched)}")
        return beside


_KNOWN = (
    "surface", "query", "query.words", "user_id", "slate.size", "session.size", "session.last", "session.met",
    "session.ago", "item_id", "text.words", "match", "match.letters", "position", "position.log", "session.gap",
    "session.gap.log", "session.kinds", "session.place", "session.since",
    *(f"{past}.{what}" for past in ("user", "item_past", "query_item", "user_item") for what in _OF_THE_PAST),
    "item_past.new",
)  # fmt: skip


def _session(
    whole: Terms, at: int, items: list[dict[str, Any]], acts: list[Act]
) -> tuple[dict[str, Act], dict[str, dict[str, int]], dict[str, int], int]:
    """Put the slate's fields of the session.

    Return last act and counts by kind of each item, how many items of the slate were touched later, the row touched.
    """
    whole["session.size"] = [str(_octave(len(acts)))]
    if not acts:
        return {}, {}, {}, -1
    last: dict[str, Act] = {}
    kinds: dict[str, dict[str, int]] = {}
    order: dict[str, int] = {}
    for number, act in enumerate(acts):
        _, item_id, kind = act
        last[item_id] = act
        order[item_id] = number
        of_item = kinds.setdefault(item_id, {})
        of_item[kind] = of_item.get(kind, 0) + 1
    here = [(order[item["item_id"]], place) for place, item in enumerate(items) if item["item_id"] in order]
    here.sort(reverse=True)
    later = {items[place]["item_id"]: rank for rank, (_, place) in enumerate(here)}
    when, last_item, kind = acts[-1]
    whole["session.last"] = [f"{kind.translate(_FORBIDDEN)}_{last_item in later}"]
    whole["session.met"] = [str(min(len(here), 5))]
    whole["session.ago"] = [str(floor(log2(1.0 + (at - when) / 1000.0)))]
    return last, kinds, later, here[0][1] if here else -1


def _matches(term: str, name: str) -> bool:
    """Tell whether a term means a name of the context or of an item; a name means its numbers too."""
    if "*" not in term:
        return name in (term, term + _OF_NUMBERS[0])
    prefix, _, suffix = term.partition("*")
    return name.startswith(prefix) and (name.endswith(suffix) if suffix else not name.endswith(_OF_NUMBERS))


def _bucket(value: float) -> str:
    """Number a value on a logarithmic scale, four buckets to the octave."""
    if value == 0:
        return "0"
    bucket = str(floor(4.0 * log2(abs(value))))
    return bucket + "p" if value > 0 else bucket + "n"


def _octave(count: int) -> int:
    """Number a count by its octave."""
    return (1 + count).bit_length() - 1
