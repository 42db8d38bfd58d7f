"""Do the two heads agree with what was bought? Expected orders against orders, by the hour of the impression."""

from __future__ import annotations

from math import nan
from typing import Any


class Cohorts:
    """p(click) p(order) against orders, over all matured impressions, by the hour they were shown.

    Orders come a day after impressions. So sums are kept by hour, and an hour counts only once none of its clicks still
    waits to mature. Clicks mature in the order they were made: once a click of two hours later has matured, a click
    that still waits was dropped on its way and never will. The expected orders of such an hour count in proportion to
    those of its clicks that did mature. What is dropped is chosen by age alone, so the others stand for it.
    """

    _HOUR_MS = 3_600_000
    _KEPT = 24 * 14

    def __init__(self) -> None:
        self._hours: dict[int, list[float]] = {}  # hour -> expected orders, orders, clicks waiting, clicks matured

    def shown(self, at_ms: int, expected: float, clicks: int) -> None:
        """Add the expected orders of a closed slate shown at ``at_ms``, and how many of its clicks wait to mature."""
        hour = self._hours.setdefault(at_ms // self._HOUR_MS, [0.0, 0.0, 0.0, 0.0])
        hour[0] += expected
        hour[2] += clicks
        if len(self._hours) > self._KEPT:
            del self._hours[min(self._hours)]

    def matured(self, at_ms: int, converted: bool) -> None:
        """Add what became of a click on a slate shown at ``at_ms``."""
        hour = self._hours.get(at_ms // self._HOUR_MS)
        if hour is not None:
            hour[1] += converted
            hour[2] -= 1
            hour[3] += 1

    def report(self) -> dict[str, float]:
        """Return expected orders, orders and their ratio over the hours before the first one that still waits."""
        expected = orders = 0.0
        newest = max(self._hours, default=0)
        over = max((hour for hour, sums in self._hours.items() if sums[3]), default=0) - 2
        for hour, (hour_expected, hour_orders, waiting, matured) in sorted(self._hours.items()):
            if (waiting > 0 and hour > over) or hour == newest:
                break
            expected += hour_expected * matured / (matured + waiting) if waiting > 0 else hour_expected
            orders += hour_orders
        return {"expected_orders": expected, "orders": orders, "calibration": expected / orders if orders else nan}

    def state(self) -> list[Any]:
        """Return everything, by hour."""
        return [[hour, *sums] for hour, sums in sorted(self._hours.items())]

    def restore(self, state: list[Any]) -> None:
        """Go on from what `state` returned.

        Older states did not count the matured clicks; there, the orders stand for them, since at least those matured.
        """
        self._hours = {
            hour: [expected, orders, *(rest if len(rest) == 2 else [*rest, orders])]
            for hour, expected, orders, *rest in state
        }
