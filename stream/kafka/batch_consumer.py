"""Faust's Kafka consumer, in whole batches, from the offsets of our own snapshots.

Faust spends its time per message, so a message here is a `Batch`: what aiokafka has fetched of one partition. The
consumer asks where to start at every assignment, hands a partition out only while it is not held and its last batches
are done, and commits for lag tools alone: nothing is ever read back from the broker's commits.

Three threads of control meet: Faust's loop, the consumer's own thread (consumer_thread.py), and rebalances. Every seek
raises an epoch; records drained from aiokafka before the last seek are thrown away, so nothing is handed on twice or
skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import faust
import faust.types
from aiokafka.errors import ConsumerStoppedError, OffsetOutOfRangeError
from faust.transport.drivers import aiokafka as faust_aiokafka
from faust.types import TP, ConsumerMessage
from mode.supervisors import CrashingSupervisor

from heft.stream.events.due_header import since_ms
from heft.stream.kafka.consumer_thread import POLL_SECONDS, ConsumerThread

__all__ = [
    "TP",
    "App",
    "Batch",
    "BatchConsumer",
    "OffsetGoneError",
    "Received",
    "consumer_of",
    "drive",
    "faust_settings",
]

T = TypeVar("T")

BATCHES_AHEAD = 2
"""Batches of one partition handed out and not done: one in work, one waiting."""

_LOOKS_BEYOND_THE_END = 10  # before a topic counts as cut


class Received(NamedTuple):
    """One record of a topic, as it came."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    due_since_ms: int  # as in `stream.events.due_header`


class Batch(NamedTuple):
    """Records of one partition in the order of their offsets; reading goes on at ``end_offset``."""

    tp: TP
    records: list[Received]
    end_offset: int
    generation: int


class App(faust.App):
    """A Faust app that puts nothing on disk."""

    def _create_directories(self) -> None:
        """Make none of Faust's folders for tables: stages have no tables, and a kill would leave the folders behind."""


OffsetsFor: TypeAlias = Callable[[set[TP]], Awaitable[Mapping[TP, int | None]]]
"""Where to start each assigned partition; ``None`` or a negative number: at its beginning."""

OnRevoked: TypeAlias = Callable[[set[TP]], Awaitable[None]]
"""Awaited before the partitions go to someone else."""


class OffsetGoneError(RuntimeError):
    """The records to go on from are not in the topic; the message names both ends."""

    def __init__(self, tp: TP, wanted: int, beginning: int, end: int) -> None:
        why = "retention has deleted what lies between" if wanted < beginning else "the topic was made anew or cut"
        super().__init__(
            f"{tp.topic}-{tp.partition}: expected to go on at offset {wanted}, but the topic holds {beginning} to "
            f"{end}: {why}. Restore the topic, or start with --accept-loss to go on at {_nearest(wanted, beginning)}."
        )
        self.tp, self.wanted, self.beginning, self.end = tp, wanted, beginning, end

    @property
    def nearest(self) -> int:
        """Where to go on when the loss is accepted."""
        return _nearest(self.wanted, self.beginning)


def _nearest(wanted: int, beginning: int) -> int:
    """Return where to go on when ``wanted`` is not there: records of a topic made anew are all new."""
    return max(wanted, beginning) if wanted < beginning else beginning


