"""What the simulated shop sells: products with titles, features and prices, some new each day.

Every quantity is an array over *places*; a product that goes makes its place free for a new one of the same kind, so
the catalogue never grows. Nothing here knows who buys.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from heft.models.records import Value
from heft.stream.shop.words import BRANDS, CATEGORIES, COLOURS, KINDS, MATERIALS, SERIES, USES, Meaning

CATEGORY_NAMES = tuple(CATEGORIES)
ABSENT = -1
"""A product without a use, or a query that asks for none."""

_MATERIAL = {meaning.name: index for index, meaning in enumerate(MATERIALS)}
_USE = {meaning.name: index for index, meaning in enumerate(USES)}
KIND_CATEGORY = np.array([CATEGORY_NAMES.index(kind.category) for kind in KINDS])
"""[kinds] category of each kind."""
KIND_MATERIALS = tuple(tuple(_MATERIAL[name] for name in CATEGORIES[kind.category].materials) for kind in KINDS)
KIND_USES = tuple(tuple(_USE[name] for name in CATEGORIES[kind.category].uses) for kind in KINDS)

_PRICE_CLASSES = ("cheap", "low", "middle", "high", "premium")
_PRICE_BOUNDS = (-0.5, -0.2, 0.1, 0.45)  # of the relative price
_TAGS = ("sale", "new", "bestseller", "eco")


class Catalogue:
    """The products on sale.

    Parameters
    ----------
    products
        How many are on sale at any time; at least one of each kind.
    new_each_day
        How many of them are replaced each midnight.
    rng
        Draws everything, and nothing else draws from it.

    Attributes
    ----------
    kind, category, brand, colour, material, use : int64 [products]
        Numbers into the tables of `stream.shop.words`; ``use`` may be `ABSENT`.
    relative_price : float64 [products]
        Logarithm of the price over the middle of the kind's range.
    rating : float64 [products]
        Stars, 1 to 5, in steps of 0.1.
    on_sale, bestseller : bool [products]
    fame : float64 [products]
        How readily the shop finds the product for a query; positive.
    quality : float64 [products]
        What makes a product liked beyond all that is said of it; standard deviation 1.
    listed_ms : int64 [products]
        When it came.
    """

    def __init__(self, products: int, new_each_day: int, start_ms: int, rng: Generator) -> None:
        if products < len(KINDS):
            msg = f"shop: products is {products}; expected at least {len(KINDS)}, one of each kind"
            raise ValueError(msg)
        self.new_each_day = new_each_day
        self._rng = rng
        self._made = 0
        popularity = rng.dirichlet(np.full(len(KINDS), 4.0))
        rest = rng.choice(len(KINDS), size=products - len(KINDS), p=popularity)
        self.kind = np.sort(np.concatenate([np.arange(len(KINDS)), rest]))
        self.category = KIND_CATEGORY[self.kind]
        self.brand_tier = rng.normal(0.0, 0.35, len(BRANDS))
        """[brands] logarithm of how much dearer than others a brand is."""
        self._category_brands = [rng.choice(len(BRANDS), size=14, replace=False) for _ in CATEGORY_NAMES]
        self.of_kind = [np.flatnonzero(self.kind == kind) for kind in range(len(KINDS))]
        self.of_category = [np.flatnonzero(self.category == each) for each in range(len(CATEGORY_NAMES))]
        for name in ("brand", "colour", "material", "use", "listed_ms"):
            setattr(self, name, np.zeros(products, np.int64))
        self.brand: NDArray[np.int64]
        self.colour: NDArray[np.int64]
        self.material: NDArray[np.int64]
        self.use: NDArray[np.int64]
        self.listed_ms: NDArray[np.int64]
        self.base_price = np.zeros(products)
        self.relative_price = np.zeros(products)
        self.rating = np.zeros(products)
        self.fame = np.zeros(products)
        self.quality = np.zeros(products)
        self.on_sale = np.zeros(products, np.bool_)
        self.bestseller = np.zeros(products, np.bool_)
        self._eco = np.zeros(products, np.bool_)
        self._fresh = np.zeros(products, np.bool_)
        self.prices = [0.0] * products
        self.ids = [""] * products
        self.titles = [""] * products
        self.words: list[frozenset[str]] = [frozenset()] * products
        self.features: list[dict[str, Value]] = [{}] * products
        for place in range(products):
            # The first products are a year old: none of them is new.
            self._stock(place, start_ms - 365 * 86_400_000)
        self._price()

    def __len__(self) -> int:
        return len(self.ids)

    def midnight(self, at_ms: int) -> None:
        """Let prices drift and sales change, and replace some products by new ones."""
        self.base_price += self._rng.normal(0.0, 0.02, len(self))
        self._fresh = at_ms - self.listed_ms < 2 * 86_400_000
        turn = self._rng.random(len(self))
        self.on_sale = np.where(self.on_sale, turn < 0.7, turn < 0.03)
        for place in self._rng.choice(len(self), size=self.new_each_day, replace=False):
            self._stock(int(place), at_ms)
        self._price()

    def _stock(self, place: int, at_ms: int) -> None:
        rng = self._rng
        kind = int(self.kind[place])
        brands = self._category_brands[int(self.category[place])]
        self._made += 1
        self.ids[place] = f"p{self._made:06d}"
        self.brand[place] = brands[int(len(brands) * rng.random() ** 1.5)]
        self.colour[place] = int(len(COLOURS) * rng.random())
        self.material[place] = KIND_MATERIALS[kind][int(4 * rng.random())]
        uses = KIND_USES[kind]
        self.use[place] = uses[int(len(uses) * rng.random())] if rng.random() < 0.75 else ABSENT
        self.base_price[place] = self.brand_tier[self.brand[place]] + rng.normal(0.0, 0.3)
        self.rating[place] = round(min(5.0, max(1.0, 4.0 + 0.6 * rng.normal())), 1)
        self.fame[place] = np.exp(0.8 * rng.normal())
        self.quality[place] = rng.normal()
        self.on_sale[place] = rng.random() < 0.1
        self.bestseller[place] = self.fame[place] > 2.5
        self._eco[place] = rng.random() < 0.12
        self._fresh[place] = at_ms > 0 and self._made > len(self)
        self.listed_ms[place] = at_ms
        self.titles[place] = self._title(place)
        self.words[place] = frozenset(self.titles[place].lower().replace(",", "").split())

    def _title(self, place: int) -> str:
        rng = self._rng
        kind = KINDS[int(self.kind[place])]
        size = CATEGORIES[kind.category].sizes
        name = kind.sellers[int(len(kind.sellers) * rng.random())]
        use = "" if self.use[place] == ABSENT else _seller(USES[int(self.use[place])], rng.random()) + " "
        start = f"{BRANDS[int(self.brand[place])]} {SERIES[int(len(SERIES) * rng.random())]}"
        material = _seller(MATERIALS[int(self.material[place])], rng.random())
        colour = _seller(COLOURS[int(self.colour[place])], rng.random())
        end = size[int(len(size) * rng.random())]
        if rng.random() < 0.5:
            return f"{start} {use}{name}, {material}, {colour}, {end}"
        return f"{start} {use}{material} {name} {colour} {end}"

    def _price(self) -> None:
        """Set prices as shown and all that follows from them."""
        self.relative_price = self.base_price - np.where(self.on_sale, 0.22, 0.0)
        middle = np.array([kind.price for kind in KINDS])[self.kind]
        self.prices = np.round(np.maximum(middle * np.exp(self.relative_price), 1.0), 1).tolist()
        classes = np.digitize(self.relative_price, _PRICE_BOUNDS).tolist()
        for place in range(len(self)):
            flags = (self.on_sale[place], self._fresh[place], self.bestseller[place], self._eco[place])
            self.features[place] = {
                "brand": BRANDS[int(self.brand[place])],
                "category": CATEGORY_NAMES[int(self.category[place])],
                "price": self.prices[place],
                "price_class": _PRICE_CLASSES[classes[place]],
                "rating": float(self.rating[place]),
                "colour": COLOURS[int(self.colour[place])].name,
                "tags": [tag for tag, flag in zip(_TAGS, flags, strict=True) if flag],
            }


def _seller(meaning: Meaning, draw: float) -> str:
    return meaning.sellers[int(len(meaning.sellers) * draw)]
