"""From the values of fields to slots: one compiled call for each slate.

A *feature* is a field, or a cross of two or three. Each of its values (or combinations of values) is one slot: the top
32 bits of a hash of the feature's salt and the values. A row's slots are sorted and distinct, so nothing depends on the
order in which an event lists things. Slots that derive from position come twice: once for the position shown, and once
with every row at position 0, for a score that does not depend on where an item was placed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.features import fields
from heft.models.features.config import POSITION, ROW
from heft.models.features.fields import MAX_FIELDS, MAX_VALUES
from heft.models.features.history import ITEM, QUERY_ITEM, USER, USER_ITEM, relation_key
from heft.models.hashing import mix

NEW_BELOW = 20.0
"""An item with fewer (decayed) impressions is new."""

_32 = np.uint64(32)
_26 = np.uint32(26)
_FEW = 16
_BEFORE_SLATE = 3  # words before those of the slate itself
_HEAD = 4  # words before the pairs of an item


FEATURE = np.dtype(
    [
        ("kind", np.int64),  # what it depends on, as `models.features.config` numbers it; features come in this order
        ("terms", np.int64, 3),  # the fields that are crossed, -1 for none
        ("salt", np.uint64),  # tells the slots of one feature from those of another
    ]
)
"""A feature as compiled functions read it."""


@njit(cache=True)
def _emit(
    out: NDArray[np.uint32],
    size: int,
    values: NDArray[np.uint64],
    many: NDArray[np.int64],
    features: NDArray[Any],
) -> int:
    """Append the slots of some features; return the new size."""
    for feature in features:
        a, b, c = feature.terms[0], feature.terms[1], feature.terms[2]
        if many[a] == 0 or (b >= 0 and many[b] == 0) or (c >= 0 and many[c] == 0):
            continue
        for i in range(many[a]):
            one = mix(feature.salt, values[a, i])
            if b < 0:
                out[size] = np.uint32(one >> _32)
                size += 1
                continue
            for j in range(many[b]):
                two = mix(one, values[b, j])
                if c < 0:
                    out[size] = np.uint32(two >> _32)
                    size += 1
                    continue
                for k in range(many[c]):
                    out[size] = np.uint32(mix(two, values[c, k]) >> _32)
                    size += 1
    return size


@njit(cache=True)
def _room(many: NDArray[np.int64], features: NDArray[Any]) -> int:
    """Return the most slots that `_emit` can append for one row."""
    total = 0
    for feature in features:
        product = 1
        for term in feature.terms:
            if term >= 0:
                product *= max(many[term], 1)
        total += product
    return total


@njit(cache=True)
def _reads(features: NDArray[Any], first: int) -> bool:
    """Return whether any feature reads the past of a relation, whose three fields begin at ``first``."""
    for feature in features:
        for term in feature.terms:
            if first <= term < first + 3:
                return True
    return False


@njit(cache=True)
def _sort(out: NDArray[np.uint32], start: int, end: int) -> int:
    """Sort ``out[start:end]`` and drop repeats; return the new end."""
    if end - start > _FEW:
        # Slots are hashes, so their top bits spread them evenly: nearly sorted, they leave little to insertion.
        heads = np.zeros(65, np.int64)
        unsorted = out[start:end].copy()
        for slot in unsorted:
            heads[(slot >> _26) + np.uint32(1)] += 1
        for head in range(64):
            heads[head + 1] += heads[head]
        for slot in unsorted:
            out[start + heads[slot >> _26]] = slot
            heads[slot >> _26] += 1
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
def _put_pairs(values: NDArray[np.uint64], many: NDArray[np.int64], packed: NDArray[np.int64], start: int) -> None:
    """Put the pairs of field and value of the slate, or of an item, whose words begin at ``start``."""
    for i in range(start + _HEAD, start + _HEAD + 2 * packed[start + 1], 2):
        fields.put(values, many, packed[i], np.uint64(packed[i + 1]))


@njit(cache=True)
def _letters(packed: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Return the sorted hashes of the letter triples of the slate, or of an item, whose words begin at ``start``."""
    first = start + _HEAD + 2 * packed[start + 1] + packed[start + 2]
    return packed[first : first + packed[start + 3]]


