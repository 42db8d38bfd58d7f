"""What the best possible predictions would have scored: only the demo, whose shop is simulated, knows the truth."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from heft.models.evaluate import formulas
from heft.stream.events.wire import Click
from heft.stream.shop.traffic import Arrival
from heft.stream.shop.truth import SlateTruth

_WINDOW = 50_000  # samples


class _Slate(NamedTuple):
    truth: SlateTruth
    clicked: set[str]


class Oracle:
    """What the true probabilities score on the newest slates whose labels are known."""

    def __init__(self) -> None:
        self._slates: deque[_Slate] = deque()
        self._by_request: dict[str, _Slate] = {}

    def see(self, arrival: Arrival) -> None:
        """Take note of what the shop sent."""
        truth, event = arrival.truth, arrival.event
        if truth is not None and not truth.bot:
            slate = self._by_request[truth.request_id] = _Slate(truth, set())
            self._slates.append(slate)
        elif isinstance(event, Click) and event.request_id in self._by_request:
            self._by_request[event.request_id].clicked.add(event.item_id)

    def scores(self, until_ms: int) -> tuple[float, float]:
        """Return AUC and NE over the newest samples of slates shown before ``until_ms``."""
        known = [slate for slate in self._slates if slate.truth.at_ms < until_ms]
        slates = known[-_WINDOW // 10 :]
        while self._slates and len(self._slates) > 3 * _WINDOW // 10:
            del self._by_request[self._slates.popleft().truth.request_id]
        p = np.array([each for slate in slates for each in slate.truth.click])
        labels = np.array([item in slate.clicked for slate in slates for item in slate.truth.items], np.uint8)
        if not labels.any():
            return float("nan"), float("nan")
        return formulas.auc(labels, p), formulas.logloss(labels, p) / formulas.entropy(float(labels.mean()))
