"""Faust's Kafka consumer, in whole batches, from the offsets of our own snapshots.

Faust's cost is per message, so a message here is a `Batch`: the records of one partition that have come. At every
assignment the stages are opened beside the consumer, which sends heartbeats from the first second on, however long that
takes; a partition is read from when its stage says where. It is handed out only while it is not held and its last
batches are done. The consumer commits for lag tools alone: commits are never read back from the broker.

Faust's loop, the consumer's own thread (consumer_thread.py) and rebalances run side by side. Every seek raises an
epoch, and records taken from aiokafka before the last seek are thrown away: none is handed out twice or left out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, TypeAlias, TypeVar, cast

import faust
import faust.types
from aiokafka.errors import ConsumerStoppedError, OffsetOutOfRangeError
from faust.transport.drivers import aiokafka as faust_aiokafka
from faust.types import TP, ConsumerMessage

from heft.stream.events.due_merge import DueMerge
from heft.stream.kafka.consumer_thread import POLL_SECONDS, Batch, ConsumerThread, Received, Taken
from heft.stream.kafka.offsets import Bounds, OffsetGoneError, settled

__all__ = ["TP", "Batch", "BatchConsumer", "Received", "consumer_of", "drive", "merge_by_due_time"]

T = TypeVar("T")

_SEEKING = -1
"""Stands for the epoch while a seek is under way: nothing is handed out then."""

BATCHES_AHEAD = 2
"""How many batches of one partition may be handed out and not done: one in work, one waiting."""


Starts: TypeAlias = Mapping[TP, int | None]
"""Where to start partitions; ``None`` or a negative number: at their beginning."""

OnAssigned: TypeAlias = Callable[[set[TP], int], Awaitable[Iterable[Coroutine[Any, Any, Starts]]]]
"""Called with all partitions of this worker and the generation of the group; must not take long.

