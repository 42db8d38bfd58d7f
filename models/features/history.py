"""What was shown and clicked before: fading counts by item, by user, by query and item, and by user and item.

The counts lie in tables of fixed capacity, keyed by 64-bit hashes. A key may live in any of the eight places of its
set. When all eight are taken, the key that was touched longest ago is dropped (of equal ones, the first) and counted.
So what is forgotten depends on the events alone. Time is the time of the slates: every count halves in each half-life.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from heft.models.hashing import mix

ITEM, USER, QUERY_ITEM, USER_ITEM = range(4)
POSITIONS = 128
"""Positions from here on count as one."""

_WAYS = 8
_COUNTS = ("clicks", "shows", "expected")
_PRIOR_SHOWS = 20.0
_PRIOR_RATE = 0.05
_SALTS = np.array([0x11, 0x22, 0x33, 0x44], dtype=np.uint64)


ENTRY = np.dtype(
    [
        ("touched_ms", np.int64),  # when the key was last touched, in milliseconds since the epoch; 0 for never
        ("clicked_ms", np.int64),  # the last click, likewise
        ("clicks", np.float64),  # these three as they were at touched_ms
        ("shows", np.float64),
        ("expected", np.float64),
    ]
)
"""What is known of a key."""

TOTALS = np.dtype(
    [
        ("half_life_ms", np.float64),
        ("evicted", np.int64),  # how many keys have been dropped for newer ones
        ("touched_ms", np.int64),  # when the positions were last touched; 0 for never
        ("by_position", np.float64, (POSITIONS, 2)),  # clicks and impressions over all items
    ]
)
"""What is not kept by key."""


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
def _claim(keys: NDArray[np.uint64], entries: NDArray[Any], totals: NDArray[Any], key: np.uint64) -> int:
    """Return the place of a key in one relation; a new key takes an empty place, or the oldest one's."""
    start = int(key & np.uint64(keys.size // _WAYS - 1)) * _WAYS
    victim = start
    for place in range(start, start + _WAYS):
        if keys[place] == key:
            return place
        if keys[place] == np.uint64(0):
            victim = place
            break
        if entries[place].touched_ms < entries[victim].touched_ms:
            victim = place
    if keys[victim] != np.uint64(0):
        totals[0].evicted += 1
    keys[victim] = key
    entry = entries[victim]
    entry.touched_ms = entry.clicked_ms = 0
    entry.clicks = entry.shows = entry.expected = 0.0
    return victim


@njit(cache=True)
def decay(elapsed_ms: int, half_life_ms: float) -> float:
    """Return the share that is left after ``elapsed_ms``; 1 for times that run backwards."""
    return 1.0 if elapsed_ms <= 0 else 2.0 ** (-elapsed_ms / half_life_ms)


@njit(cache=True)
def _age(entry: Any, at_ms: int, half_life_ms: float) -> None:
    """Bring the counts of an entry to the time ``at_ms``; a time before theirs changes nothing."""
    if at_ms > entry.touched_ms:
        if entry.touched_ms > 0:
            left = decay(at_ms - entry.touched_ms, half_life_ms)
            entry.clicks *= left
            entry.shows *= left
            entry.expected *= left
        entry.touched_ms = at_ms


@njit(cache=True)
def _close(
    keys: NDArray[np.uint64],
    entries: NDArray[Any],
    totals: NDArray[Any],
    at_ms: int,
    user: np.uint64,
    query: np.uint64,
    items: NDArray[np.uint64],
    positions: NDArray[np.uint16],
    labels: NDArray[np.uint8],
) -> None:
    """Count the rows of a slate that were on screen and whose labels are known, see `History.closed`."""
    half_life_ms, of_position = totals[0].half_life_ms, totals[0].by_position
    if at_ms > totals[0].touched_ms:
        if totals[0].touched_ms > 0:
            of_position *= decay(at_ms - totals[0].touched_ms, half_life_ms)
        totals[0].touched_ms = at_ms
    for relation in range(4):
        place = -1
        for row in range(items.size):
            position = min(int(positions[row]), POSITIONS - 1)
            clicked, shown = of_position[position, 0], of_position[position, 1]
            expected = (clicked + _PRIOR_RATE * _PRIOR_SHOWS) / (shown + _PRIOR_SHOWS)
            if relation != USER or place < 0:  # a slate has one user
                key = _key_of(relation, user, query, items[row])
                place = _claim(keys[relation], entries[relation], totals, key)
                _age(entries[relation, place], at_ms, half_life_ms)
            entry = entries[relation, place]
            entry.clicks += float(labels[row])
            entry.shows += 1.0
            entry.expected += expected
    for row in range(items.size):
        position = min(int(positions[row]), POSITIONS - 1)
        of_position[position, 0] += float(labels[row])
        of_position[position, 1] += 1.0


@njit(cache=True)
def _click(
    keys: NDArray[np.uint64],
    entries: NDArray[Any],
    totals: NDArray[Any],
    at_ms: int,
    user: np.uint64,
    query: np.uint64,
    item: np.uint64,
) -> None:
    """Note the time of a click, see `History.clicked`."""
    for relation in range(4):
        place = _claim(keys[relation], entries[relation], totals, _key_of(relation, user, query, item))
        _age(entries[relation, place], at_ms, totals[0].half_life_ms)
        entries[relation, place].clicked_ms = max(entries[relation, place].clicked_ms, at_ms)


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
    keys, entries, totals
        All that is held, for compiled functions; nobody else changes it: keys [4, places], 0 where empty; what is known
        of each, `ENTRY` [4, places]; one `TOTALS`.
    """

    def __init__(self, bits: int, half_life_ms: float) -> None:
        if bits < 3:
            msg = f"history_bits is {bits}; at least 3 is needed, a set has {_WAYS} places"
            raise ValueError(msg)
        self.keys = np.zeros((4, 1 << bits), np.uint64)
        self.entries: NDArray[Any] = np.zeros((4, 1 << bits), ENTRY)
        self.totals: NDArray[Any] = np.zeros(1, TOTALS)
        self.totals["half_life_ms"] = half_life_ms

    @property
    def evicted(self) -> int:
        """How many keys have been dropped for newer ones."""
        return int(self.totals["evicted"][0])

    def clicked(self, at_ms: int, user: np.uint64, query: np.uint64, item: np.uint64) -> None:
        """Note the time of a click; rates move only when the slate closes."""
        _click(self.keys, self.entries, self.totals, at_ms, user, query, item)

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
        if not seen.all():
            rows = seen | (labels > 0)
            items, positions, labels = items[rows], positions[rows], labels[rows]
        _close(self.keys, self.entries, self.totals, at_ms, user, query, items, positions, labels)

    def shows_of(self, items: NDArray[np.uint64], at_ms: int) -> NDArray[np.float64]:
        """Return how often items [n], given by their hashes, had been shown as of ``at_ms``."""
        return np.asarray(_shows(self.keys[ITEM], self.entries[ITEM], self.totals, items, at_ms))

    def state(self) -> dict[str, Any]:
        """Return a copy of everything: which places are in use, and what is in them."""
        places = np.flatnonzero(self.keys)
        entries = self.entries.take(places)
        return {
            "places": places,
            "keys": self.keys.take(places),
            "times": entries["touched_ms"].copy(),
            "counts": np.stack([entries[name] for name in _COUNTS], axis=1),
            "clicked_ms": entries["clicked_ms"].copy(),
            "by_position": self.totals["by_position"][0].copy(),
            "position_ms": int(self.totals["touched_ms"][0]),
            "evicted": self.evicted,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same ``bits``."""
        self.keys.fill(0)
        self.entries.fill(0)
        place = np.divmod(state["places"], self.keys.shape[1])
        self.keys[place] = state["keys"]
        self.entries["touched_ms"][place] = state["times"]
        self.entries["clicked_ms"][place] = state["clicked_ms"]
        for which, name in enumerate(_COUNTS):
            self.entries[name][place] = state["counts"][:, which]
        self.totals["evicted"] = state["evicted"]
        self.totals["by_position"][0] = state["by_position"]
        self.totals["touched_ms"] = state["position_ms"]


@njit(cache=True)
def _shows(
    keys: NDArray[np.uint64], entries: NDArray[Any], totals: NDArray[Any], items: NDArray[np.uint64], at_ms: int
) -> NDArray[np.float64]:
    out = np.zeros(items.size)
    for row in range(items.size):
        place = find(keys, relation_key(ITEM, items[row], np.uint64(0)))
        if place >= 0:
            out[row] = entries[place].shows * decay(at_ms - entries[place].touched_ms, totals[0].half_life_ms)
    return out
