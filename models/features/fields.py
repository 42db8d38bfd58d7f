"""Fields: the named sources of values from which features are made (`models.features.config` says what each one is).

All is compiled. Each function puts the values of some fields, of a slate or of one row of it, into ``values``
[MAX_FIELDS, MAX_VALUES]; ``many`` [MAX_FIELDS] says how many values of a field there are. A value is a hash or the
small number of a bucket. Equal bucket numbers of two fields are no clash: each feature hashes with a salt of its own.
"""

from __future__ import annotations

from math import floor, log2
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.features.history import decay, find
from heft.models.hashing import mix

FIXED = (
    "surface", "query", "query.words", "user_id", "slate.size",
    "session.size", "session.last", "session.met", "session.ago",
    "user.rate", "user.count", "user.since",
    "item_id", "text.words", "match", "match.letters",
    "position", "position.log", "session.gap", "session.gap.log",
    "session.kinds", "session.place", "session.since",
    "item_past.rate", "item_past.count", "item_past.since", "item_past.new",
    "query_item.rate", "query_item.count", "query_item.since",
    "user_item.rate", "user_item.count", "user_item.since",
)  # fmt: skip
"""Fields that every log can have; ``context.NAME``, ``item.NAME`` and what derives from it join them as they appear."""

(
    SURFACE, QUERY, QUERY_WORDS, USER_ID, SLATE_SIZE,
    SESSION_SIZE, SESSION_LAST, SESSION_MET, SESSION_AGO,
    USER_PAST, _, _,
    ITEM_ID, TEXT_WORDS, MATCH, MATCH_LETTERS,
    POSITION, POSITION_LOG, SESSION_GAP, SESSION_GAP_LOG,
    SESSION_KINDS, SESSION_PLACE, SESSION_SINCE,
    ITEM_PAST, _, _, ITEM_NEW,
    QUERY_ITEM_PAST, _, _,
    USER_ITEM_PAST, _, _,
) = range(len(FIXED))  # fmt: skip

OF_NUMBERS = (".log", ".rank", ".ratio", ".step")
"""What a number gives: fields in this order, right after that of its name; one of the slate only the first."""

MAX_FIELDS = 128
MAX_VALUES = 32
"""Values of one field in one row; further ones are left out."""

_GAP_ZERO = 1 << 20
_RANKS = 10
_MOST_MET = 5
_LIFT_ZERO = 1_000


@njit(cache=True)
def put(values: NDArray[np.uint64], many: NDArray[np.int64], field: int, value: np.uint64) -> None:
    """Add a value to a field."""
    if many[field] < MAX_VALUES:
        values[field, many[field]] = value
        many[field] += 1


@njit(cache=True)
def log_bucket(x: float) -> int:
    """Number a value on a logarithmic scale, four buckets to the octave; signs apart, zero alone."""
    if x == 0.0:
        return 0
    bucket = max(5_000 + floor(4.0 * log2(abs(x))), 1)
    return bucket if x > 0 else 10_000 + bucket


@njit(cache=True)
def octave(x: float) -> int:
    """Number a count or a time, at least 0, by its octave: 0, 1-2, 3-6, 7-14, ..."""
    return floor(log2(1.0 + x))


@njit(cache=True)
def put_past(
    values: NDArray[np.uint64],
    many: NDArray[np.int64],
    field: int,
    keys: NDArray[np.uint64],
    entries: NDArray[Any],
    totals: NDArray[Any],
    key: np.uint64,
    at_ms: int,
) -> float:
    """Put the three fields of a key of one relation: rate, count, since; return its (faded) impressions."""
    place = find(keys, key)
    if place < 0:
        return 0.0
    entry = entries[place]
    left = decay(at_ms - entry.touched_ms, totals[0].half_life_ms)
    clicks, shows, expected = entry.clicks * left, float(entry.shows * left), entry.expected * left
    if shows > 0.0:
        # Clicks over what the positions promised, shrunk by one of each; three buckets to the octave.
        lift = floor(3.0 * log2((clicks + 1.0) / (expected + 1.0)))
        put(values, many, field, np.uint64(_LIFT_ZERO + lift))
        put(values, many, field + 1, np.uint64(octave(2.0 * clicks) * 64 + octave(shows)))
    if entry.clicked_ms > 0:
        put(values, many, field + 2, np.uint64(octave(max(at_ms - entry.clicked_ms, 0) / 1000.0)))
    return shows


