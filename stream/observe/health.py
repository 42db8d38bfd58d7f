"""How a worker is: what it does, which partitions it holds, what it last ran into. Anyone may ask, from any thread.

The worker says what happens by short calls from its event loop. Each call replaces one immutable record, so who reads
it in another thread never sees half a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import NamedTuple

import msgspec

STALE_SECONDS = 10.0
"""An event loop that has said nothing for so long stands still."""

STARTING_SECONDS = 180.0
"""How long a worker may take until its loop turns, once it waits for nothing: a first start compiles for a minute."""

LAG_KNOWN_SECONDS = 30.0
"""For how long the last look at the lag counts."""

Key = tuple[str, int]
"""A stage, and the number of its partition or shard."""


class Readiness(msgspec.Struct, frozen=True):
    """What ``/readyz`` answers."""

    ready: bool
    state: str
    """In words: ``running``, ``restoring 3 of 6 partitions``, ``waiting for topics: clicks``."""
    missing: list[str]
    """What is not as it must be for a worker that is ready."""
    held: list[str]
    """Partitions that this worker was given, as ``stage-number``."""
    restored: list[str]
    """Those of them whose state is there."""
    lag: int | None
    """Records not yet taken; None: not known."""
    error: str
    """The last error; empty: there was none."""
    error_seconds: float | None
    """How long ago it was."""
    snapshot_seconds: float | None
    """Age of the oldest of the partitions' newest snapshots; None: none was written yet."""


class _Now(NamedTuple):
    told: str = "starting"
    """What the worker said it does; empty: what its partitions say."""
    held: frozenset[Key] = frozenset()
    restored: frozenset[Key] = frozenset()
    saved: tuple[tuple[str, float], ...] = ()
    """When each owner's newest snapshot was written."""
    lag: int | None = None
    lag_at: float = 0.0
    error: str = ""
    error_at: float = 0.0
    gives_up: str = ""
    stopping: bool = False
    beat: float | None = None


class Health:
    """How a worker is.

    Parameters
    ----------
    most_lag
        Records not yet taken, up to which a worker is ready.
    clock
        A monotonic clock in seconds.

    Examples
    --------
    >>> health = Health(most_lag=100, clock=lambda: 0.0)
    >>> health.assigned([("join", 0), ("learn", 0)])
    >>> health.restored(("join", 0))
    >>> health.readiness().state
    'restoring 1 of 2 partitions'
    """

    def __init__(self, most_lag: int, clock: Callable[[], float] = monotonic) -> None:
        self._most_lag, self._clock = most_lag, clock
        self._started = clock()
        self._now = _Now()

    # ---------------------------------------------------------------- what the worker says

    def beat(self) -> None:
        """Say that the event loop turns."""
        self._now = self._now._replace(beat=self._clock())

    def state(self, text: str) -> None:
        """Say what the worker does that its partitions do not tell: ``waiting for a broker``; empty: that is over.

        Before its loop turns this is a sign of life: who waits says it again and again.
        """
        self._started = self._clock()
        self._now = self._now._replace(told=text)

    def assigned(self, keys: Iterable[Key]) -> None:
        """Say which partitions were given to this worker; their state is not there yet."""
        now, new = self._now, frozenset(keys)
        self._now = now._replace(told="", held=now.held | new, restored=now.restored - new, lag=None)

    def restored(self, key: Key) -> None:
        """Say that the state of a partition is there."""
        self._now = self._now._replace(restored=self._now.restored | {key})

    def revoked(self, keys: Iterable[Key]) -> None:
        """Say which partitions have gone."""
        now, gone = self._now, frozenset(keys)
        owners = {name_of(key) for key in gone}
        saved = tuple(each for each in now.saved if each[0] not in owners)
        self._now = now._replace(held=now.held - gone, restored=now.restored - gone, saved=saved)

    def lag(self, records: int) -> None:
        """Say how many records of all partitions have not been taken."""
        self._now = self._now._replace(lag=records, lag_at=self._clock())

    def saved(self, owner: str) -> None:
        """Say that a snapshot of a partition, ``stage-number``, was written; of one that has gone it is forgotten."""
        if owner not in map(name_of, self._now.held):
            return
        others = tuple(each for each in self._now.saved if each[0] != owner)
        self._now = self._now._replace(saved=(*others, (owner, self._clock())))

    def error(self, text: str) -> None:
        """Note an error that the worker goes on after."""
        self._now = self._now._replace(error=text, error_at=self._clock())

    def gives_up(self, text: str) -> None:
        """Note an error that ends the worker."""
        self.error(text)
        self._now = self._now._replace(gives_up=text)

    def stopping(self) -> None:
        """Say that the worker ends; nothing that it says later makes it ready again."""
        self._now = self._now._replace(stopping=True)

    # ---------------------------------------------------------------- what others ask

    @property
    def lag_known(self) -> bool:
        """Whether anyone has looked at the lag since partitions came, and not too long ago."""
        return self._lag_of(self._now) is not None

    def alive(self) -> bool:
        """Return whether the event loop turns."""
        beat, limit = self._now.beat, STALE_SECONDS
        if beat is None:
            beat, limit = self._started, STARTING_SECONDS
        return self._clock() - beat <= limit

    def readiness(self) -> Readiness:
        """Return whether the worker is ready, and everything that says why not."""
        now, clock = self._now, self._clock()
        lag = self._lag_of(now)
        return Readiness(
            ready=not (missing := list(self._missing(now))),
            state=_state(now),
            missing=missing,
            held=sorted(map(name_of, now.held)),
            restored=sorted(map(name_of, now.restored)),
            lag=lag,
            error=now.error,
            error_seconds=round(clock - now.error_at, 1) if now.error else None,
            snapshot_seconds=round(clock - min(at for _, at in now.saved), 1) if now.saved else None,
        )

    def _lag_of(self, now: _Now) -> int | None:
        return now.lag if self._clock() - now.lag_at <= LAG_KNOWN_SECONDS else None

    def _missing(self, now: _Now) -> Iterable[str]:
        lag = self._lag_of(now)
        if not self.alive():
            yield "the event loop stands still"
        if now.gives_up:
            yield f"it gives up: {now.gives_up}"
        if now.stopping or now.told:
            yield _state(now)
        if not now.held:
            yield "no partition is assigned"
        elif waiting := sorted(map(name_of, now.held - now.restored)):
            yield f"not restored yet: {', '.join(waiting)}"
        elif lag is None:
            yield "the lag is not known"
        elif lag > self._most_lag:
            yield f"a lag of {lag} records, more than metrics.ready_lag = {self._most_lag}"


def name_of(key: Key) -> str:
    """Return a partition's name: that of its stage, and its number."""
    stage, number = key
    return f"{stage}-{number}"


def _state(now: _Now) -> str:
    if now.stopping:
        return "stopping"
    if now.told:
        return now.told
    if not now.held:
        return "waiting for partitions"
    if now.restored < now.held:
        return f"restoring {len(now.restored)} of {len(now.held)} partitions"
    return "running"
