"""Reading and writing one partition of Kafka exactly: a range of offsets, and a log with one owner at a time.

A worker that takes over a partition appends a marker whose epoch is one above the highest there. A predecessor that
was only stalled finds out at its next append, because the offset of that append does not follow its last one. Readers
drop what it wrote after the marker.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition

from heft.models.records import FIRST_KEY
from heft.stream.events import due_header, messages
from heft.stream.events.messages import Message
from heft.stream.kafka.batch_consumer import TP, Received
from heft.stream.kafka.offsets import PATIENCE_SECONDS, Bounds, OffsetGoneError, bounds_of, settled
from heft.stream.kafka.patient_producer import PatientProducer


class FencedError(RuntimeError):
    """Another worker has taken over a partition that this one was still writing to."""


class MissingRecordsError(RuntimeError):
    """Records that lie below the end of a topic did not come."""


class Owner(NamedTuple):
    """The one writer of a partition whose messages count."""

    epoch: int = 0
    writer: str = ""


class Cursor:
    """Reads one partition from an offset on, without a consumer group. An async context manager.

    Parameters
    ----------
    client
        The arguments that every aiokafka client is given: ``bootstrap_servers`` and security.
    tp, offset
        What to read, and where to start; an offset below 0 stands for the beginning.
    """

    def __init__(self, client: Mapping[str, Any], tp: TP, offset: int) -> None:
        self.offset = offset
        self._tp = TopicPartition(*tp)
        # "none": an offset that is gone must be an error, not a reason to start elsewhere.
        self._consumer = AIOKafkaConsumer(
            **client, group_id=None, auto_offset_reset="none", enable_auto_commit=False, fetch_max_wait_ms=50
        )

    async def __aenter__(self) -> Cursor:
        try:
            await self._consumer.start()
        except KafkaError:
            await self._consumer.stop()
            raise
        self._consumer.assign([self._tp])
        if self.offset < 0:
            self.offset = (await self._consumer.beginning_offsets([self._tp]))[self._tp]
        self._consumer.seek(self._tp, self.offset)
        # aiokafka hangs in stop() if that is called before its own tasks have seen the assignment.
        await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    @property
    def partitions(self) -> int:
        """How many partitions the topic has."""
        return len(self._consumer.partitions_for_topic(self._tp.topic) or ())

    async def bounds(self, expected: int = -1) -> Bounds:
        """Return what the partition holds; read nothing with this cursor afterwards, since this moves it.

        ``expected``: an offset that should not lie beyond the end; where it does, the end is looked at again.
        """
        return await settled(lambda: bounds_of(self._consumer, self._tp), expected)

    async def up_to(self, end: int) -> AsyncIterator[Received]:
        """Yield the records from the position of the cursor to ``end``, which is not included.

        Raises
        ------
        OffsetGoneError
            If retention has deleted records of the range.
        MissingRecordsError
            If nothing comes for a minute although brokers answer.
        KafkaError
            If they do not answer.
        """
        while self.offset < end:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    taken: list[Any] = []
                    while not taken and self.offset < end:
                        limit = min(1000, end - self.offset)
                        got = await self._consumer.getmany(self._tp, timeout_ms=500, max_records=limit)
                        taken = got.get(self._tp, [])
                        self.offset = await self._consumer.position(self._tp)
            except OffsetOutOfRangeError:
                raise OffsetGoneError(self._tp, self.offset, await self.bounds()) from None
            except TimeoutError:
                await self._consumer.beginning_offsets([self._tp])  # raises where brokers are away: nothing is missing
                msg = f"{self._tp.topic}-{self._tp.partition}: expected records {self.offset} to {end}, none came"
                raise MissingRecordsError(msg) from None
            for each in taken:
                if each.offset < end:
                    yield Received(each.offset, each.timestamp, each.key, each.value, due_header.since_ms(each))


class Writer:
    """The owner of one source partition of `samples`, who writes it; one message at a time is unacknowledged.

    Parameters
    ----------
    client
        The arguments that every aiokafka client is given.
    producer
        Writes the messages.
    tp
        The partition to write.
    """

    def __init__(self, client: Mapping[str, Any], producer: PatientProducer, tp: TP) -> None:
        self.owner = Owner()
        self.tp = tp
        self.next_offset = -1
        self.checksum = 0  # CRC-32 of the last message written, which lies at the offset before the next
        self._client = client
        self._producer = producer

    async def claim(self, start: int, owner: Owner, offsets: tuple[int, ...]) -> int:
        """Take the partition over; return the offset of the marker, before which the log is final.

        Parameters
        ----------
        start
            From which offset on the log is read for higher epochs.
        owner
            Who owned the partition at that offset.
        offsets
            The input offsets at which this writer goes on; the marker names them.
        """
        writer, highest, seen = uuid4().hex, owner.epoch, start
        while True:
            epoch = highest + 1
            marker = Message(self.tp.partition, 0, epoch, writer, FIRST_KEY, offsets, marker=True)
            at = await self._send(messages.encode(marker))
            async with Cursor(self._client, self.tp, seen) as log:
                async for record in log.up_to(at):
                    message = messages.decode(record.value or b"")
                    if message.marker:
                        highest = max(highest, message.epoch)
            seen = at + 1
            if highest < epoch:
                self.owner, self.next_offset = Owner(epoch, writer), at + 1
                self.checksum = zlib.crc32(messages.encode(marker))
                return at
            highest = max(highest, epoch)

    async def append(self, message: Message, due_since_ms: int | None = None) -> int:
        """Append a message and wait for all replicas; return its offset.

        ``due_since_ms``: the wall time since which its records are due.

        Raises
        ------
        FencedError
            If another worker has taken the partition over.
        """
        value = messages.encode(message)
        due_ms = message.records[0].due_ms if message.records else None
        at = await self._send(value, due_header.headers(due_since_ms, due_ms))
        if at != self.next_offset:
            await self._look_between(self.next_offset, at)
        self.next_offset, self.checksum = at + 1, zlib.crc32(value)
        return at

    async def _send(self, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> int:
        return await self._producer.send(self.tp.topic, value, self.tp.partition, headers)

    async def _look_between(self, start: int, end: int) -> None:
        async with Cursor(self._client, self.tp, start) as log:
            async for record in log.up_to(end):
                message = messages.decode(record.value or b"")
                if message.marker and message.epoch > self.owner.epoch:
                    msg = (
                        f"{self.tp.topic}-{self.tp.partition}: this worker wrote with epoch {self.owner.epoch}, "
                        f"another took over with epoch {message.epoch} at offset {record.offset}; it goes on there"
                    )
                    raise FencedError(msg)


class OwnerFilter:
    """Passes the messages of a log whose writer owned it at that time."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner

    def passes(self, message: Message) -> bool:
        """Whether to take this message; markers change the owner and are not taken."""
        if message.marker:
            if message.epoch > self.owner.epoch:
                self.owner = Owner(message.epoch, message.writer)
            return False
        return (message.epoch, message.writer) == self.owner
