"""What was seen of workers over time, and what follows from it: who had a partition when, pauses, the way back.

Pure: times come in as numbers, in seconds since the epoch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import ceil, inf
from typing import NamedTuple


class Look(NamedTuple):
    """One look at ``/livez`` and ``/readyz`` of a worker."""

    at: float
    worker: str
    state: str
    """As the worker says it; ``no answer`` where it says nothing."""
    alive: bool = False
    ready: bool = False
    held: frozenset[str] = frozenset()
    restored: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    error: str = ""
    lag: int | None = None

    @property
    def seen(self) -> tuple[object, ...]:
        """What a change of is worth a line: numbers in the reasons aside."""
        return self.state, self.alive, self.ready, self.held, self.restored, bool(self.missing)


class Window(NamedTuple):
    """From when a cause was there, when it was gone, and until when it is looked at."""

    began: float
    gone: float
    until: float


def changes(looks: Iterable[Look]) -> Iterator[Look]:
    """Yield each look that differs from the one before of the same worker."""
    last: dict[str, tuple[object, ...]] = {}
    for look in looks:
        if last.get(look.worker) != look.seen:
            last[look.worker] = look.seen
            yield look


def untrue(looks: Iterable[Look]) -> list[Look]:
    """Return the looks at which a worker was ready without its partitions, or not ready without a reason."""
    return [
        look
        for look in looks
        if (look.ready and not (look.alive and look.held and look.held == look.restored))
        or (look.alive and look.held and look.held == look.restored and not look.ready and not look.missing)
    ]


def gaps_of(partition: str, looks: Iterable[Look], window: Window) -> list[tuple[float, float]]:
    """Return from when to when no worker had the state of a partition, within a window.

    A worker is taken to have what it had at a look until its next look.
    """
    by_worker: dict[str, list[Look]] = {}
    for look in looks:
        by_worker.setdefault(look.worker, []).append(look)
    held: list[tuple[float, float]] = []
    for of_one in by_worker.values():
        ends = [look.at for look in of_one[1:]] + [inf if of_one[-1].alive else of_one[-1].at]
        held += [(look.at, end) for look, end in zip(of_one, ends, strict=True) if partition in look.restored]
    at, gaps = window.began, []
    for start, end in sorted(held):
        if start >= window.until:
            break
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    if at < window.until:
        gaps.append((at, window.until))
    return gaps


def longest_gap(moments: Sequence[float], window: Window) -> float:
    """Return the longest time within a window without one of these sorted moments.

    Examples
    --------
    >>> longest_gap([0.0, 1.0, 4.0, 9.0], Window(0.0, 0.0, 5.0))
    3.0
    """
    inside = [at for at in moments if window.began <= at <= window.until]
    return max(later - earlier for earlier, later in pairwise([window.began, *inside, window.until]))


def back_after(gaps: Sequence[tuple[float, float]], moments: Sequence[float], window: Window) -> float:
    """Return the seconds from the end of a cause until a partition was there, and had done something since.

    Parameters
    ----------
    gaps
        When nobody had it, as `gaps_of` returns.
    moments
        When it did something, sorted.
    window
        The cause.

    Examples
    --------
    >>> back_after([(5.0, 12.0)], [1.0, 12.5, 13.0], Window(4.0, 10.0, 40.0))
    2.5
    >>> back_after([(5.0, 40.0)], [1.0], Window(4.0, 10.0, 40.0))
    inf
    """
    there = next((end for start, end in gaps if start <= window.gone < end), window.gone)
    first = bisect_left(moments, there)
    done = moments[first] if first < len(moments) else inf
    return inf if there >= window.until or done > window.until else done - window.gone


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that at least this share of them does not exceed; 0 of none.

    Examples
    --------
    >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([3.0, 1.0, 2.0], 0.99), quantile([], 0.5)
    (2.0, 3.0, 0.0)
    """
    return sorted(values)[max(0, ceil(q * len(values)) - 1)] if values else 0.0
