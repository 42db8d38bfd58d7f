"""Slates whose click window runs, and what has been clicked in them."""

from __future__ import annotations

from typing import Any

import msgspec

from heft.stream.join.columns import packed
from heft.stream.join.fifo_map import Fifo
from heft.stream.join.state import OpenSlate, OpenSlatesState

_clicked_items = msgspec.msgpack.Decoder(tuple[str, ...]).decode


class OpenSlates:
    """Open slates, in the order in which they were shown, which is the order in which they close."""

    def __init__(self) -> None:
        self._slates: Fifo[str, OpenSlate] = Fifo(OpenSlate, "request_id")
        self._clicked: dict[str, tuple[str, ...]] = {}  # request -> items, of the slates that have clicks
        self.queue = self._slates.queue
        """Oldest first: to look at, where a call for each look would take longer than the look."""

    def __len__(self) -> int:
        return len(self._slates)

    def __contains__(self, request: str) -> bool:
        return request in self._slates

    def get(self, request: str) -> OpenSlate | None:
        """Return a slate, None without one."""
        return self._slates.get(request)

    def add(self, slate: OpenSlate) -> None:
        """Take a slate whose request is not here."""
        self._slates.add(slate)

    def click(self, request: str, item: str) -> None:
        """Note a click on an item of a slate that is here."""
        self._clicked[request] = (*self._clicked.get(request, ()), item)

    def clicked(self, request: str, item: str) -> bool:
        """Whether an item of a slate has been clicked."""
        return item in self._clicked.get(request, ())

    def pop_oldest(self) -> OpenSlate:
        """Remove and return the slate that was shown first."""
        slate = self._slates.pop_oldest()
        self._clicked.pop(slate.request_id, None)
        return slate

    def state(self) -> dict[str, Any]:
        """Return a copy of everything."""
        requests, items = list(self._clicked), packed(list(self._clicked.values()))
        return {"slates": self._slates.state(), "clicked": requests, "items": items}

    def restore(self, state: OpenSlatesState) -> None:
        """Go on from what `state` became when it was written."""
        self._slates.restore(state.slates)
        self._clicked.update(zip(state.clicked, map(_clicked_items, state.items), strict=True))
