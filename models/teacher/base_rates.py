"""How often a position is clicked whatever is shown there: the baseline beside which a click teaches about texts.

Positions that few slates have are drawn to the rate of their surface, and a small surface to the rate of the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

_MOST_POSITIONS = 100  # positions from here on share one rate
_PRIOR_SHOWS = 100.0  # a rate is drawn to its prior as strongly as so many shows would


class BaseRates(msgspec.Struct, frozen=True):
    """Click rates in (0, 1): ``overall``, and by surface those of its positions, the first one at 0."""

    overall: float
    surfaces: dict[str, list[float]]

    def offset(self, expected: float, shows: float) -> float:
        """Return the logit by which some shows were better placed than the average show.

        Parameters
        ----------
        expected
            Sum of the click rates expected of the shows; greater than 0, less than ``shows``.
        shows
            How many they are; greater than 0.
        """
        return _logit(expected / shows) - _logit(self.overall)

    def rate(self, surface: str, position: int) -> float:
        """Return the click rate of a position; the overall rate for a surface that was never seen."""
        rates = self.surfaces.get(surface)
        return self.overall if rates is None else rates[min(position, len(rates) - 1)]


def base_rates(shows: Iterable[tuple[str, int, int]]) -> BaseRates:
    """Return the click rate of each position of each surface.

    Parameters
    ----------
    shows
        Surface, position from 0, and 1 where it was clicked, else 0. At least one.
    """
    counts: dict[str, NDArray[np.float64]] = {}
    for surface, position, label in shows:
        of_surface = counts.setdefault(surface, np.zeros((2, _MOST_POSITIONS)))
        of_surface[:, min(position, _MOST_POSITIONS - 1)] += (1.0, label)
    total_shows, total_clicks = np.sum([each.sum(1) for each in counts.values()], axis=0)
    overall = total_clicks / total_shows
    surfaces = {}
    for surface, (shown, clicked) in sorted(counts.items()):
        prior = (clicked.sum() + _PRIOR_SHOWS * overall) / (shown.sum() + _PRIOR_SHOWS)
        rates = (clicked + _PRIOR_SHOWS * prior) / (shown + _PRIOR_SHOWS)
        surfaces[surface] = rates[: int(np.flatnonzero(shown)[-1]) + 1].tolist()
    return BaseRates(float(overall), surfaces)


def _logit(p: float) -> float:
    return math.log(p / (1.0 - p))
