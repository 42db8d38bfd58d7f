"""What was shown and clicked before: decayed counts by item, user, query and item, user and item.

Tables of fixed capacity, keyed by 64-bit hashes. A key may live in any of the eight places of its set; when all are
taken the one quiet for longest goes (ties: the first), so what is forgotten depends on the events alone, and is
counted. Time is the time of the slates: every count halves in each half-life of it.
"""

from __future__ import annotations

from typing import Any

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
def _claim(
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    counts: NDArray[np.float64],
    clicked_ms: NDArray[np.int64],
    key: np.uint64,
    evicted: NDArray[np.int64],
) -> int:
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
        evicted[0] += 1
    keys[victim] = key
    times[victim] = 0
    for which in range(3):
        counts[victim, which] = 0.0
    clicked_ms[victim] = 0
    return victim


@njit(cache=True)
def decay(elapsed_ms: int, half_life_ms: float) -> float:
    """Return the share that is left after ``elapsed_ms``; 1 for times that run backwards."""
    return 1.0 if elapsed_ms <= 0 else 2.0 ** (-elapsed_ms / half_life_ms)


@njit(cache=True)
def _age(times: NDArray[np.int64], counts: NDArray[np.float64], place: int, at_ms: int, half_life_ms: float) -> None:
    if at_ms > times[place]:
        if times[place] > 0:
            left = decay(at_ms - times[place], half_life_ms)
            for which in range(3):
                counts[place, which] *= left
        times[place] = at_ms


@njit(cache=True)
def _close(
    at_ms: int,
    user: np.uint64,
    query: np.uint64,
    items: NDArray[np.uint64],
    positions: NDArray[np.uint16],
    seen: NDArray[np.bool_],
    labels: NDArray[np.uint8],
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    counts: NDArray[np.float64],
    clicked_ms: NDArray[np.int64],
    by_position: NDArray[np.float64],
    position_ms: NDArray[np.int64],
    evicted: NDArray[np.int64],
    half_life_ms: float,
) -> None:
    if at_ms > position_ms[0]:
        if position_ms[0] > 0:
            by_position *= decay(at_ms - position_ms[0], half_life_ms)
        position_ms[0] = at_ms
    for relation in range(4):
        of_keys, of_times, of_counts, of_clicks = (
            keys[relation],
            times[relation],
            counts[relation],
            clicked_ms[relation],
        )
        place = -1
        for row in range(items.size):
            if not (seen[row] or labels[row]):
                continue
            place_of = min(int(positions[row]), POSITIONS - 1)
            shown, clicked = by_position[place_of, 1], by_position[place_of, 0]
            expected = (clicked + _PRIOR_RATE * _PRIOR_SHOWS) / (shown + _PRIOR_SHOWS)
            if relation != USER or place < 0:  # a slate has one user
                key = _key_of(relation, user, query, items[row])
                place = _claim(of_keys, of_times, of_counts, of_clicks, key, evicted)
                _age(of_times, of_counts, place, at_ms, half_life_ms)
            of_counts[place, CLICKS] += float(labels[row])
            of_counts[place, SHOWS] += 1.0
            of_counts[place, EXPECTED] += expected
    for row in range(items.size):
        if seen[row] or labels[row]:
            place_of = min(int(positions[row]), POSITIONS - 1)
            by_position[place_of, 0] += float(labels[row])
            by_position[place_of, 1] += 1.0


@njit(cache=True)
def _click(
    at_ms: int,
    user: np.uint64,
    query: np.uint64,
    item: np.uint64,
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    counts: NDArray[np.float64],
    clicked_ms: NDArray[np.int64],
    evicted: NDArray[np.int64],
    half_life_ms: float,
) -> None:
    for relation in range(4):
        key = _key_of(relation, user, query, item)
        place = _claim(keys[relation], times[relation], counts[relation], clicked_ms[relation], key, evicted)
        _age(times[relation], counts[relation], place, at_ms, half_life_ms)
        clicked_ms[relation, place] = max(clicked_ms[relation, place], at_ms)


