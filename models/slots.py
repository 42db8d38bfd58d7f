"""The compiled half of the features: values of fields in, slots out, one call a slate.

A *field* names where values come from (`models.features`); a *feature* is a field, or a cross of up to three. Each value
of a feature is one slot, the top 32 bits of a hash of its salt and values. A row's slots are sorted and distinct, so
nothing depends on the order of what an event holds. Slots that derive from position come twice: as shown, and with
every row at the same position, for a score that owes nothing to the place an item was given.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.hashing import mix
from models.history import (
    CLICKS,
    EXPECTED,
    ITEM,
    QUERY_ITEM,
    SHOWS,
    USER,
    USER_ITEM,
    decay,
    find,
    relation_key,
)

FIXED = (
    "surface", "query", "query.words", "user_id", "session.size", "session.last", "user.rate", "user.count", "user.since",
    "item_id", "text.words", "match", "match.letters", "position", "session.gap", "session.kinds", "session.place", "session.since",
    "item_past.rate", "item_past.count", "item_past.since",
    "query_item.rate", "query_item.count", "query_item.since",
    "user_item.rate", "user_item.count", "user_item.since",
)  # fmt: skip
"""Fields that every log can have; ``context.NAME``, ``item.NAME`` and ``item.NAME.rank`` join them as they appear."""

(
    SURFACE, QUERY, QUERY_WORDS, USER_ID, SESSION_SIZE, SESSION_LAST, USER_RATE, USER_COUNT, USER_SINCE,
    ITEM_ID, TEXT_WORDS, MATCH, MATCH_LETTERS, POSITION, SESSION_GAP, SESSION_KINDS, SESSION_PLACE, SESSION_SINCE,
    ITEM_RATE, ITEM_COUNT, ITEM_SINCE,
    QUERY_ITEM_RATE, QUERY_ITEM_COUNT, QUERY_ITEM_SINCE,
    USER_ITEM_RATE, USER_ITEM_COUNT, USER_ITEM_SINCE,
) = range(len(FIXED))  # fmt: skip

MAX_FIELDS = 96
MAX_VALUES = 32
"""Values of one field in one row; further ones are left out."""

OF_SLATE, OF_ROW, OF_POSITION = 0, 1, 2
"""What a feature depends on: the slate alone, the row, or the row's position."""

_NEW_BELOW = 20.0
_GAPS = 1 << 20
_BY_OCTAVE = 4.0
_RANKS = 10


@njit(cache=True, inline="always")
def _put(values: NDArray[np.uint64], many: NDArray[np.int64], field: int, value: np.uint64) -> None:
    if many[field] < MAX_VALUES:
        values[field, many[field]] = value
        many[field] += 1


@njit(cache=True)
def log_bucket(x: float) -> int:
    """Number a value on a logarithmic scale, four buckets to the octave, signs apart, zero alone."""
    if x == 0.0:
        return 0
    bucket = 1000 + int(np.floor(_BY_OCTAVE * np.log2(abs(x))))
    bucket = max(bucket, 1)
    return bucket if x > 0 else -bucket


@njit(cache=True, inline="always")
def _octave(x: float) -> int:
    return int(np.floor(np.log2(1.0 + x)))


@njit(cache=True)
def _emit(
    out: NDArray[np.uint32],
    size: int,
    values: NDArray[np.uint64],
    many: NDArray[np.int64],
    terms: NDArray[np.int64],
    salts: NDArray[np.uint64],
    kinds: NDArray[np.int64],
    kind: int,
) -> int:
    """Append the slots of all features of one kind."""
    shift = np.uint64(32)
    for feature in range(salts.size):
        if kinds[feature] != kind:
            continue
        a, b, c = terms[feature, 0], terms[feature, 1], terms[feature, 2]
        if many[a] == 0 or (b >= 0 and many[b] == 0) or (c >= 0 and many[c] == 0):
            continue
        for i in range(many[a]):
            first = mix(salts[feature], values[a, i])
            if b < 0:
                out[size] = np.uint32(first >> shift)
                size += 1
                continue
            for j in range(many[b]):
                second = mix(first, values[b, j])
                if c < 0:
                    out[size] = np.uint32(second >> shift)
                    size += 1
                    continue
                for k in range(many[c]):
                    out[size] = np.uint32(mix(second, values[c, k]) >> shift)
                    size += 1
    return size