@njit(cache=True)
def last_acts(items: NDArray[np.uint64], acts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row the visitor's last act on its item [n], or -1; ``acts`` as in `slots.fill`."""
    last = np.full(items.size, -1, np.int64)
    for row in range(items.size):
        for act in range(acts.size // 3 - 1, -1, -1):
            if np.uint64(acts[3 * act]) == items[row]:
                last[row] = act
                break
    return last


@njit(cache=True)
def put_session(
    values: NDArray[np.uint64], many: NDArray[np.int64], at_ms: int, acts: NDArray[np.int64], last: NDArray[np.int64]
) -> int:
    """Put the slate's fields of the session; return the row touched last, or -1."""
    acted = acts.size // 3
    touched = -1
    met = 0
    for row in range(last.size):
        if last[row] >= 0:
            met += 1
            if touched < 0 or last[row] > last[touched]:
                touched = row
    put(values, many, SESSION_SIZE, np.uint64(octave(float(acted))))
    if acted > 0:
        here = touched >= 0 and last[touched] == acted - 1
        put(values, many, SESSION_LAST, mix(np.uint64(acts[3 * acted - 2]), np.uint64(here)))
        put(values, many, SESSION_MET, np.uint64(min(met, _MOST_MET)))
        put(values, many, SESSION_AGO, np.uint64(octave((at_ms - acts[3 * acted - 1]) / 1000.0)))
    return touched


@njit(cache=True)
def put_acts(
    values: NDArray[np.uint64],
    many: NDArray[np.int64],
    row: int,
    item: np.uint64,
    at_ms: int,
    acts: NDArray[np.int64],
    lasts: NDArray[np.int64],
    touched: int,
) -> None:
    """Put what the session did with one row's item; ``lasts`` are the last acts by row, ``touched`` the row of all."""
    last = lasts[row]
    if last < 0:
        if acts.size > 0:
            put(values, many, SESSION_PLACE, np.uint64(1 if touched >= 0 else 2))
        return
    kinds = np.empty(MAX_VALUES, np.int64)
    counts = np.empty(MAX_VALUES, np.int64)
    distinct = 0
    for act in range(last + 1):
        if np.uint64(acts[3 * act]) == item:
            kind = acts[3 * act + 1]
            for i in range(distinct):
                if kinds[i] == kind:
                    counts[i] += 1
                    break
            else:
                if distinct < MAX_VALUES:
                    kinds[distinct] = kind
                    counts[distinct] = 1
                    distinct += 1
    for i in range(distinct):
        put(values, many, SESSION_KINDS, mix(np.uint64(kinds[i]), np.uint64(octave(float(counts[i])))))
    later = 0
    for other in range(lasts.size):
        later += lasts[other] > last
    put(values, many, SESSION_PLACE, mix(np.uint64(acts[3 * last + 1]), np.uint64(min(later, 2))))
    put(values, many, SESSION_SINCE, np.uint64(octave((at_ms - acts[3 * last + 2]) / 1000.0)))


@njit(cache=True)
def put_position(
    values: NDArray[np.uint64], many: NDArray[np.int64], position: int, from_touched: int, touched: int
) -> None:
    """Put the fields that derive from position; without a touched row there is no gap."""
    many[POSITION] = many[POSITION_LOG] = many[SESSION_GAP] = many[SESSION_GAP_LOG] = 0
    put(values, many, POSITION, np.uint64(position))
    put(values, many, POSITION_LOG, np.uint64(octave(2.0 * position)))
    if touched >= 0:
        put(values, many, SESSION_GAP, np.uint64(_GAP_ZERO + from_touched))
        put(values, many, SESSION_GAP_LOG, np.uint64(2 * octave(2.0 * abs(from_touched)) + int(from_touched < 0)))


@njit(cache=True)
def compare(
    number_fields: NDArray[np.int64], numbers: NDArray[np.float64], ends: NDArray[np.int64], touched: int
) -> NDArray[np.int64]:
    """Set each number of an item beside the slate's others of its field [numbers, 4], -1 where there is nothing to say.

    Its bucket, its rank (how many are smaller, in tenths), its ratio to the median and to that of the row touched last.
    ``ends`` [n + 1]: how many of the numbers belong to the slate itself, and then up to each row.
    """
    beside = np.full((numbers.size, 4), -1, np.int64)
    same = np.empty(numbers.size, np.int64)
    for i in range(ends[0], numbers.size):
        if beside[i, 1] >= 0:
            continue
        size = 0
        of_touched = 0.0
        for j in range(i, numbers.size):
            if number_fields[j] == number_fields[i]:
                same[size] = j
                size += 1
                if touched >= 0 and ends[touched] <= j < ends[touched + 1]:
                    of_touched = numbers[j]
        ordered = np.sort(numbers[same[:size]])
        median = ordered[size // 2]
        for j in same[:size]:
            smaller = np.searchsorted(ordered, numbers[j])
            beside[j, 0] = log_bucket(numbers[j])
            beside[j, 1] = 0 if smaller == 0 else 1 + (_RANKS - 1) * smaller // size
            if numbers[j] > 0.0 and median > 0.0:
                beside[j, 2] = log_bucket(numbers[j] / median)
            if numbers[j] > 0.0 and of_touched > 0.0:
                beside[j, 3] = log_bucket(numbers[j] / of_touched)
    return beside


@njit(cache=True)
def put_matches(
    values: NDArray[np.uint64],
    many: NDArray[np.int64],
    of_query: NDArray[np.int64],
    of_text: NDArray[np.int64],
) -> None:
    """Put how many words, and what share of letter triples (both sorted), the query has in common with the text."""
    if many[QUERY_WORDS] > 0 and many[TEXT_WORDS] > 0:
        met = 0
        for i in range(many[QUERY_WORDS]):
            for j in range(many[TEXT_WORDS]):
                if values[QUERY_WORDS, i] == values[TEXT_WORDS, j]:
                    met += 1
                    break
        put(values, many, MATCH, np.uint64(min(many[QUERY_WORDS], 8) * 16 + min(met, 8)))
    if of_query.size > 0 and of_text.size > 0:
        met = j = 0
        for i in range(of_query.size):
            while j < of_text.size and of_text[j] < of_query[i]:
                j += 1
            if j < of_text.size and of_text[j] == of_query[i]:
                met += 1
        put(values, many, MATCH_LETTERS, np.uint64(10 * met // of_query.size))
