"""A slate as the model saw it when it was shown."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.hashing import hash_text


def item_hash(item_id: str) -> int:
    """Return the hash by which `Vectors.items` knows an item: unsigned, 64 bits."""
    return hash_text(item_id) % 2**64


class Vectors(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A slate as the model saw it when it was shown: all that an open slate keeps. Never changed.

    Row r's slots that do not depend on position are ``slots[indptr[3r]:indptr[3r+1]]``. From there to ``indptr[3r+2]``
    come the slots of the position it was shown at, and from there to ``indptr[3r+3]`` those of position 0. The first
    two groups are the features as shown; the first and the third are the features of the position-free score.
    """

    at_ms: int
    """When it was shown, in milliseconds since the epoch."""
    request: int
    """Hash of the request: unsigned, 64 bits."""
    user: int
    """Hash of the user: unsigned, 64 bits."""
    query: int
    """Hash of the query in lower case: unsigned, 64 bits."""
    items: NDArray[np.uint64]
    """[n] hashes of the item ids, in the order of the slate."""
    positions: NDArray[np.uint16]
    """[n] the positions shown; 65,535 for all beyond."""
    seen: NDArray[np.bool_]
    """[n] whether the item was on screen; items that were not are not learned."""
    new: NDArray[np.bool_]
    """[n] whether the item had fewer than 20 (decayed) impressions."""
    indptr: NDArray[np.int32]
    """[3 n + 1] where the groups of slots begin and end."""
    slots: NDArray[np.uint32]
    """The slots of all rows, one group after the other."""

    def __len__(self) -> int:
        return len(self.items)

    def row(self, item_id: str) -> int:
        """Return the row of an item, or -1."""
        found = np.flatnonzero(self.items == np.uint64(item_hash(item_id)))
        return int(found[0]) if found.size else -1

    def one(self, row: int) -> Vectors:
        """Return one row alone, such as that of a clicked item that waits for its order."""
        start, end = self.indptr[3 * row], self.indptr[3 * row + 3]
        return Vectors(
            self.at_ms, self.request, self.user, self.query,
            self.items[row : row + 1].copy(), self.positions[row : row + 1].copy(),
            self.seen[row : row + 1].copy(), self.new[row : row + 1].copy(),
            self.indptr[3 * row : 3 * row + 4] - start, self.slots[start:end].copy(),
        )  # fmt: skip

    def state(self) -> tuple[Any, ...]:
        """Return numbers and arrays; ``Vectors(*state)`` is the same again."""
        return tuple(getattr(self, name) for name in self.__struct_fields__)
