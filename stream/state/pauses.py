"""How long to wait before what has failed is tried again."""

from __future__ import annotations

from random import Random

RETRIES = "heft.retry"
"""The logger of what has failed and is tried again; of each message one line a minute is let through."""

_DOUBLINGS = 10  # by then a pause has reached its longest


def pause_after(failures: int, first: float, longest: float, chance: Random) -> float:
    """Return seconds that double with each failure, from their upper half by chance: workers do not come back at once.

    Examples
    --------
    >>> [3.0 <= pause_after(failures, 1.0, 6.0, Random(0)) <= 6.0 for failures in (1, 4, 400)]
    [False, True, True]
    """
    return min(longest, first * 2.0 ** min(failures - 1, _DOUBLINGS)) * chance.uniform(0.5, 1.0)
