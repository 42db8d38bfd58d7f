"""Names as numbers: whatever is counted by name stays bounded, however many names a shop has."""

from __future__ import annotations

from collections.abc import Sequence


class BoundedNames:
    """Numbers for names (of surfaces, say), from 0, in the order in which they first come.

    Parameters
    ----------
    most
        How many names get a number of their own; all further names share the number ``most``.
    names
        The names that have a number already, in its order.

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
        """The names with a number of their own, in its order; pass them to `BoundedNames` to continue."""
        return list(self._places)

    def place(self, name: str) -> int:
        """Return the number of a name; a new one gets the next number, while there is one."""
        place = self._places.get(name)
        if place is None:
            if len(self._places) == self._most:
                return self._most
            place = self._places[name] = len(self._places)
        return place