@njit(cache=True)
def _sort(out: NDArray[np.uint32], start: int, end: int) -> int:
    """Sort ``out[start:end]`` and drop repeats; return the new end."""
    for i in range(start + 1, end):
        slot = out[i]
        j = i - 1
        while j >= start and out[j] > slot:
            out[j + 1] = out[j]
            j -= 1
        out[j + 1] = slot
    kept = start
    for i in range(start, end):
        if kept == start or out[kept - 1] != out[i]:
            out[kept] = out[i]
            kept += 1
    return kept


@njit(cache=True)
def _without(out: NDArray[np.uint32], start: int, end: int, low: int, high: int) -> int:
    """Drop from the sorted ``out[start:end]`` what the sorted ``out[low:high]`` has; return the new end."""
    kept, k = start, low
    for i in range(start, end):
        while k < high and out[k] < out[i]:
            k += 1
        if k == high or out[k] != out[i]:
            out[kept] = out[i]
            kept += 1
    return kept


@njit(cache=True)
def _room(many: NDArray[np.int64], terms: NDArray[np.int64]) -> int:
    total = 0
    for feature in range(terms.shape[0]):
        product = 1
        for term in range(3):
            if terms[feature, term] >= 0:
                product *= max(many[terms[feature, term]], 1)
        total += product
    return total


@njit(cache=True)
def _put_history(
    values: NDArray[np.uint64],
    many: NDArray[np.int64],
    field: int,
    key: np.uint64,
    at_ms: int,
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    counts: NDArray[np.float64],
    clicked_ms: NDArray[np.int64],
    half_life_ms: float,
) -> float:
    """Fill the three fields of a relation: click rate over expectation, counts, time since a click; return the shows."""
    place = find(keys, key)
    if place < 0:
        return 0.0
    left = decay(at_ms - times[place], half_life_ms)
    clicks = counts[place, CLICKS] * left
    shows = counts[place, SHOWS] * left
    expected = counts[place, EXPECTED] * left
    if shows > 0.0:
        lift = int(np.floor(3.0 * np.log2((clicks + 1.0) / (expected + 1.0))))
        _put(values, many, field, np.uint64(1000 + lift))
        _put(values, many, field + 1, np.uint64(_octave(2.0 * clicks) * 64 + _octave(shows)))
    if clicked_ms[place] > 0:
        since = max(at_ms - clicked_ms[place], 0) / 1000.0
        _put(values, many, field + 2, np.uint64(_octave(since)))
    return shows


