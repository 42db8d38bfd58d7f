"""Who comes to the simulated shop: tastes, budgets, and what they type when they want something.

Part of a taste goes with what the shop can see (age group, membership), part is a person's own. Queries use shoppers'
words, not sellers', and are misspelled now and then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from heft.stream.shop.catalogue import ABSENT, CATEGORY_NAMES, KIND_CATEGORY, KIND_MATERIALS, KIND_USES
from heft.stream.shop.words import BRANDS, COLOURS, KINDS, MATERIALS, USES

AGES = ("18-24", "25-34", "35-49", "50-64", "65+")
MEMBERSHIPS = ("none", "silver", "gold")
DEVICES = ("mobile", "desktop", "tablet")
MISSPELLED = 0.18
"""Share of queries with a slip of the finger."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Intent(NamedTuple):
    """What someone is looking for; colour, material, use and brand are `ABSENT` where any will do."""

    kind: int
    colour: int
    material: int
    use: int
    brand: int


class Shoppers:
    """The people who come back again and again.

    Parameters
    ----------
    count
        How many there are.
    rng
        Draws who they are, at the start; nothing later.

    Attributes
    ----------
    age, membership, device : int64 [count]
        What the shop sees of them.
    budget : float64 [count]
        Logarithm of the price they find right over the middle of a kind's range.
    eager : float64 [count]
        How readily they click, in logits.
    taste : float64 [count, categories]
        Liking of each category, in logits: of the age group and of the person together.
    brands : int64 [count, 3]
        Brands they are fond of.
    """

    def __init__(self, count: int, rng: Generator) -> None:
        self.age = rng.choice(len(AGES), size=count, p=[0.18, 0.28, 0.28, 0.17, 0.09])
        self.membership = rng.choice(len(MEMBERSHIPS), size=count, p=[0.6, 0.28, 0.12])
        self.device = rng.choice(len(DEVICES), size=count, p=[0.6, 0.32, 0.08])
        self.budget = np.array([-0.45, 0.1, 0.65])[self.membership] + rng.normal(0.0, 0.15, count)
        self.eager = rng.normal(0.0, 0.25, count)
        of_age = np.stack([spread(1.0, len(CATEGORY_NAMES), rng) for _ in AGES])
        fame = rng.permutation(np.arange(1.0, len(KINDS) + 1.0) ** -0.8)
        wanted = fame * np.exp(of_age[:, KIND_CATEGORY])
        wanted /= wanted.sum(axis=1, keepdims=True)
        self._kinds_of = np.cumsum(wanted, axis=1)
        # Who likes what they look for clicks more: taken out, so that no age group, and no seed, clicks much more.
        of_age -= (wanted * of_age[:, KIND_CATEGORY]).sum(axis=1, keepdims=True) - 0.6
        self.taste = of_age[self.age] + rng.normal(0.0, 0.2, (count, len(CATEGORY_NAMES)))
        self.brands = rng.integers(0, len(BRANDS), (count, 3))
        self._coming = np.cumsum(rng.dirichlet(np.full(count, 0.7)))
        self.ids = [f"u{number:05d}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def comes(self, draw: float) -> int:
        """Return who comes next, given a number in [0, 1)."""
        return min(int(np.searchsorted(self._coming, draw, side="right")), len(self) - 1)

    def wants(self, shopper: int, rng: Generator) -> Intent:
        """Draw what a shopper is looking for."""
        wanted = self._kinds_of[int(self.age[shopper])]
        kind = min(int(np.searchsorted(wanted, rng.random(), side="right")), len(KINDS) - 1)
        draw = rng.random(8)
        colour = int(len(COLOURS) * draw[0] ** 1.5) if draw[1] < 0.4 else ABSENT
        material = KIND_MATERIALS[kind][int(4 * draw[2])] if draw[3] < 0.25 else ABSENT
        uses = KIND_USES[kind]
        use = uses[int(len(uses) * draw[4])] if draw[5] < 0.4 else ABSENT
        brand = int(self.brands[shopper, int(3 * draw[6])]) if draw[7] < 0.12 else ABSENT
        return Intent(kind, colour, material, use, brand)


def spread(deviation: float, count: int, rng: Generator) -> NDArray[np.float64]:
    """Draw numbers of mean 0 and of just this standard deviation, so that no seed makes a shop of another kind."""
    drawn = rng.normal(size=count)
    return np.asarray(deviation * (drawn - drawn.mean()) / drawn.std())


def ask(intent: Intent, rng: Generator) -> str:
    """Put an intent into a shopper's words.

    Examples
    --------
    >>> query = ask(Intent(kind=13, colour=4, material=ABSENT, use=ABSENT, brand=ABSENT), np.random.default_rng(2))
    >>> query.split()[0]
    'red'
    """
    draw = rng.random(8)
    names = KINDS[intent.kind].shoppers
    parts = [_pick(names, draw[0])]
    if intent.material != ABSENT:
        parts.insert(0, _pick(MATERIALS[intent.material].shoppers, draw[1]))
    if intent.colour != ABSENT:
        parts.insert(0, _pick(COLOURS[intent.colour].shoppers, draw[2]))
    if intent.use != ABSENT:
        use = _pick(USES[intent.use].shoppers, draw[3])
        parts.insert(len(parts) if use.startswith(("for ", "without ")) or draw[4] < 0.3 else 0, use)
    if intent.brand != ABSENT:
        parts.insert(0 if draw[5] < 0.7 else len(parts), BRANDS[intent.brand].lower())
    query = " ".join(parts)
    return slip(query, rng) if draw[6] < MISSPELLED else query


def slip(query: str, rng: Generator) -> str:
    """Misspell one of the longer words: a letter dropped, doubled, swapped with the next, or another in its place."""
    words = query.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 4]
    if not long:
        return query
    draw = rng.random(4)
    index = long[int(len(long) * draw[0])]
    word = words[index]
    at = 1 + int((len(word) - 2) * draw[1])
    letter = _LETTERS[int(26 * draw[3])]
    words[index] = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + letter + word[at + 1 :],
    )[int(4 * draw[2])]
    return " ".join(words)


def _pick(words: tuple[str, ...], draw: float) -> str:
    """Pick a word; those listed first are more common."""
    return words[int(len(words) * draw**2.2)]
