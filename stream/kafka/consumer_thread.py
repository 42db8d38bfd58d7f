"""The thread that aiokafka's consumer lives in, with an event loop of its own: fetches, seeks, ends, commits.

Faust's own thread takes one message at a time from a consumer. Here everything that has come is taken at once, with an
epoch that tells whether a seek came in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as faust_aiokafka
from faust.types import TP

from heft.stream.events.due_header import due_ms, since_ms
from heft.stream.kafka.assignor import UnitAssignor
from heft.stream.kafka.offsets import true_end

POLL_SECONDS = 0.5
"""How long one wait for records lasts; a wake-up ends it sooner."""

_COMMIT_SECONDS = 2.0  # that a commit may take
_FETCH_WAIT_MS = 50  # after which a broker answers an empty fetch; it serves one fetch at a time, of all partitions


class Received(NamedTuple):
    """One record of a topic as it came."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    due_since_ms: int  # as in `stream.events.due_header`
    due_ms: int = 0  # likewise


class Batch(NamedTuple):
    """Records of one partition in the order of their offsets; reading goes on at ``end_offset``.

    ``generation`` is that of the consumer group when the batch was handed out: after a rebalance the batch is void.
    """

    tp: TP
    records: list[Received]
    end_offset: int
    generation: int


class Taken(NamedTuple):
    """What was taken from a consumer at one moment."""

    epoch: int
    """How many seeks there were before; what was taken before the last one is void."""
    records: dict[TP, list[Received]]
    positions: dict[TP, int]
    """Where the consumer goes on. Control records and compaction leave holes, which it has passed over."""
    ends: dict[TP, int]
    """The ends of the partitions that came with the last fetches."""


class ConsumerThread(faust_aiokafka.AIOKafkaConsumerThread):
    """The thread of one consumer. All methods run in its loop; `BatchConsumer` schedules them from Faust's loop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.epoch = 0

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        conf = self.app.conf
        return AIOKafkaConsumer(
            **transport.client,
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=transport.instance or None,
            partition_assignment_strategy=[UnitAssignor(transport.together)],
            enable_auto_commit=False,
            # An offset that is gone must be an error: "earliest" would silently go on elsewhere.
            auto_offset_reset="none",
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
        )

    async def on_thread_stop(self) -> None:
        """Leave the group, and disconnect."""
        # aiokafka cancels its fetches, and passes on what it cancelled where one waits for a broker that is away. Out
        # of here that would end the thread before it has said so, and whoever stops it would wait for ever.
        with contextlib.suppress(asyncio.CancelledError):
            await super().on_thread_stop()
        if self._consumer is not None:
            await self._consumer._client.close()

    async def take(self, wanted: set[TP], changed: Callable[[], bool]) -> Taken:
        """Return what has come of the wanted partitions; wait up to `POLL_SECONDS` where nothing has.

        ``changed`` says that the wanted partitions are no longer these: a `wake` may come before there is a wait.
        """
        consumer = self._ensure_consumer()
        fetcher, limit = consumer._fetcher, consumer._max_poll_records
        with fetcher._subscriptions.fetch_context():
            records = await fetcher.fetched_records(wanted, timeout=0, max_records=limit)
            if not records and not changed():
                waiter = fetcher._create_fetch_waiter()
                done, _ = await asyncio.wait([waiter], timeout=POLL_SECONDS)
                if not done:
                    waiter.cancel()
                elif not fetcher._closed:
                    waiter.result()
                    records = await fetcher.fetched_records(wanted, timeout=0, max_records=limit)
        # The loop does nothing else between taking and returning, so no seek can come in between.
        positions = self._positions_known(wanted)
        received = {
            TP(*tp): [Received(r.offset, r.timestamp, r.key, r.value, since_ms(r), due_ms(r)) for r in taken]
            for tp, taken in records.items()
            if tp in positions  # else it has just been unassigned
        }
        return Taken(self.epoch, received, positions, self._high_watermarks_known(wanted))

    def _positions_known(self, tps: Iterable[TP]) -> dict[TP, int]:
        # Not by `consumer.position`, which waits where a position is not known yet.
        consumer = self._ensure_consumer()
        assigned, assignment = consumer.assignment(), consumer._subscription.subscription.assignment
        states = {tp: assignment.state_value(tp) for tp in tps if tp in assigned}
        return {tp: state.position for tp, state in states.items() if state.has_valid_position}

    def _high_watermarks_known(self, tps: Iterable[TP]) -> dict[TP, int]:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        known = {tp: consumer.highwater(tp) for tp in tps if tp in assigned}
        return {tp: end for tp, end in known.items() if end is not None}

    def wake(self) -> None:
        """End a wait in `take`: the wanted partitions have changed."""
        fetcher = self._ensure_consumer()._fetcher
        for waiter in list(fetcher._fetch_waiters):
            fetcher._notify(waiter)

    async def hold(self, tps: Iterable[TP]) -> None:
        """Fetch nothing of these partitions until `seek_all` says from where; no committed offset counts meanwhile."""
        consumer = self._ensure_consumer()
        self.epoch += 1
        for tp in tps:
            consumer.pause(TopicPartition(*tp))
            consumer.seek(tp, 0)

    async def seek_all(self, offsets: Mapping[TP, int]) -> int:
        """Seek and fetch, and return the new epoch: what was taken in an older one is void."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        self.epoch += 1
        for tp, offset in offsets.items():
            if tp in assigned:
                consumer.seek(tp, offset)
                consumer.resume(TopicPartition(*tp))
        return self.epoch

    async def ends(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Return the ends of partitions, fetched now."""
        listed: dict[TP, int] = dict(await self._ensure_consumer().end_offsets(list(tps))) if tps else {}
        fetched = self._high_watermarks_known(listed)
        return {tp: true_end(end, fetched.get(tp)) for tp, end in listed.items()}

    async def beginnings(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Return the first offsets that partitions hold, fetched now."""
        return dict(await self._ensure_consumer().beginning_offsets(list(tps))) if tps else {}

    async def commit_for_lag(self, offsets: Mapping[TP, int]) -> None:
        """Commit offsets of partitions that are still assigned; the next commit makes good what was refused or late."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        mine = {TopicPartition(*tp): OffsetAndMetadata(at, "") for tp, at in offsets.items() if tp in assigned}
        if mine:
            try:
                async with asyncio.timeout(_COMMIT_SECONDS):  # aiokafka would try for as long as brokers are away
                    await consumer.commit(mine)
            except (KafkaError, TimeoutError) as error:
                self.log.info("commit for lag tools refused: %r", error)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: Faust's check for stalled partitions would warn about those that are held on purpose."""
