"""BoundedNames as numbers: whatever is counted by surface stays bounded, however many names a shop has."""

from __future__ import annotations

from collections.abc import Sequence


class BoundedNames:
    """Numbers for surfaces, from 0, in the order in which they come.

    Parameters
    ----------
    most
        How many have a number of their own; all further ones share the number ``most``.
    names
        Those known already, in their order.

    Examples
    --------
    >>> surfaces = BoundedNames(most=2)
    >>> [surfaces.place(name) for name in ("search", "home", "mail", "search")], surfaces.names
    ([0, 1, 2, 0], ['search', 'home'])
    """

    def __init__(self, most: int, names: Sequence[str] = ()) -> None:
        self._most = most
        self._places = {name: place for place, name in enumerate(names)}

    @property
    def names(self) -> list[str]:
        """Those with a number of their own, in its order: what `BoundedNames` begins with to go on."""
        return list(self._places)

    def place(self, surface: str) -> int:
        """Return the number of a surface."""
        place = self._places.get(surface)
        if place is None:
            if len(self._places) == self._most:
                return self._most
            place = self._places[surface] = len(self._places)
        return place