class BatchConsumer(faust_aiokafka.Consumer):
    """The consumer of a worker. Methods without an underscore are for its stages, in Faust's loop."""

    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        transport = cast(_Transport, self.transport)
        self._offsets_for = transport.offsets_for
        self._on_revoked = transport.on_revoked
        self._accept_loss = transport.accept_loss
        self.lost: Counter[TP] = Counter()
        self._epoch = -1
        self._positions: dict[TP, int] = {}
        self._held: set[TP] = set()
        self._in_hand: Counter[TP] = Counter()
        self._changed = asyncio.Event()

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # ---------------------------------------------------------------- for the stages

    def hold(self, tp: TP) -> None:
        """Take no more of a partition for now; what is fetched stays where it is."""
        self._held.add(tp)

    def release(self, tp: TP) -> None:
        """Go on with a held partition."""
        if tp in self._held:
            self._held.discard(tp)
            self._wake()

    def done(self, batch: Batch) -> None:
        """Say that a batch has been dealt with, so that the next may come."""
        # A batch of before the last rebalance has been forgotten already.
        if batch.generation == self.app.consumer_generation_id and self._in_hand[batch.tp] > 0:
            self._in_hand[batch.tp] -= 1
            self._wake()

    def next_offset(self, tp: TP) -> int:
        """Return the offset after the last batch handed out."""
        return self._positions[tp]

    @property
    def assigned(self) -> frozenset[TP]:
        """The partitions that this worker reads."""
        return frozenset(self._positions)

    def idle_hand(self, tp: TP) -> bool:
        """Whether every batch handed out of this partition is done."""
        return not self._in_hand[tp]

    async def end_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Fetch end offsets from the brokers: what is appended next gets this offset."""
        return await self._in_thread(self._thread.ends(list(tps)))

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Tell the broker what snapshots hold, so that lag tools show the truth; never read back."""
        await self._in_thread(self._thread.commit_for_lag(offsets))

    # ---------------------------------------------------------------- assignments

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop handing out, then let the stages finish or drop what they have in hand."""
        await super().on_partitions_revoked(revoked)
        try:
            await self._on_revoked(set(revoked))
        except Exception as error:
            await self.crash(error)
        for tp in revoked:
            self._positions.pop(tp, None)
        self._forget_hands()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Ask once a generation where to start; later seeks are answered from memory."""
        self._forget_hands()
        self._positions = {}
        try:
            self._positions = await self._starts(set(assigned))
        except Exception as error:
            # Raised here it would end in aiokafka's log, and the partition would be read from anywhere.
            await self.crash(error)
            return
        await super().on_partitions_assigned(assigned, generation_id)

    async def _starts(self, assigned: set[TP]) -> dict[TP, int]:
        if not assigned:
            return {}
        wanted = await self._offsets_for(assigned)
        beginnings = await self._in_thread(self._thread.beginnings(assigned))
        starts = {}
        for tp in assigned:
            offset = wanted.get(tp)
            if offset is None or offset < 0:
                offset = beginnings[tp]
            elif offset < beginnings[tp]:
                ends = await self.end_offsets([tp])
                offset = self._gone(OffsetGoneError(tp, offset, beginnings[tp], ends[tp]))
            starts[tp] = offset
        return starts

    def _gone(self, error: OffsetGoneError) -> int:
        if not self._accept_loss:
            raise error
        self.lost[error.tp] += max(0, error.nearest - error.wanted)
        self.log.warning("loss accepted: %s", error)
        return error.nearest

    async def perform_seek(self) -> None:
        """Go where the stages are. Faust calls this after every rebalance, before records flow."""
        self._epoch = await self._in_thread(self._thread.seek_all(self._positions))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Return where the stages are: in this project no other commits count."""
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
                wanted = {tp for tp in self._active_partitions if self._open(tp)}
                if not wanted:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)
                    continue
                try:
                    epoch, taken, ends = await self._in_thread(self._thread.take(wanted))
                except OffsetOutOfRangeError as error:
                    await self._go_on_from({faust.types.TP(*tp): offset for tp, offset in error.args[0].items()})
                    continue
                # What was drained before the last seek will come again; after a stop of the flow a seek will come.
                if epoch == self._epoch and self.flow_active:
                    for tp, records in taken.items():
                        await self._hand_out(faust.types.TP(*tp), records)
                    # Not every broker refuses to fetch beyond the end.
                    at = self._positions
                    beyond = {tp: at[tp] for tp, end in ends.items() if tp in at and at[tp] > end}
                    if beyond:
                        await self._go_on_from(beyond)
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.app.should_stop:
                raise

    def _open(self, tp: TP) -> bool:
        return tp in self._positions and tp not in self._held and self._in_hand[tp] < BATCHES_AHEAD

    async def _go_on_from(self, gone: Mapping[TP, int]) -> None:
        """Records at these offsets are not there: end, or go on at the nearest when loss is accepted."""
        beginnings = await self._in_thread(self._thread.beginnings(gone))
        for _ in range(_LOOKS_BEYOND_THE_END):
            ends = await self.end_offsets(gone)
            if all(offset <= ends[tp] for tp, offset in gone.items()):
                break
            # A broker that has just restarted tells an older end for a moment; and the end that Apache Kafka tells
            # with a fetch is read before the records it sends.
            await asyncio.sleep(POLL_SECONDS)
        for tp, offset in gone.items():
            if beginnings[tp] <= offset <= ends[tp]:
                continue
            self._positions[tp] = self._gone(OffsetGoneError(tp, offset, beginnings[tp], ends[tp]))
        await self.perform_seek()

    async def _hand_out(self, tp: TP, records: list[Any]) -> None:
        received = [Received(r.offset, r.timestamp, r.key, r.value, since_ms(r)) for r in records]
        generation = self.app.consumer_generation_id
        batch = Batch(tp, received, received[-1].offset + 1, generation)
        first, last = records[0], records[-1]
        message = ConsumerMessage(
            tp.topic,
            tp.partition,
            first.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            None,
            None,
            cast(Any, batch),
            checksum=None,
            tp=tp,
            generation_id=generation,
        )
        # Before the hand-over: a rebalance in the middle of it then has the last word.
        self._positions[tp] = batch.end_offset
        self._in_hand[tp] += 1
        await self.callback(message)

    # ---------------------------------------------------------------- inside

    def _forget_hands(self) -> None:
        self._in_hand.clear()
        self._held.clear()
        self._changed.set()

    def _wake(self) -> None:
        self._changed.set()
        if self._thread._consumer is not None:
            self._thread.thread_loop.call_soon_threadsafe(self._thread.wake)

    async def _in_thread(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run in the consumer's thread. Not by Faust's queue of methods: a wait for records would hold up the rest."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._thread.thread_loop))

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Faust commits nothing; see `commit_offsets`."""
        return False

    def verify_event_path(self, now: float, tp: TP) -> None:
        """See `ConsumerThread.verify_event_path`."""


