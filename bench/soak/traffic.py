"""The simulated shop's traffic in real time, from a thread: it waits while the broker is away, as good producers do."""

from __future__ import annotations

import threading
from collections import Counter
from time import time_ns

from heft.stream.config.settings import Config
from heft.stream.events.wire import Event
from heft.stream.kafka.publish import Publisher
from heft.stream.shop.simulate import paced
from heft.stream.shop.traffic import Shop, ShopConfig

_MIDNIGHT = 0.576  # share of an average hour's visits that come in the shop's first
_VISIT_BEGINS = 60_000  # event time that the shop has been open for when it is first watched: visits are under way
_DAY = 86_400


class Traffic(threading.Thread):
    """Publishes a shop's events as they happen until `end`; `hold` keeps them back, `release` sends them all.

    Parameters
    ----------
    config
        The cluster and its topics.
    rate
        Slates a second.
    seed
        Which shop.
    """

    def __init__(self, config: Config, rate: float, seed: int = 1) -> None:
        super().__init__(name="traffic", daemon=True)
        self.sent: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._config = config
        daily = round(rate * _DAY / _MIDNIGHT)
        opened = time_ns() // 1_000_000 - _VISIT_BEGINS
        self._shop = Shop(
            ShopConfig(requests_per_day=daily, start_ms=opened, shoppers=max(3_000, daily // 1_000)), seed
        )
        self._wanted = threading.Event()
        self._wanted.set()
        self._quiet, self._ended = threading.Event(), threading.Event()

    def hold(self) -> None:
        """Keep events back from now on; returns when all before have been acknowledged."""
        self._quiet.clear()
        self._wanted.clear()
        while not self._quiet.wait(0.1) and self.is_alive():
            pass

    def release(self) -> None:
        """Send what was kept back, and go on."""
        self._wanted.set()

    def end(self) -> None:
        """Send what has happened, and stop."""
        self._wanted.set()
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Publish until `end`; what goes wrong is kept for `check`."""
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def _run(self) -> None:
        publisher: Publisher | None = Publisher(self._config)
        waiting: list[Event] = []
        # The shop has been open for a minute: its slates of then are not sent, so their clicks are orphans.
        arrivals = self._shop.arrivals()
        opened = self._shop.config.start_ms + _VISIT_BEGINS
        after = (arrival for arrival in arrivals if arrival.event.at_ms >= opened)
        for batch in paced(after, opened, 1.0):
            waiting += [arrival.event for arrival in batch]
            if self._wanted.is_set():
                publisher = publisher or Publisher(self._config)
                for event in waiting:
                    publisher.send(event)
                waiting.clear()
            elif publisher is not None:
                self._close(publisher)
                publisher = None
                self._quiet.set()
            if self._ended.is_set():
                break
        if publisher is not None:
            self._close(publisher)

    def _close(self, publisher: Publisher) -> None:
        publisher.close()
        self.sent += publisher.sent

    def check(self) -> None:
        """Raise what ended it."""
        if self.error is not None:
            raise self.error