@njit(cache=True)
def fill(
    n: int,
    at_ms: int,
    user: np.uint64,
    query: np.uint64,
    items: NDArray[np.uint64],
    positions: NDArray[np.int64],
    ends: NDArray[np.int64],
    pairs: NDArray[np.int64],
    number_keys: NDArray[np.int64],
    numbers: NDArray[np.float64],
    acts: NDArray[np.int64],
    letters: NDArray[np.int64],
    letter_ends: NDArray[np.int64],
    terms: NDArray[np.int64],
    salts: NDArray[np.uint64],
    kinds: NDArray[np.int64],
    needed: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    counts: NDArray[np.float64],
    clicked_ms: NDArray[np.int64],
    half_life_ms: float,
    new: NDArray[np.bool_],
    indptr: NDArray[np.int32],
) -> NDArray[np.uint32]:
    """Return all slots of a slate; fill ``indptr`` [3 n + 1] and ``new`` [n].

    Row r has its common slots in ``indptr[3r]:indptr[3r+1]``, then those from the position shown, then those from the
    fixed position.

    Parameters
    ----------
    ends : int64 [n + 1]
        ``pairs[:ends[0]]`` belong to the slate, ``pairs[ends[r]:ends[r+1]]`` to row r.
    pairs : int64
        Field and value, alternating.
    number_keys, numbers
        Row (-1: the slate), field and field of the rank (-1: none), three to a number; and the numbers.
    acts : int64
        Item, kind and time of what the visitor did, three to an act, oldest first.
    letters, letter_ends : int64
        Hashes of letter triples, sorted: first those of the query, then those of each row's text; their ends [n + 1].
    terms, salts, kinds
        The features: up to three fields each (-1: none) [F, 3], a salt [F], what they depend on [F].
    needed : bool [MAX_FIELDS]
        Which fields any feature reads.
    """
    zero = np.uint64(0)
    acted = acts.size // 3
    slate_values = np.empty((MAX_FIELDS, MAX_VALUES), np.uint64)
    slate_many = np.zeros(MAX_FIELDS, np.int64)
    for i in range(0, ends[0], 2):
        _put(slate_values, slate_many, pairs[i], np.uint64(pairs[i + 1]))
    for i in range(numbers.size):
        if number_keys[3 * i] < 0:
            _put(slate_values, slate_many, number_keys[3 * i + 1], np.uint64(log_bucket(numbers[i])))
    _put(slate_values, slate_many, USER_ID, user)
    _put(slate_values, slate_many, SESSION_SIZE, np.uint64(_octave(float(acted))))
    if acted > 0:
        _put(slate_values, slate_many, SESSION_LAST, np.uint64(acts[3 * acted - 2]))
    if needed[USER_RATE] or needed[USER_COUNT] or needed[USER_SINCE]:
        _put_history(
            slate_values, slate_many, USER_RATE, relation_key(USER, user, zero), at_ms,
            keys[USER], times[USER], counts[USER], clicked_ms[USER], half_life_ms,
        )  # fmt: skip

    # The rank of each number among the slate's numbers of its field: how many are smaller, on a scale of ten.
    ranks = np.full(numbers.size, -1, np.int64)
    for i in range(numbers.size):
        if ranks[i] >= 0 or number_keys[3 * i] < 0 or number_keys[3 * i + 2] < 0:
            continue
        field = number_keys[3 * i + 1]
        same = np.empty(numbers.size - i, np.int64)
        size = 0
        for j in range(i, numbers.size):
            if number_keys[3 * j] >= 0 and number_keys[3 * j + 1] == field:
                same[size] = j
                size += 1
        ordered = np.sort(numbers[same[:size]])
        for j in same[:size]:
            smaller = np.searchsorted(ordered, numbers[j])
            ranks[j] = 0 if smaller == 0 else 1 + (_RANKS - 1) * smaller // size

    # The last touched item that is in the list, and where.
    touched = -1
    place_of_touched = 0
    for act in range(acted - 1, -1, -1):
        for row in range(n):
            if items[row] == np.uint64(acts[3 * act]):
                touched = row
                place_of_touched = positions[row]
                break
        if touched >= 0:
            break

    values = np.empty((MAX_FIELDS, MAX_VALUES), np.uint64)
    many = np.empty(MAX_FIELDS, np.int64)
    out = np.empty(n * (3 * salts.size + 8), np.uint32)
    slate_slots = np.empty(_room(slate_many, terms), np.uint32)
    slate_size = _emit(slate_slots, 0, slate_values, slate_many, terms, salts, kinds, OF_SLATE)
    for field in range(MAX_FIELDS):
        for i in range(slate_many[field]):
            values[field, i] = slate_values[field, i]
    number = 0
    while number < numbers.size and number_keys[3 * number] < 0:
        number += 1
    seen_kinds = np.empty(MAX_VALUES, np.int64)
    kind_counts = np.empty(MAX_VALUES, np.int64)
    size = 0
    indptr[0] = 0
    for row in range(n):
        many[:] = slate_many
        _put(values, many, ITEM_ID, items[row])
        for i in range(ends[row], ends[row + 1], 2):
            _put(values, many, pairs[i], np.uint64(pairs[i + 1]))
        while number < numbers.size and number_keys[3 * number] == row:
            _put(values, many, number_keys[3 * number + 1], np.uint64(log_bucket(numbers[number])))
            if number_keys[3 * number + 2] >= 0:
                _put(values, many, number_keys[3 * number + 2], np.uint64(ranks[number]))
            number += 1
        if needed[MATCH] and many[QUERY_WORDS] > 0 and many[TEXT_WORDS] > 0:
            met = 0
            for i in range(many[QUERY_WORDS]):
                for j in range(many[TEXT_WORDS]):
                    if values[QUERY_WORDS, i] == values[TEXT_WORDS, j]:
                        met += 1
                        break
            _put(values, many, MATCH, np.uint64(min(many[QUERY_WORDS], 8) * 16 + min(met, 8)))
        if needed[MATCH_LETTERS] and letter_ends[0] > 0 and letter_ends[row + 1] > letter_ends[row]:
            met = 0
            j = letter_ends[row]
            for i in range(letter_ends[0]):
                while j < letter_ends[row + 1] and letters[j] < letters[i]:
                    j += 1
                if j < letter_ends[row + 1] and letters[j] == letters[i]:
                    met += 1
            _put(values, many, MATCH_LETTERS, np.uint64(10 * met // letter_ends[0]))

        # What the session did with this very item.
        distinct = 0
        last = -1
        for act in range(acted):
            if np.uint64(acts[3 * act]) == items[row]:
                last = act
                kind = acts[3 * act + 1]
                for i in range(distinct):
                    if seen_kinds[i] == kind:
                        kind_counts[i] += 1
                        break
                else:
                    if distinct < MAX_VALUES:
                        seen_kinds[distinct] = kind
                        kind_counts[distinct] = 1
                        distinct += 1
        for i in range(distinct):
            _put(values, many, SESSION_KINDS, mix(np.uint64(seen_kinds[i]), np.uint64(_octave(float(kind_counts[i])))))
        if last >= 0:
            _put(values, many, SESSION_PLACE, mix(np.uint64(acts[3 * last + 1]), np.uint64(row == touched)))
            _put(values, many, SESSION_SINCE, np.uint64(_octave((at_ms - acts[3 * last + 2]) / 1000.0)))
        elif touched >= 0:
            _put(values, many, SESSION_PLACE, np.uint64(1))
        elif acted > 0:
            _put(values, many, SESSION_PLACE, np.uint64(2))

        shows = 0.0
        shows = _put_history(
            values, many, ITEM_RATE, relation_key(ITEM, items[row], zero), at_ms,
            keys[ITEM], times[ITEM], counts[ITEM], clicked_ms[ITEM], half_life_ms,
        )  # fmt: skip
        new[row] = shows < _NEW_BELOW
        if needed[QUERY_ITEM_RATE] or needed[QUERY_ITEM_COUNT] or needed[QUERY_ITEM_SINCE]:
            _put_history(
                values, many, QUERY_ITEM_RATE, relation_key(QUERY_ITEM, query, items[row]), at_ms,
                keys[QUERY_ITEM], times[QUERY_ITEM], counts[QUERY_ITEM], clicked_ms[QUERY_ITEM], half_life_ms,
            )  # fmt: skip
        if needed[USER_ITEM_RATE] or needed[USER_ITEM_COUNT] or needed[USER_ITEM_SINCE]:
            _put_history(
                values, many, USER_ITEM_RATE, relation_key(USER_ITEM, user, items[row]), at_ms,
                keys[USER_ITEM], times[USER_ITEM], counts[USER_ITEM], clicked_ms[USER_ITEM], half_life_ms,
            )  # fmt: skip
        _put(values, many, POSITION, np.uint64(positions[row]))
        if touched >= 0:
            _put(values, many, SESSION_GAP, np.uint64(_GAPS + positions[row] - place_of_touched))

        room = size + slate_size + 2 * _room(many, terms)
        if room > out.size:
            grown = np.empty(2 * room, np.uint32)
            grown[:size] = out[:size]
            out = grown
        start = size
        for i in range(slate_size):
            out[size] = slate_slots[i]
            size += 1
        size = _sort(out, start, _emit(out, size, values, many, terms, salts, kinds, OF_ROW))
        indptr[3 * row + 1] = common = size
        size = _sort(out, common, _emit(out, size, values, many, terms, salts, kinds, OF_POSITION))
        size = _without(out, common, size, start, common)
        indptr[3 * row + 2] = served = size
        values[POSITION, 0] = zero
        many[SESSION_GAP] = 0
        size = _sort(out, served, _emit(out, size, values, many, terms, salts, kinds, OF_POSITION))
        size = _without(out, served, size, start, common)
        indptr[3 * row + 3] = size
    return out[:size].copy()