class _Producer(faust_aiokafka.Producer):
    """Faust starts one whether it is used or not: it connects as all clients do."""

    def _settings_auth(self) -> Mapping[str, Any]:
        return cast(_Transport, self.transport).client


class _Transport(faust_aiokafka.Transport):
    Consumer = BatchConsumer
    Producer = _Producer
    client: Mapping[str, Any]
    offsets_for: OffsetsFor
    on_revoked: OnRevoked
    accept_loss: bool


def faust_settings() -> dict[str, Any]:
    """Return the settings of a Faust app that the driver counts on."""
    return {
        "agent_supervisor": CrashingSupervisor,  # Faust's own would skip the event that failed
        "broker_max_poll_records": 1000,
        "key_serializer": "raw",
        "value_serializer": "raw",
        "store": "memory://",
        "stream_recovery_delay": 0.0,
        "stream_wait_empty": False,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "web_enabled": False,
    }


def drive(
    app: faust.App,
    client: Mapping[str, Any],
    offsets_for: OffsetsFor,
    on_revoked: OnRevoked,
    *,
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
    offsets_for
        Where to start, asked once a generation for all partitions assigned.
    on_revoked
        Awaited when a partition goes; no batch is handed out any more.
    accept_loss
        Whether to go on, and count in ``consumer.lost``, when records to go on from are gone.
    """
    transport = _Transport(app.conf.broker_consumer, app)
    transport.client, transport.accept_loss = client, accept_loss
    transport.offsets_for, transport.on_revoked = offsets_for, on_revoked
    app.transport = transport


def consumer_of(app: faust.App) -> BatchConsumer:
    """Return the consumer that `drive` gave an app."""
    return cast(BatchConsumer, app.consumer)
