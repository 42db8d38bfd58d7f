"""The snapshot store as a worker uses it: in a thread of its own, and with patience.

A store may fail for a while: a full disk, a share that is being mounted again, a busy object store. Failures are
counted and tried again after pauses that grow, and learning goes on meanwhile. Only a store that stays away ends the
worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random
from time import monotonic
from typing import NamedTuple, TypeVar

from heft.stream.state.codec import State
from heft.stream.state.pauses import RETRIES, pause_after
from heft.stream.state.store import Name, SnapshotStore, StoreError

T = TypeVar("T")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
"""Seconds. A worker that stops waits for at most one such pause."""

log = logging.getLogger(RETRIES)


class StoreAwayError(RuntimeError):
    """The store has failed for too long. The message names it, its last error, and what to do."""


class _Failing(NamedTuple):
    since: float
    times: int
    error: StoreError


class PatientStore:
    """A snapshot store for the event loop of a worker.

    Parameters
    ----------
    store
        The store itself.
    patience_ms
        For how long it may fail, in milliseconds.
    clock, sleep
        A monotonic clock in seconds, and how to wait for some seconds.
    """

    def __init__(
        self,
        store: SnapshotStore,
        patience_ms: int,
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.store = store
        self.failures = 0
        self.last_error = ""
        self._patience = patience_ms / 1000
        self._clock, self._sleep = clock, sleep
        self._chance = Random()  # workers that share a store should not come back all at once
        self._failing: dict[str, _Failing] = {}  # by owner: a full disk takes small files and refuses large ones
        self._stopping = False
        # One thread, so that snapshots are written in the order in which they were taken.
        self._thread = ThreadPoolExecutor(1, "snapshots")

    @property
    def away_seconds(self) -> float:
        """For how many seconds the store has failed, for the owner it failed longest; 0 while all is well."""
        return max((self._clock() - each.since for each in list(self._failing.values())), default=0.0)

    def pause_seconds(self, interval: float) -> float:
        """Return the seconds to wait until the next round of snapshots: ``interval``, or less where one has failed."""
        times = max((each.times for each in self._failing.values()), default=0)
        return min(interval, self._pause(times)) if times else interval

    async def latest(self, owner: str, lineage: str) -> tuple[Name, State, dict[str, State]] | None:
        """Return what `SnapshotStore.latest` finds; wait while the store fails."""
        return await self._until_done(owner, partial(self.store.latest, owner, lineage))

    async def save(
        self, name: Name, state: State, segments: Iterable[tuple[str, Callable[[], State]]]
    ) -> int:  # fmt: skip
        """Write a snapshot, and wait until that has succeeded; return the bytes written."""
        return await self._until_done(name.owner, partial(self.store.save, name, state, segments))

    async def try_save(
        self, name: Name, state: State, segments: Iterable[tuple[str, Callable[[], State]]]
    ) -> int | None:
        """Write a snapshot; return the bytes written, or None if that failed and a newer snapshot should follow."""
        try:
            return await self._do(name.owner, partial(self.store.save, name, state, segments))
        except StoreError:
            return None

    def check(self) -> None:
        """Raise `StoreAwayError` if the store has failed for too long."""
        for failing in self._failing.values():
            away = self._clock() - failing.since
            if away >= self._patience:
                msg = (
                    f"snapshots.url {self.store.url}: away for {away:.0f} s, longer than snapshots.patience; the last "
                    f"error: {failing.error}. Mend the store (space, rights, network; `heft doctor` tries it) and "
                    "start again: what came after the newest snapshot is done again"
                )
                raise StoreAwayError(msg) from failing.error

    def forget(self, owner: str) -> None:
        """Forget the failures of an owner whose partition has gone."""
        self._failing.pop(owner, None)

    def stop_waiting(self) -> None:
        """Stop retrying: the next error of the store is raised to whoever waits for it."""
        self._stopping = True

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _until_done(self, owner: str, work: Callable[[], T]) -> T:
        while True:
            try:
                return await self._do(owner, work)
            except StoreError:
                if self._stopping:
                    raise
                self.check()
                await self._sleep(self._pause(self._failing[owner].times))

    async def _do(self, owner: str, work: Callable[[], T]) -> T:
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except StoreError as error:
            self.failures += 1
            self.last_error = str(error)
            before = self._failing.get(owner)
            since, times = (before.since, before.times) if before else (self._clock(), 0)
            self._failing[owner] = _Failing(since, times + 1, error)
            log.warning("the snapshot store failed %s, time %d; it is tried again: %s", owner, times + 1, error)
            raise
        self.forget(owner)
        return done

    def _pause(self, times: int) -> float:
        return pause_after(times, FIRST_PAUSE, LONGEST_PAUSE, self._chance)
