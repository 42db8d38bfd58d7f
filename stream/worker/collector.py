"""What Python's cyclic collector is spared: all that stays for good."""

from __future__ import annotations

import gc

_YOUNG_OBJECTS, _YOUNG_ROUNDS = 700, 10  # Python's own defaults
_ROUNDS_TO_A_FULL_ONE = 10_000  # Python's default is 10; at full speed this is one in a quarter of an hour


def settle() -> None:
    """Spare the cyclic collector what is there now: modules, compiled kernels, restored state.

    The cycles that Faust makes are short-lived, and young rounds collect them. Full rounds walk all that waits in
    the stages and never found a cycle there (LOG.md), but stall learning: they come seldom, against slow leaks.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, _ROUNDS_TO_A_FULL_ONE)
