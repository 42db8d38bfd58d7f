"""From values of fields to slots, compiled: one call a slate.

A *feature* is a field or a cross of up to three; each of its values is one slot, the top 32 bits of a hash of its salt
and its values. A row's slots are sorted and distinct, so nothing depends on the order in which an event holds things.
Slots that derive from position come twice: as shown, and with every row at position 0, for a score that owes nothing to
the place an item was given.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.features import fields
from heft.models.features.fields import MAX_FIELDS, MAX_VALUES
from heft.models.features.history import ITEM, QUERY_ITEM, USER, USER_ITEM, relation_key
from heft.models.hashing import mix

NEW_BELOW = 20.0
"""An item with fewer (decayed) impressions is new."""

_32 = np.uint64(32)
_26 = np.uint32(26)
_FEW = 16
_HEAD = 4  # words before the pairs of an item


@njit(cache=True)
def _emit(
    out: NDArray[np.uint32],
    size: int,
    values: NDArray[np.uint64],
    many: NDArray[np.int64],
    terms: NDArray[np.int64],
    salts: NDArray[np.uint64],
    first: int,
    end: int,
) -> int:
    """Append the slots of the features from ``first`` to ``end``; return the new size."""
    for feature in range(first, end):
        a, b, c = terms[feature, 0], terms[feature, 1], terms[feature, 2]
        if many[a] == 0 or (b >= 0 and many[b] == 0) or (c >= 0 and many[c] == 0):
            continue
        for i in range(many[a]):
            one = mix(salts[feature], values[a, i])
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
def _room(many: NDArray[np.int64], terms: NDArray[np.int64]) -> int:
    """Return the most slots that `_emit` can append for one row."""
    total = 0
    for feature in range(terms.shape[0]):
        product = 1
        for term in range(3):
            if terms[feature, term] >= 0:
                product *= max(many[terms[feature, term]], 1)
        total += product
    return total


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
    for i in range(start + _HEAD, start + _HEAD + 2 * packed[start + 1], 2):
        fields.put(values, many, packed[i], np.uint64(packed[i + 1]))


@njit(cache=True)
def _letters(packed: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    first = start + _HEAD + 2 * packed[start + 1] + packed[start + 2]
    return packed[first : first + packed[start + 3]]


@njit(cache=True)
def fill(
    n: int,
    at_ms: int,
    user: np.uint64,
    query: np.uint64,
    packed: NDArray[np.int64],
    reals: NDArray[np.float64],
    terms: NDArray[np.int64],
    salts: NDArray[np.uint64],
    bounds: NDArray[np.int64],
    needed: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    counts: NDArray[np.float64],
    clicked_ms: NDArray[np.int64],
    half_life_ms: float,
    items: NDArray[np.uint64],
    positions: NDArray[np.uint16],
    new: NDArray[np.bool_],
    indptr: NDArray[np.int32],
) -> NDArray[np.uint32]:
    """Return all slots of a slate; fill ``items`` [n], ``positions`` [n], ``new`` [n] and ``indptr`` [3 n + 1].

    Row r has the slots it has at any position in ``indptr[3r]:indptr[3r+1]``, then those of the position shown, then
    those of position 0.

    Parameters
    ----------
    packed, reals
        The same words, as int64 and as float64: those of the slate itself and of each of its items, as
        `models.features.featurizer` lays them out; positions [n]; three to an act, oldest first (item, kind, time).
    terms, salts, bounds
        The features: up to three fields each, -1 for none [F, 3]; salts [F]; those that depend on the slate alone end
        at ``bounds[0]``, those on the row at ``bounds[1]``, those on position at F.
    needed : bool [MAX_FIELDS]
        Which fields any feature reads.
    """
    zero = np.uint64(0)
    starts = np.empty(n + 2, np.int64)
    number_ends = np.empty(n + 1, np.int64)
    at = many_numbers = 0
    for row in range(-1, n):
        starts[row + 1] = at
        many_numbers += packed[at + 2]
        number_ends[row + 1] = many_numbers
        at += _HEAD + 2 * packed[at + 1] + 2 * packed[at + 2] + packed[at + 3]
    starts[n + 1] = at
    shown_at, acts = packed[at : at + n], packed[at + n :]
    number_fields, numbers = np.empty(many_numbers, np.int64), np.empty(many_numbers)
    for row in range(-1, n):
        at = starts[row + 1]
        count, first = packed[at + 2], number_ends[row + 1] - packed[at + 2]
        for i in range(count):
            number_fields[first + i] = packed[at + _HEAD + 2 * packed[at + 1] + i]
            numbers[first + i] = reals[starts[row + 2] - count + i]
        if row >= 0:
            items[row] = np.uint64(packed[at])
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
    if needed[fields.USER_PAST : fields.USER_PAST + 3].any():
        fields.put_past(
            values, many_of_slate, fields.USER_PAST, relation_key(USER, user, zero), at_ms,
            keys[USER], times[USER], counts[USER], clicked_ms[USER], half_life_ms,
        )  # fmt: skip
    beside = fields.compare(number_fields, numbers, number_ends, touched)
    asks_query_item = needed[fields.QUERY_ITEM_PAST : fields.QUERY_ITEM_PAST + 3].any()
    asks_user_item = needed[fields.USER_ITEM_PAST : fields.USER_ITEM_PAST + 3].any()

    many = np.empty(MAX_FIELDS, np.int64)
    of_slate = np.empty(_room(many_of_slate, terms[: bounds[0]]), np.uint32)
    slate_size = _emit(of_slate, 0, values, many_of_slate, terms, salts, 0, bounds[0])
    out = np.empty(n * (2 * salts.size + 8), np.uint32)
    size = 0
    indptr[0] = 0
    for row in range(n):
        many[:] = many_of_slate
        fields.put(values, many, fields.ITEM_ID, items[row])
        _put_pairs(values, many, packed, starts[row + 1])
        for i in range(number_ends[row], number_ends[row + 1]):
            for place in range(len(fields.OF_NUMBERS)):
                if beside[i, place] >= 0:
                    fields.put(values, many, number_fields[i] + 1 + place, np.uint64(beside[i, place]))
        if many[fields.TEXT_WORDS] > 0:
            fields.put_matches(values, many, of_query, _letters(packed, starts[row + 1]))
        fields.put_acts(values, many, row, items[row], at_ms, acts, last, touched)
        shows = fields.put_past(
            values, many, fields.ITEM_PAST, relation_key(ITEM, items[row], zero), at_ms,
            keys[ITEM], times[ITEM], counts[ITEM], clicked_ms[ITEM], half_life_ms,
        )  # fmt: skip
        new[row] = shows < NEW_BELOW
        if new[row]:
            fields.put(values, many, fields.ITEM_NEW, zero)
        if asks_query_item:
            fields.put_past(
                values, many, fields.QUERY_ITEM_PAST, relation_key(QUERY_ITEM, query, items[row]), at_ms,
                keys[QUERY_ITEM], times[QUERY_ITEM], counts[QUERY_ITEM], clicked_ms[QUERY_ITEM], half_life_ms,
            )  # fmt: skip
        if asks_user_item:
            fields.put_past(
                values, many, fields.USER_ITEM_PAST, relation_key(USER_ITEM, user, items[row]), at_ms,
                keys[USER_ITEM], times[USER_ITEM], counts[USER_ITEM], clicked_ms[USER_ITEM], half_life_ms,
            )  # fmt: skip
        gap = shown_at[row] - shown_at[touched] if touched >= 0 else 0
        fields.put_position(values, many, shown_at[row], gap, touched)

        room = size + slate_size + 2 * _room(many, terms)
        if room > out.size:
            grown = np.empty(2 * room, np.uint32)
            grown[:size] = out[:size]
            out = grown
        start = size
        out[size : size + slate_size] = of_slate[:slate_size]
        size += slate_size
        size = _sort(out, start, _emit(out, size, values, many, terms, salts, bounds[0], bounds[1]))
        indptr[3 * row + 1] = common = size
        size = _sort(out, common, _emit(out, size, values, many, terms, salts, bounds[1], salts.size))
        size = _without(out, common, size, start, common)
        indptr[3 * row + 2] = at_zero = size
        fields.put_position(values, many, 0, 0, -1)
        size = _sort(out, at_zero, _emit(out, size, values, many, terms, salts, bounds[1], salts.size))
        size = _without(out, at_zero, size, start, common)
        indptr[3 * row + 3] = size
    return out[:size].copy()
