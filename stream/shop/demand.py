"""Why someone clicks and buys in the simulated shop: the world behind the log, and how it changes.

A click takes two things: that the item is looked at, which falls with its place, and that it appeals. Appeal is a
logit, the sum of how well the item is what was asked for, how the person likes its category, brand and price, what the
item has to say for itself, and fashion. Fashion walks a little every night; at a few known times something changes at
once.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from heft.stream.shop.catalogue import ABSENT, CATEGORY_NAMES, KIND_CATEGORY, Catalogue
from heft.stream.shop.shoppers import Intent, Shoppers, spread
from heft.stream.shop.words import BRANDS, COLOURS, KINDS

MOBILE = 0  # in `stream.shop.shoppers.DEVICES`

CHANGES = ("brands", "bargains", "layout", "traffic")
"""What can change at once: which brands are liked, how much prices matter, how far down people look, how many come."""

_SAME_KIND, _SAME_CATEGORY, _ELSEWHERE = 2.0, -0.9, -2.4
_AS_ASKED, _NOT_AS_ASKED = 1.0, -0.5
_TOUCHED = 0.9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Demand:
    """The state of the world outside the shop.

    Parameters
    ----------
    rng
        Draws its changes, and nothing else draws from it.
    """

    def __init__(self, rng: Generator) -> None:
        self._rng = rng
        self.brands = spread(0.65, len(BRANDS), rng)
        self.colours = rng.normal(0.0, 0.2, len(COLOURS))
        self.kinds = spread(0.35, len(CATEGORY_NAMES), rng)[KIND_CATEGORY] + spread(0.2, len(KINDS), rng)
        self.price_matters = 0.45
        self.looks_down = np.array([0.6, 0.4, 0.5])  # by device: the exponent of the place
        self.base = 0.0  # of the logit; the shop sets it so that its clicks are as many as it wants
        self.visitors = 1.0  # for each that comes on a usual day

    def midnight(self) -> None:
        """Let fashion walk."""
        self.brands = 0.98 * self.brands + self._rng.normal(0.0, 0.05, len(BRANDS))
        self.colours = 0.95 * self.colours + self._rng.normal(0.0, 0.05, len(COLOURS))
        self.kinds = 0.98 * self.kinds + self._rng.normal(0.0, 0.07, len(KINDS))

    def change(self, what: str) -> None:
        """Change one thing at once.

        Raises
        ------
        ValueError
            If ``what`` is none of `CHANGES`.
        """
        if what == "brands":
            fallen = self._rng.random(len(BRANDS)) < 0.3
            self.brands = np.where(fallen, self._rng.normal(0.0, 0.65, len(BRANDS)), self.brands)
        elif what == "bargains":
            self.price_matters += 0.5
        elif what == "layout":
            self.looks_down = 0.6 * self.looks_down
        elif what == "traffic":
            self.visitors *= 2.0
        else:
            msg = f"shop: unknown change {what!r}; expected one of {', '.join(CHANGES)}"
            raise ValueError(msg)

    def seen(self, device: int, places: int) -> Floats:
        """Return the probability [places] that an item is looked at, by its place; 1 at the top."""
        return np.asarray(np.arange(1, places + 1) ** -self.looks_down[device])

    def appeal(
        self, items: Catalogue, rows: Ints, people: Shoppers, person: int, intent: Intent | None, touched: set[int]
    ) -> Floats:
        """Return logits [n] of clicking items that are looked at.

        Parameters
        ----------
        items, rows
            The products, and which of them are shown.
        people, person
            Who looks.
        intent
            What they asked for, or nothing when they just browse.
        touched
            Which rows they clicked before in this visit.
        """
        kind, category = items.kind[rows], items.category[rows]
        logit: Floats = self.base + self.brands[items.brand[rows]] + self.colours[items.colour[rows]] + self.kinds[kind]
        logit += people.taste[person][category] + people.eager[person]
        logit += 0.7 * (items.rating[rows] - 4.0) + 0.15 * items.quality[rows]
        logit += np.where(items.on_sale[rows], 0.7, 0.0) + np.where(items.bestseller[rows], 0.5, 0.0)
        price = items.relative_price[rows]
        logit -= 1.4 * (price - people.budget[person]) ** 2 + self.price_matters * price
        logit += np.where(np.isin(items.brand[rows], people.brands[person]), 0.5, 0.0)
        if intent is not None:
            logit += relevance(items, rows, intent)
        if touched:
            logit += np.array([_TOUCHED if row in touched else 0.0 for row in rows.tolist()])
        return logit

    def purchase(self, items: Catalogue, rows: Ints, people: Shoppers, person: int, intent: Intent | None) -> Floats:
        """Return logits [n] of buying items clicked on purpose."""
        price = items.relative_price[rows]
        logit: Floats = (
            -3.3 + 0.5 * (items.rating[rows] - 4.0) - (0.5 + self.price_matters) * (price - people.budget[person])
        )
        logit += 0.35 * people.membership[person] + np.where(items.on_sale[rows], 0.3, 0.0)
        if intent is not None:
            logit += 0.6 * relevance(items, rows, intent)
        return logit


def relevance(items: Catalogue, rows: Ints, intent: Intent) -> Floats:
    """Return how well items [n] are what was asked for, in logits: the part that only their words tell."""
    kind, category = items.kind[rows], items.category[rows]
    fit: Floats = np.where(
        kind == intent.kind, _SAME_KIND, np.where(category == KIND_CATEGORY[intent.kind], _SAME_CATEGORY, _ELSEWHERE)
    )
    for asked, has in (
        (intent.colour, items.colour),
        (intent.material, items.material),
        (intent.use, items.use),
        (intent.brand, items.brand),
    ):
        if asked != ABSENT:
            fit = fit + np.where(has[rows] == asked, _AS_ASKED, _NOT_AS_ASKED)
    return fit
