"""What was shown and clicked before: fading counts by item, by user, by query and item, and by user and item.

The counts lie in tables of fixed capacity, keyed by 64-bit hashes. A key may live in any of the eight places of its
set. When all eight are taken, the key that was touched longest ago is dropped (of equal ones, the first) and counted.
So what is forgotten depends on the events alone. Time is the time of the slates: every count halves in each half-life.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.hashing import mix

ITEM, USER, QUERY_ITEM, USER_ITEM = range(4)
CLICKS, SHOWS, EXPECTED = range(3)
POSITIONS = 128
"""Positions from here on count as one."""

_WAYS = 8
_PRIOR_SHOWS = 20.0
_PRIOR_RATE = 0.05
_SALTS = np.array([0x11, 0x22, 0x33, 0x44], dtype=np.uint64)


class Tables(NamedTuple):
    """The tables of the four relations: what compiled functions read and write. Built once, changed in place."""

    keys: NDArray[np.uint64]
    """[4, places]; 0 where empty."""
    times: NDArray[np.int64]
    """[4, places] when the key was last touched, in milliseconds since the epoch; 0 for never."""
    counts: NDArray[np.float64]
    """[4, places, 3] clicks, impressions and expected clicks, as they were at ``times``."""
    clicked_ms: NDArray[np.int64]
    """[4, places] the last click, in milliseconds since the epoch; 0 for never."""
    evicted: NDArray[np.int64]
    """[1] how many keys have been dropped for newer ones."""
    half_life_ms: float


class PositionCounts(NamedTuple):
    """Clicks and impressions by position, over all items: what a position promises. Changed in place."""

    counts: NDArray[np.float64]
    """[POSITIONS, 2] clicks and impressions."""
    time: NDArray[np.int64]
    """[1] when they were last touched, in milliseconds since the epoch; 0 for never."""


@njit(cache=True)
def relation_key(relation: int, a: np.uint64, b: np.uint64) -> np.uint64:
    """Return the key of a relation between two hashes; never 0, which marks an empty place."""
    key = mix(mix(a, b), _SALTS[relation])
    return key if key != np.uint64(0) else np.uint64(1)


@njit(cache=True)
def _key_of(relation: int, user: np.uint64, query: np.uint64, item: np.uint64) -> np.uint64:
    zero = np.uint64(0)
    if relation == ITEM:
        return relation_key(relation, item, zero)
    if relation == USER:
        return relation_key(relation, user, zero)
    return relation_key(relation, query if relation == QUERY_ITEM else user, item)


@njit(cache=True)
def find(keys: NDArray[np.uint64], key: np.uint64) -> int:
    """Return the place of a key in one relation's ``keys`` [capacity], or -1."""
    start = int(key & np.uint64(keys.size // _WAYS - 1)) * _WAYS
    for place in range(start, start + _WAYS):
        if keys[place] == key:
            return place
    return -1


@njit(cache=True)
def _claim(tables: Tables, relation: int, key: np.uint64) -> int:
    """Return the place of a key in the tables of a relation; a new key takes an empty place, or the oldest one's."""
    keys, times = tables.keys[relation], tables.times[relation]
    start = int(key & np.uint64(keys.size // _WAYS - 1)) * _WAYS
    victim = start
    for place in range(start, start + _WAYS):
        if keys[place] == key:
            return place
        if keys[place] == np.uint64(0):
            victim = place
            break
        if times[place] < times[victim]:
            victim = place
    if keys[victim] != np.uint64(0):
        tables.evicted[0] += 1
    keys[victim] = key
    times[victim] = 0
    for which in range(3):
        tables.counts[relation, victim, which] = 0.0
    tables.clicked_ms[relation, victim] = 0
    return victim


@njit(cache=True)
def decay(elapsed_ms: int, half_life_ms: float) -> float:
    """Return the share that is left after ``elapsed_ms``; 1 for times that run backwards."""
    return 1.0 if elapsed_ms <= 0 else 2.0 ** (-elapsed_ms / half_life_ms)


@njit(cache=True)
def _age(tables: Tables, relation: int, place: int, at_ms: int) -> None:
    """Bring the counts of a place to the time ``at_ms``; a time before theirs changes nothing."""
    touched_ms = tables.times[relation, place]
    if at_ms > touched_ms:
        if touched_ms > 0:
            left = decay(at_ms - touched_ms, tables.half_life_ms)
            for which in range(3):
                tables.counts[relation, place, which] *= left
        tables.times[relation, place] = at_ms


@njit(cache=True)
def _close(
    tables: Tables,
    by_position: PositionCounts,
    at_ms: int,
    user: np.uint64,
    query: np.uint64,
    items: NDArray[np.uint64],
    positions: NDArray[np.uint16],
    seen: NDArray[np.bool_],
    labels: NDArray[np.uint8],
) -> None:
    """Count a slate whose labels are known, see `History.closed`."""
    of_position = by_position.counts
    if at_ms > by_position.time[0]:
        if by_position.time[0] > 0:
            of_position *= decay(at_ms - by_position.time[0], tables.half_life_ms)
        by_position.time[0] = at_ms
    for relation in range(4):
        place = -1
        for row in range(items.size):
            if not (seen[row] or labels[row]):
                continue
            position = min(int(positions[row]), POSITIONS - 1)
            clicked, shown = of_position[position, 0], of_position[position, 1]
            expected = (clicked + _PRIOR_RATE * _PRIOR_SHOWS) / (shown + _PRIOR_SHOWS)
            if relation != USER or place < 0:  # a slate has one user
                place = _claim(tables, relation, _key_of(relation, user, query, items[row]))
                _age(tables, relation, place, at_ms)
            tables.counts[relation, place, CLICKS] += float(labels[row])
            tables.counts[relation, place, SHOWS] += 1.0
            tables.counts[relation, place, EXPECTED] += expected
    for row in range(items.size):
        if seen[row] or labels[row]:
            position = min(int(positions[row]), POSITIONS - 1)
            of_position[position, 0] += float(labels[row])
            of_position[position, 1] += 1.0


@njit(cache=True)
def _click(tables: Tables, at_ms: int, user: np.uint64, query: np.uint64, item: np.uint64) -> None:
    """Note the time of a click, see `History.clicked`."""
    for relation in range(4):
        place = _claim(tables, relation, _key_of(relation, user, query, item))
        _age(tables, relation, place, at_ms)
        tables.clicked_ms[relation, place] = max(tables.clicked_ms[relation, place], at_ms)


class History:
    """Fading clicks, impressions and expected clicks of every relation.

    *Expected* clicks are those that the positions alone would have brought: each impression adds the click rate that
    its position had so far. Clicks over expected clicks tell a good item from one that was shown at the top.

    Parameters
    ----------
    bits
        Each relation has 2^bits places; at least 3.
    half_life_ms
        Counts halve in this much time of the slates; above 0.

    Raises
    ------
    ValueError
        If ``bits`` is less than 3.

    Attributes
    ----------
    tables, by_position
        The arrays that hold it all, for compiled functions; nobody else changes them.
    """

    def __init__(self, bits: int, half_life_ms: float) -> None:
        if bits < 3:
            msg = f"history_bits is {bits}; at least 3 is needed, a set has {_WAYS} places"
            raise ValueError(msg)
        places = 1 << bits
        self.tables = Tables(
            keys=np.zeros((4, places), np.uint64),
            times=np.zeros((4, places), np.int64),
            counts=np.zeros((4, places, 3), np.float64),
            clicked_ms=np.zeros((4, places), np.int64),
            evicted=np.zeros(1, np.int64),
            half_life_ms=float(half_life_ms),
        )
        self.by_position = PositionCounts(np.zeros((POSITIONS, 2), np.float64), np.zeros(1, np.int64))

    @property
    def evicted(self) -> int:
        """How many keys have been dropped for newer ones."""
        return int(self.tables.evicted[0])

    def clicked(self, at_ms: int, user: np.uint64, query: np.uint64, item: np.uint64) -> None:
        """Note the time of a click; rates move only when the slate closes."""
        _click(self.tables, at_ms, user, query, item)

    def closed(
        self,
        at_ms: int,
        user: np.uint64,
        query: np.uint64,
        items: NDArray[np.uint64],
        positions: NDArray[np.uint16],
        seen: NDArray[np.bool_],
        labels: NDArray[np.uint8],
    ) -> None:
        """Count a slate whose labels are known, clicks and impressions together.

        Items that were not on screen are left out. A clicked item was on screen, even if its ``seen`` is False.

        Parameters
        ----------
        at_ms
            When the slate was shown, in milliseconds since the epoch.
        user, query
            Their hashes.
        items, positions, seen, labels
            [n] hashes of the items, positions they were shown at, whether they were on screen, 1 where clicked.
        """
        _close(self.tables, self.by_position, at_ms, user, query, items, positions, seen, labels)

    def shows_of(self, items: NDArray[np.uint64], at_ms: int) -> NDArray[np.float64]:
        """Return how often items [n], given by their hashes, had been shown as of ``at_ms``."""
        return np.asarray(_shows(self.tables, items, at_ms))

    def state(self) -> dict[str, Any]:
        """Return a copy of everything: which places are in use, and what is in them."""
        tables = self.tables
        places = np.flatnonzero(tables.keys)
        return {
            "places": places,
            "keys": tables.keys.take(places),
            "times": tables.times.take(places),
            "counts": tables.counts.reshape(-1, 3).take(places, axis=0),
            "clicked_ms": tables.clicked_ms.take(places),
            "by_position": self.by_position.counts.copy(),
            "position_ms": int(self.by_position.time[0]),
            "evicted": self.evicted,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same ``bits``."""
        tables = self.tables
        for table in (tables.keys, tables.times, tables.counts, tables.clicked_ms):
            table.fill(0)
        relation, place = np.divmod(state["places"], tables.keys.shape[1])
        tables.keys[relation, place] = state["keys"]
        tables.times[relation, place] = state["times"]
        tables.counts[relation, place] = state["counts"]
        tables.clicked_ms[relation, place] = state["clicked_ms"]
        tables.evicted[0] = state["evicted"]
        self.by_position.counts[:] = state["by_position"]
        self.by_position.time[0] = state["position_ms"]


@njit(cache=True)
def _shows(tables: Tables, items: NDArray[np.uint64], at_ms: int) -> NDArray[np.float64]:
    out = np.zeros(items.size)
    for row in range(items.size):
        place = find(tables.keys[ITEM], relation_key(ITEM, items[row], np.uint64(0)))
        if place >= 0:
            left = decay(at_ms - tables.times[ITEM, place], tables.half_life_ms)
            out[row] = tables.counts[ITEM, place, SHOWS] * left
    return out