@njit(cache=True)
def _starts(packed: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return where the words of the slate, of each of its n items, and what follows them begin [n + 2]."""
    starts = np.empty(n + 2, np.int64)
    at = 0
    for entry in range(n + 1):
        starts[entry] = at
        at += _HEAD + 2 * packed[at + 1] + 2 * packed[at + 2] + packed[at + 3]
    starts[n + 1] = at
    return starts


@njit(cache=True)
def _numbers(
    packed: NDArray[np.int64], reals: NDArray[np.float64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the field of each number, the numbers, and how many come up to the slate and up to each item [n + 1]."""
    ends = np.empty(starts.size - 1, np.int64)
    many = 0
    for entry in range(ends.size):
        many += packed[starts[entry] + 2]
        ends[entry] = many
    number_fields, numbers = np.empty(many, np.int64), np.empty(many)
    for entry in range(ends.size):
        at = starts[entry]
        count, first = packed[at + 2], ends[entry] - packed[at + 2]
        for i in range(count):
            number_fields[first + i] = packed[at + _HEAD + 2 * packed[at + 1] + i]
            numbers[first + i] = reals[starts[entry + 1] - count + i]
    return number_fields, numbers, ends


@njit(cache=True)
def fill(
    packed: NDArray[np.int64],
    reals: NDArray[np.float64],
    features: NDArray[Any],
    keys: NDArray[np.uint64],
    entries: NDArray[Any],
    totals: NDArray[Any],
    items: NDArray[np.uint64],
    positions: NDArray[np.uint16],
    new: NDArray[np.bool_],
) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Return ``indptr`` [3 n + 1] and all slots of a slate of n rows; fill ``items``, ``positions`` and ``new`` [n].

    Row r has the slots it has at any position in ``indptr[3r]:indptr[3r+1]``, then those of the position shown, then
    those of position 0.

    Parameters
    ----------
    packed, reals
        The same words, as int64 and as float64: when the slate was shown, in milliseconds since the epoch; the hashes
        of user and query; the words of the slate itself and of each of its items, as `models.features.featurizer` lays
        them out; positions [n]; three to an act, oldest first (item, kind, time).
    features
        What to make slots of, `FEATURE` [F].
    keys, entries, totals
        The history, as in `models.features.history.History`; read and never changed.
    items, positions, new
        Fields of `models.features.vectors.Vectors`, named as there.
    """
    zero = np.uint64(0)
    n = items.size
    at_ms, user, query = packed[0], np.uint64(packed[1]), np.uint64(packed[2])
    packed, reals = packed[_BEFORE_SLATE:], reals[_BEFORE_SLATE:]
    of_slate_end = np.searchsorted(features["kind"], ROW)
    of_row_end = np.searchsorted(features["kind"], POSITION)
    of_slates, of_rows, of_positions = features[:of_slate_end], features[of_slate_end:of_row_end], features[of_row_end:]
    starts = _starts(packed, n)
    number_fields, numbers, number_ends = _numbers(packed, reals, starts)
    shown_at, acts = packed[starts[n + 1] : starts[n + 1] + n], packed[starts[n + 1] + n :]
    for row in range(n):
        items[row] = np.uint64(packed[starts[row + 1]])
        positions[row] = np.uint16(min(shown_at[row], 65_535))

    values = np.empty((MAX_FIELDS, MAX_VALUES), np.uint64)
    many_of_slate = np.zeros(MAX_FIELDS, np.int64)
    _put_pairs(values, many_of_slate, packed, 0)
    of_query = _letters(packed, 0)
    for i in range(number_ends[0]):
        fields.put(values, many_of_slate, number_fields[i] + 1, np.uint64(fields.log_bucket(numbers[i])))
    fields.put(values, many_of_slate, fields.USER_ID, user)
    fields.put(values, many_of_slate, fields.SLATE_SIZE, np.uint64(fields.log_bucket(float(n))))
    last = fields.last_acts(items, acts)
    touched = fields.put_session(values, many_of_slate, at_ms, acts, last)
    if _reads(features, fields.USER_PAST):
        key = relation_key(USER, user, zero)
        fields.put_past(values, many_of_slate, fields.USER_PAST, keys[USER], entries[USER], totals, key, at_ms)
    beside = fields.compare(number_fields, numbers, number_ends, touched)
    reads_query_item = _reads(features, fields.QUERY_ITEM_PAST)
    reads_user_item = _reads(features, fields.USER_ITEM_PAST)

    many = np.empty(MAX_FIELDS, np.int64)
    of_slate = np.empty(_room(many_of_slate, of_slates), np.uint32)
    slate_size = _emit(of_slate, 0, values, many_of_slate, of_slates)
    out = np.empty(n * (2 * features.size + 8), np.uint32)
    size = 0
    indptr = np.empty(3 * n + 1, np.int32)
    indptr[0] = 0
    for row in range(n):
        item = items[row]
        many[:] = many_of_slate
        fields.put(values, many, fields.ITEM_ID, item)
        _put_pairs(values, many, packed, starts[row + 1])
        for i in range(number_ends[row], number_ends[row + 1]):
            for place in range(len(fields.OF_NUMBERS)):
                if beside[i, place] >= 0:
                    fields.put(values, many, number_fields[i] + 1 + place, np.uint64(beside[i, place]))
        if many[fields.TEXT_WORDS] > 0:
            fields.put_matches(values, many, of_query, _letters(packed, starts[row + 1]))
        fields.put_acts(values, many, row, item, at_ms, acts, last, touched)
        key = relation_key(ITEM, item, zero)
        shows = fields.put_past(values, many, fields.ITEM_PAST, keys[ITEM], entries[ITEM], totals, key, at_ms)
        new[row] = shows < NEW_BELOW
        if new[row]:
            fields.put(values, many, fields.ITEM_NEW, zero)
        if reads_query_item:
            key = relation_key(QUERY_ITEM, query, item)
            past = keys[QUERY_ITEM], entries[QUERY_ITEM]
            fields.put_past(values, many, fields.QUERY_ITEM_PAST, past[0], past[1], totals, key, at_ms)
        if reads_user_item:
            key = relation_key(USER_ITEM, user, item)
            past = keys[USER_ITEM], entries[USER_ITEM]
            fields.put_past(values, many, fields.USER_ITEM_PAST, past[0], past[1], totals, key, at_ms)
        gap = shown_at[row] - shown_at[touched] if touched >= 0 else 0
        fields.put_position(values, many, shown_at[row], gap, touched)

        room = size + slate_size + 2 * _room(many, features)
        if room > out.size:
            grown = np.empty(2 * room, np.uint32)
            grown[:size] = out[:size]
            out = grown
        start = size
        out[size : size + slate_size] = of_slate[:slate_size]
        size += slate_size
        size = _sort(out, start, _emit(out, size, values, many, of_rows))
        indptr[3 * row + 1] = common = size
        size = _sort(out, common, _emit(out, size, values, many, of_positions))
        size = _without(out, common, size, start, common)
        indptr[3 * row + 2] = at_zero = size
        fields.put_position(values, many, 0, 0, -1)
        size = _sort(out, at_zero, _emit(out, size, values, many, of_positions))
        size = _without(out, at_zero, size, start, common)
        indptr[3 * row + 3] = size
    return indptr, out[:size].copy()