Returns what opens them: each coroutine runs beside the others, and its partitions are read as soon as it returns. All
that are not done are cancelled when the partitions are taken away.
"""

OnRevoked: TypeAlias = Callable[[set[TP]], Awaitable[None]]
"""Awaited before the partitions may go to another worker, when none of their batches is handed out any more."""


class BatchConsumer(faust_aiokafka.Consumer):
    """The consumer of a worker. Faust makes it; `drive` says what it asks, and `consumer_of` returns it.

    Its own methods are called in Faust's loop. ``lost`` counts the offsets that were gone, where that is accepted.
    """

    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        transport = cast(_Transport, self.transport)
        self._on_assigned = transport.on_assigned
        self._on_revoked = transport.on_revoked
        self._accept_loss = transport.accept_loss
        self.lost: Counter[TP] = Counter()
        self._epoch = _SEEKING
        self._seeks = 0  # under way
        self._positions: dict[TP, int] = {}
        self._held: set[TP] = set()
        self._in_hand: Counter[TP] = Counter()
        self._changed = asyncio.Event()
        self._opening: list[asyncio.Task[None]] = []
        self._merged, self._made_from = transport.merged, transport.made_from
        self._merge: DueMerge[TP, Received] = DueMerge()
        self._kept_to: dict[TP, int] = {}  # where reading goes on after what the merge keeps
        self._more: dict[TP, bool] = {}  # whether there was more to take at the last look

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # ---------------------------------------------------------------- for the stages

    def hold(self, tp: TP) -> None:
        """Hand out no more of a partition for now; what has been fetched stays where it is."""
        self._held.add(tp)

    def release(self, tp: TP) -> None:
        """Hand out a held partition again."""
        if tp in self._held:
            self._held.discard(tp)
            self._wake()

    def done(self, batch: Batch) -> None:
        """Note that a batch has been dealt with, so that the next may come."""
        # Batches from before the last rebalance are no longer counted.
        if batch.generation == self.app.consumer_generation_id and self._in_hand[batch.tp] > 0:
            self._in_hand[batch.tp] -= 1
            if batch.tp.topic == self._merged:
                self._merge.done(batch.tp, batch.records, monotonic())
            self._wake()

    def next_offset(self, tp: TP) -> int:
        """Return where reading goes on after the last batch handed out, past offsets that hold no record."""
        return self._positions[tp]

    @property
    def assigned(self) -> frozenset[TP]:
        """The partitions that this worker reads."""
        return frozenset(self._positions)

    def idle_hand(self, tp: TP) -> bool:
        """Whether every batch handed out of this partition is done."""
        return not self._in_hand[tp]

    async def end_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Fetch the ends of partitions from the brokers: the offsets that the next records will get."""
        return await self._in_thread(self._thread.ends(list(tps)))

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commit where the stages are, so that lag tools show the truth; commits are never read back."""
        await self._in_thread(self._thread.commit_for_lag(offsets))

    # ---------------------------------------------------------------- assignments

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop handing out and opening, then let the stages finish what they have in hand."""
        await super().on_partitions_revoked(revoked)
        await self._stop_opening()
        try:
            await self._on_revoked(set(revoked))
        except Exception as error:
            await self.crash(error)
        for tp in revoked:
            self._positions.pop(tp, None)
        self._forget_hands()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin to open the stages: aiokafka sends the first heartbeat only when this has returned."""
        await self._stop_opening()
        self._forget_hands()
        self._positions = {}
        try:
            await self._in_thread(self._thread.hold(assigned))
            opening = await self._on_assigned(set(assigned), generation_id)
        except Exception as error:
            # If raised here, aiokafka would only log it and read the partition from anywhere.
            await self.crash(error)
            return
        await super().on_partitions_assigned(assigned, generation_id)
        self._opening = [asyncio.create_task(self._open_and_read(each)) for each in opening]

    async def on_stop(self) -> None:
        """Leave nothing behind that is still opening."""
        await self._stop_opening()
        await super().on_stop()

    async def _stop_opening(self) -> None:
        opening, self._opening = self._opening, []
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)

    async def _open_and_read(self, opening: Coroutine[Any, Any, Starts]) -> None:
        try:
            starts = await self._starts(await opening)
        except Exception as error:
            if not self.app.should_stop:  # else what it needs has been closed
                await self.crash(error)
            return
        self._positions |= starts
        await self.perform_seek()
        self._changed.set()

    async def _starts(self, wanted: Starts) -> dict[TP, int]:
        beginnings = await self._in_thread(self._thread.beginnings(wanted))
        starts = {}
        for tp, offset in wanted.items():
            if offset is None or offset < 0:
                offset = beginnings[tp]
            elif offset < beginnings[tp]:  # beyond the end is noticed with the first fetch
                offset = self._nearest(tp, offset, await self._bounds(tp))
            starts[tp] = offset
        return starts

    async def _bounds(self, tp: TP) -> Bounds:
        beginnings = await self._in_thread(self._thread.beginnings([tp]))
        ends = await self.end_offsets([tp])
        return Bounds(beginnings[tp], ends[tp])

    def _nearest(self, tp: TP, wanted: int, bounds: Bounds) -> int:
        """Return where to go on instead of at an offset that is gone; raise where losses are not accepted."""
        error = OffsetGoneError(tp, wanted, bounds)
        if not self._accept_loss:
            raise error
        self.lost[tp] += max(0, error.nearest - wanted)
        self.log.warning("loss accepted: %s", error)
        return error.nearest

    async def perform_seek(self) -> None:
        """Seek to where the stages are. Faust calls this after every rebalance, before records flow."""
        self._merge.drop()
        self._epoch = _SEEKING  # what was taken before is void from now on, and positions do not move meanwhile
        self._seeks += 1
        try:
            epoch = await self._in_thread(self._thread.seek_all(dict(self._positions)))
        finally:
            self._seeks -= 1
        if not self._seeks:  # stages that open side by side seek side by side; between two seeks records come twice
            self._epoch = epoch

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to where the stages are and return that: the broker's commits do not count here."""
        await self.perform_seek()
        return self._positions

    # ---------------------------------------------------------------- records

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                if not self.flow_active:
                    await self.wait(cast(Any, self.can_resume_flow))
                    continue
                self._changed.clear()
                await self._hand_out_merged()
                wanted = {tp for tp in self._active_partitions if self._open(tp)}
                if not wanted:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)
                    continue
                try:
                    taken = await self._in_thread(self._thread.take(wanted, self._changed.is_set))
                except OffsetOutOfRangeError as error:
                    await self._go_on_from({faust.types.TP(*tp): offset for tp, offset in error.args[0].items()})
                    continue
                await self._hand_out_all(taken)
                # Not every broker refuses to fetch beyond the end.
                at = self._positions
                beyond = {tp: at[tp] for tp, end in taken.ends.items() if tp in at and at[tp] > end}
                if beyond and self._current(taken):
                    await self._go_on_from(beyond)
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.app.should_stop:
                raise

    def _current(self, taken: Taken) -> bool:
        """Whether no seek has come since, which brings the same records again, and they may be handed out."""
        return taken.epoch == self._epoch and self.flow_active

    def _open(self, tp: TP) -> bool:
        free = tp in self._positions and tp not in self._held and self._in_hand[tp] < BATCHES_AHEAD
        return free and not self._merge.keeps(tp)

    async def _go_on_from(self, gone: Mapping[TP, int]) -> None:
        """Look whether the records at these offsets are gone; if so, end, or go on elsewhere where that is accepted."""
        found = await asyncio.gather(*[settled(partial(self._bounds, tp), offset) for tp, offset in gone.items()])
        for (tp, offset), bounds in zip(gone.items(), found, strict=True):
            if not bounds.can_go_on_at(offset):
                self._positions[tp] = self._nearest(tp, offset, bounds)
        await self.perform_seek()

    async def _hand_out_all(self, taken: Taken) -> None:
        if not self._current(taken):
            await self._read_again(taken)
            return
        for tp, position in taken.positions.items():
            self._more[tp] = position < taken.ends.get(tp, 0)
            if tp not in taken.records and tp in self._positions:
                self._positions[tp] = position  # nothing but offsets without a record lay between
        for tp, records in taken.records.items():
            if not self._current(taken):  # a rebalance while the last batch was handed over
                await self._read_again(taken)
                return
            if tp.topic == self._merged:
                self._kept_to[tp] = taken.positions[tp]
                self._merge.keep(tp, records, monotonic())
            else:
                await self._hand_out(tp, records, taken.positions[tp])
        await self._hand_out_merged()

    async def _read_again(self, taken: Taken) -> None:
        """Seek, where none has come since: the flow goes on some time after a rebalance's last seek."""
        if taken.records and taken.epoch == self._epoch:
            await self.perform_seek()

    async def _hand_out_merged(self) -> None:
        """Hand out what the merge keeps, as far as no partition is far ahead of another that has more to come."""
        while self._epoch != _SEEKING and self.flow_active:
            mine = [tp for tp in self._positions if tp.topic == self._merged]
            at_work = [tp for tp in mine if self._in_hand[tp]]
            ready = [tp for tp in mine if tp not in self._held and self._in_hand[tp] < BATCHES_AHEAD]
            more = [tp for tp in mine if self._more_to_come(tp)]
            taken = self._merge.take(ready, at_work, more, monotonic())
            if taken is None:
                return
            tp, records = taken
            await self._hand_out(tp, records, records[-1].offset + 1 if self._merge.keeps(tp) else self._kept_to[tp])

    def _more_to_come(self, tp: TP) -> bool:
        """Whether a partition has more, or what it is made from, where that is read here."""
        sources = [TP(topic, tp.partition) for topic in self._made_from]
        return any(self._more.get(each) or self._in_hand[each] for each in [tp, *sources])

    async def _hand_out(self, tp: TP, records: list[Received], position: int) -> None:
        generation = self.app.consumer_generation_id
        batch = Batch(tp, records, position, generation)
        first, last = records[0], records[-1]
        seconds, by_whose_clock = last.timestamp_ms / 1000, 0  # nobody here asks
        message = ConsumerMessage(
            tp.topic, tp.partition, first.offset, seconds, by_whose_clock, None, None, cast(Any, batch),
            checksum=None, tp=tp, generation_id=generation,
        )  # fmt: skip
        # Before the batch is handed over: a rebalance in the middle of that sets the position last.
        self._positions[tp] = batch.end_offset
        self._in_hand[tp] += 1
        await self.callback(message)

    # ---------------------------------------------------------------- inside

    def _forget_hands(self) -> None:
        self._in_hand.clear()
        self._merge.forget()
        self._more.clear()
        self._held.clear()
        self._changed.set()

    def _wake(self) -> None:
        self._changed.set()
        if self._thread._consumer is not None:
            self._thread.thread_loop.call_soon_threadsafe(self._thread.wake)

    async def _in_thread(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run in the consumer's thread; Faust's queue of methods would let a wait for records hold up all others."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._thread.thread_loop))

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Commit nothing when Faust asks; see `commit_offsets`."""
        return False

    def verify_event_path(self, now: float, tp: TP) -> None:
        """See `ConsumerThread.verify_event_path`."""


class _Producer(faust_aiokafka.Producer):
    """Faust starts a producer whether it is used or not; this one connects with the settings of all clients."""

    def _settings_auth(self) -> Mapping[str, Any]:
        return cast(_Transport, self.transport).client


class _Transport(faust_aiokafka.Transport):
    Consumer = BatchConsumer
    Producer = _Producer
    client: Mapping[str, Any]
    on_assigned: OnAssigned
    on_revoked: OnRevoked
    accept_loss: bool
    together: Sequence[Sequence[str]]
    instance: str
    merged: str = ""
    made_from: Sequence[str] = ()


def drive(
    app: faust.App,
    client: Mapping[str, Any],
    on_assigned: OnAssigned,
    on_revoked: OnRevoked,
    *,
    together: Sequence[Sequence[str]],
    instance: str = "",
    accept_loss: bool = False,
) -> None:
    """Give an app the batch consumer; call before the app starts.

    Parameters
    ----------
    app
        An `App`, made with `faust_settings`. Its agents read raw topics through ``stream.noack()`` and call
        ``consumer_of(app).done(batch)`` for every `Batch` they have dealt with.
    client
        How to connect: ``bootstrap_servers`` and security, as aiokafka's clients take them.
    on_assigned
        Returns what opens the partitions; called once for each generation of the group, with all that are assigned.
    on_revoked
        Awaited when partitions are taken away. None of their batches is handed out any more.
    together
        Topics that are read together: partition p of all of them goes to the same worker.
    instance
        A name that this worker keeps over a restart; empty: none. One that is back within a session moves nothing.
    accept_loss
        Whether to go on, and count in ``consumer.lost``, where records to go on from are gone.
    """
    transport = _Transport(app.conf.broker_consumer, app)
    transport.client, transport.accept_loss = client, accept_loss
    transport.together, transport.instance = together, instance
    transport.on_assigned, transport.on_revoked = on_assigned, on_revoked
    app.transport = transport


def merge_by_due_time(app: faust.App, topic: str, made_from: Sequence[str]) -> None:
    """Let the partitions of a topic, whose records say when they are due, advance together; call after `drive`.

    ``made_from``: its partition p is made from partition p of these. While one has more, more of the topic will come.
    """
    transport = cast(_Transport, app.transport)
    transport.merged, transport.made_from = topic, made_from


def consumer_of(app: faust.App) -> BatchConsumer:
    """Return the consumer that `drive` gave an app."""
    return cast(BatchConsumer, app.consumer)
