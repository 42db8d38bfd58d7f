"""The producer of a worker: what cannot be sent because brokers are away is sent again, until that lasts too long.

A message may then lie in its topic twice. That is no harm: `stream.kafka.partition_log` and the readers of messages
count a message once, and a broker that lost an acknowledgement does the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from heft.stream.events.messages import MAX_MESSAGE_BYTES
from heft.stream.kafka.connection_errors import BrokerAwayError
from heft.stream.state.pauses import RETRIES, pause_after

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between two attempts."""

STOP_SECONDS = 5.0
"""For how long, once a worker stops, brokers may take what its stages have in hand."""

_TIMEOUT_MS = 10_000  # of one attempt
Headers = Sequence[tuple[str, bytes]]

log = logging.getLogger(RETRIES)


def new_producer(client: Mapping[str, Any]) -> AIOKafkaProducer:
    """Return the producer that all stages of a worker share, not started; called in its event loop.

    It is not idempotent: readers drop repeats themselves, and not every broker supports it. Its batches take as much as
    our largest message: with aiokafka's 16 KB, rejected records of up to 64 KB would go one to a round trip.
    """
    return AIOKafkaProducer(
        **client, acks="all", linger_ms=0, request_timeout_ms=_TIMEOUT_MS, max_batch_size=MAX_MESSAGE_BYTES
    )


def passes_by_itself(error: KafkaError) -> bool:
    """Return whether waiting may mend an error of the cluster."""
    return bool(error.retriable) or isinstance(error, KafkaTimeoutError)


class PatientProducer:
    """Sends records and waits for all replicas, through the outages of brokers.

    Parameters
    ----------
    producer
        One of aiokafka, as `new_producer` makes it.
    patience_ms
        For how long a record may fail to be sent, in milliseconds.
    on_retry
        Called each time that a record is sent again.
    clock
        A monotonic clock in seconds.
    grace
        For how many seconds after `stop_waiting` records are still sent.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        patience_ms: int,
        on_retry: Callable[[], None],
        clock: Callable[[], float] = monotonic,
        grace: float = STOP_SECONDS,
    ) -> None:
        self._on_retry = on_retry
        self._producer = producer
        self._patience = patience_ms / 1000
        self._clock = clock
        self._chance = Random()  # workers should not come back all at once
        self._grace = grace
        self._ends_at: float | None = None  # by the clock of the event loop
        self._limits: set[asyncio.Timeout] = set()  # of what is being sent

    async def start(self) -> None:
        """Connect."""
        try:
            await self._producer.start()
        except KafkaError:
            await self._producer.stop()
            raise

    def stop_waiting(self) -> None:
        """Raise the next error to whoever waits, and in a few seconds an error to all who still do."""
        self._ends_at = asyncio.get_running_loop().time() + self._grace
        for limit in self._limits:
            limit.reschedule(self._ends_at)

    async def stop(self) -> None:
        """Disconnect; send what waits before, for as long as `stop_waiting` has left."""
        stopping = asyncio.ensure_future(self._producer.stop())
        done, _ = await asyncio.wait([stopping], timeout=self._left())
        if not done and self._producer._sender is not None:
            await self._producer._sender.close()  # aiokafka would wait until what nobody takes is too old
        await stopping

    async def send(
        self, topic: str, value: bytes, partition: int | None = None, headers: Headers = ()
    ) -> int:  # fmt: skip
        """Append a record and wait for all replicas; return its offset.

        Raises
        ------
        BrokerAwayError
            If brokers have been away for too long, or while the worker stops.
        KafkaError
            If they refuse the record for a reason that waiting does not mend.
        """
        since, times = self._clock(), 0
        limit = asyncio.timeout_at(self._ends_at)
        self._limits.add(limit)
        try:
            async with limit:
                while True:
                    try:
                        sent = await self._producer.send_and_wait(
                            topic, value, partition=partition, headers=list(headers)
                        )
                        return int(sent.offset)
                    except KafkaError as error:
                        times += 1
                        await self._wait(topic, since, times, error)
        except TimeoutError:
            msg = f"{topic}: the brokers took no record, and the worker stops; what was not written is made anew"
            raise BrokerAwayError(msg) from None
        finally:
            self._limits.discard(limit)

    async def send_all(self, topic: str, values: Iterable[bytes]) -> None:
        """Append records to any partitions of a topic, together; wait for all. Raises as `send` does."""
        await asyncio.gather(*[self.send(topic, value) for value in values])

    def _left(self) -> float | None:
        return None if self._ends_at is None else max(0.0, self._ends_at - asyncio.get_running_loop().time())

    async def _wait(self, topic: str, since: float, times: int, error: KafkaError) -> None:
        away = self._clock() - since
        if self._ends_at is not None or not passes_by_itself(error):
            raise error
        if away >= self._patience:
            msg = (
                f"{topic}: the brokers took no record for {away:.0f} s, longer than kafka.patience; the last error: "
                f"{error!r}. Start again when they answer: what was not written is made anew, and nothing is lost"
            )
            raise BrokerAwayError(msg) from error
        self._on_retry()
        log.warning("%s: a record could not be sent, attempt %d; it is sent again: %r", topic, times, error)
        await asyncio.sleep(pause_after(times, FIRST_PAUSE, LONGEST_PAUSE, self._chance))