class History:
    """Decayed clicks, impressions and expected clicks of every relation.

    *Expected* clicks are what the positions alone would have brought: each impression adds the click rate that its
    position had so far. Clicks over expected clicks tell a good item from one that was shown at the top.

    Parameters
    ----------
    bits
        Each relation has 2^bits places.
    half_life_ms
        Counts halve in this much time of the slates.

    Attributes
    ----------
    keys : uint64 [4, 2^bits]
        0 where empty.
    times, clicked_ms : int64 [4, 2^bits]
        When last touched, and last clicked; milliseconds since the epoch, 0 for never.
    counts : float64 [4, 2^bits, 3]
        Clicks, shows and expected clicks as of ``times``.
    """

    def __init__(self, bits: int, half_life_ms: float) -> None:
        if bits < 3:
            msg = f"history_bits is {bits}; at least 3 is needed, a set has {_WAYS} places"
            raise ValueError(msg)
        places = 1 << bits
        self.half_life_ms = float(half_life_ms)
        self.keys = np.zeros((4, places), np.uint64)
        self.times = np.zeros((4, places), np.int64)
        self.counts = np.zeros((4, places, 3), np.float64)
        self.clicked_ms = np.zeros((4, places), np.int64)
        self.by_position = np.zeros((POSITIONS, 2), np.float64)
        self.position_ms = np.zeros(1, np.int64)
        self._evicted = np.zeros(1, np.int64)

    @property
    def evicted(self) -> int:
        """How many keys have been dropped for newer ones."""
        return int(self._evicted[0])

    def clicked(self, at_ms: int, user: np.uint64, query: np.uint64, item: np.uint64) -> None:
        """Note the time of a click; rates move only when the slate closes."""
        _click(
            at_ms, user, query, item, self.keys, self.times, self.counts, self.clicked_ms, self._evicted,
            self.half_life_ms,
        )  # fmt: skip

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

        Items that were not on screen are left out; a click proves that its item was.
        """
        _close(
            at_ms, user, query, items, positions, seen, labels, self.keys, self.times, self.counts, self.clicked_ms,
            self.by_position, self.position_ms, self._evicted, self.half_life_ms,
        )  # fmt: skip

    def shows_of(self, items: NDArray[np.uint64], at_ms: int) -> NDArray[np.float64]:
        """Return how often items [n], by their hashes, had been shown as of ``at_ms``."""
        return np.asarray(_shows(items, at_ms, self.keys[ITEM], self.times[ITEM], self.counts[ITEM], self.half_life_ms))

    def state(self) -> dict[str, Any]:
        """Return a copy of everything: the places in use, and their contents."""
        places = np.flatnonzero(self.keys)
        return {
            "places": places,
            "keys": self.keys.take(places),
            "times": self.times.take(places),
            "counts": self.counts.reshape(-1, 3).take(places, axis=0),
            "clicked_ms": self.clicked_ms.take(places),
            "by_position": self.by_position.copy(),
            "position_ms": int(self.position_ms[0]),
            "evicted": self.evicted,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same ``bits``."""
        for table in (self.keys, self.times, self.counts, self.clicked_ms):
            table.fill(0)
        relation, place = np.divmod(state["places"], self.keys.shape[1])
        self.keys[relation, place] = state["keys"]
        self.times[relation, place] = state["times"]
        self.counts[relation, place] = state["counts"]
        self.clicked_ms[relation, place] = state["clicked_ms"]
        self.by_position[:] = state["by_position"]
        self.position_ms[0] = state["position_ms"]
        self._evicted[0] = state["evicted"]


@njit(cache=True)
def _shows(
    items: NDArray[np.uint64],
    at_ms: int,
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    counts: NDArray[np.float64],
    half_life_ms: float,
) -> NDArray[np.float64]:
    out = np.zeros(items.size)
    for row in range(items.size):
        place = find(keys, relation_key(ITEM, items[row], np.uint64(0)))
        if place >= 0:
            out[row] = counts[place, SHOWS] * decay(at_ms - times[place], half_life_ms)
    return out
