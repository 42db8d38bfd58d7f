"""The thread that aiokafka's consumer lives in, with an event loop of its own: fetches, seeks, ends, commits.

Faust's own thread drains a consumer message by message; here everything that has come is taken at once, with an epoch
that tells whether a seek lies between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as faust_aiokafka
from faust.types import TP

POLL_SECONDS = 0.5
"""How long one wait for records lasts; waking up ends it sooner."""

_FETCH_WAIT_MS = 50  # a broker answers an empty fetch after this; a node has one fetch under way, for all partitions


class ConsumerThread(faust_aiokafka.AIOKafkaConsumerThread):
    """The thread of one consumer. All methods here run in it; `BatchConsumer` calls them from Faust's loop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.epoch = 0

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        conf = self.app.conf
        return AIOKafkaConsumer(
            **transport.client,
            client_id=conf.broker_client_id,
            group_id=conf.id,
            # Range keeps partition p of every input together, which the join needs; round robin does not.
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            # An offset that is gone must be an error: "earliest" would go on without a word.
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

    async def take(self, wanted: set[TP]) -> tuple[int, dict[TP, list[Any]], dict[TP, int]]:
        """Return the epoch, what is there of the wanted partitions, and their ends as the last fetches told them.

        Waits a little when there is nothing.
        """
        consumer = self._ensure_consumer()
        fetcher, limit = consumer._fetcher, consumer._max_poll_records
        with fetcher._subscriptions.fetch_context():
            records = await fetcher.fetched_records(wanted, timeout=0, max_records=limit)
            if not records:
                waiter = fetcher._create_fetch_waiter()
                done, _ = await asyncio.wait([waiter], timeout=POLL_SECONDS)
                if not done:
                    waiter.cancel()
                elif not fetcher._closed:
                    waiter.result()
                    records = await fetcher.fetched_records(wanted, timeout=0, max_records=limit)
        # Draining and returning is one step of this loop: no seek can fall between.
        return self.epoch, records, self.highwaters_known(wanted)

    def highwaters_known(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Return the end offsets that came with the last fetch of each partition, where there was one."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        known = {tp: consumer.highwater(tp) for tp in tps if tp in assigned}
        return {tp: end for tp, end in known.items() if end is not None}

    def wake(self) -> None:
        """End a wait in `take`: the wanted partitions have changed."""
        fetcher = self._ensure_consumer()._fetcher
        for waiter in list(fetcher._fetch_waiters):
            fetcher._notify(waiter)

    async def seek_all(self, offsets: Mapping[TP, int]) -> int:
        """Seek and return the new epoch: what was drained in an older one is void."""
        consumer = self._ensure_consumer()
        self.epoch += 1
        for tp, offset in offsets.items():
            consumer.seek(tp, offset)
        return self.epoch

    async def ends(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Return the end offsets of partitions, fetched now."""
        ends: dict[TP, int] = dict(await self._ensure_consumer().end_offsets(list(tps))) if tps else {}
        # Tansu answers with the beginning of the last batch + 1; what a fetch has told is right there too.
        for tp, end in self.highwaters_known(ends).items():
            ends[tp] = max(ends[tp], end)
        return ends

    async def beginnings(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Return the first offsets there are, fetched now."""
        return dict(await self._ensure_consumer().beginning_offsets(list(tps))) if tps else {}

    async def commit_for_lag(self, offsets: Mapping[TP, int]) -> None:
        """Commit what is still assigned; a refusal is of no consequence."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        mine = {TopicPartition(*tp): OffsetAndMetadata(at, "") for tp, at in offsets.items() if tp in assigned}
        if mine:
            try:
                await consumer.commit(mine)
            except KafkaError as error:
                self.log.warning("commit for lag tools refused: %r", error)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's check for stalled partitions knows nothing of held ones."""
