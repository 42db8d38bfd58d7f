"""Where a partition begins and ends, and when a reader has reached the end: the rules, once, for both Kafka clients.

* The end is the offset that the next record will get. A broker may list less: Tansu lists the second offset of its
  last batch. The high watermark that comes with a fetch of that batch is right, so the larger of the two counts.
* A reader has reached an offset when its own position has. The offset of its last record + 1 may stay below the end
  for ever, because control records and compaction leave offsets for which no reader is given a record.
* A broker that has just restarted may list an older end for a moment. Records count as gone only if the end is still
  below them after several looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from kafka import KafkaConsumer
from kafka import TopicPartition as BulkPartition

PATIENCE_SECONDS = 60.0
"""How long a reader waits at one position below the end, before it gives up."""

_LOOKS = 10  # at an end that lies below what was read before
_LOOK_SECONDS = 0.5
_FETCHES = 4  # of the last batch, to learn where it ends
_FETCH_MS = 500


class Bounds(NamedTuple):
    """A partition holds the records from offset ``beginning`` up to, but not including, ``end``."""

    beginning: int
    end: int

    def can_go_on_at(self, offset: int) -> bool:
        """Whether a reader whose next offset is this one misses nothing."""
        return self.beginning <= offset <= self.end


class OffsetGoneError(RuntimeError):
    """The records to go on from are not in the topic. The message names what is there, and what to do.

    ``nearest`` is where to go on if the loss is accepted.

    Parameters
    ----------
    tp
        Topic and partition.
    wanted
        The offset to go on at.
    bounds
        What the partition holds.
    """

    def __init__(self, tp: tuple[str, int], wanted: int, bounds: Bounds) -> None:
        beginning, end = bounds
        why = "retention has deleted what lies between" if wanted < beginning else "the topic was made anew or cut"
        super().__init__(
            f"{tp[0]}-{tp[1]}: expected to go on at offset {wanted}, but the topic holds {beginning} to "
            f"{end}: {why}. Restore the topic, or start with --accept-loss to go on at {beginning}."
        )
        self.nearest = beginning  # beyond the end too: the topic was made anew, and all its records are new


def true_end(listed: int, high_watermark: int | None) -> int:
    """Return the end of a partition from what the broker lists and what came with the last fetch, if there was one."""
    return max(listed, high_watermark or 0)


async def settled(look: Callable[[], Awaitable[Bounds]], offset: int) -> Bounds:
    """Return the bounds of a partition; look again for some seconds while its end lies below ``offset``.

    The end that Apache Kafka sends with a fetch may be older than the records in it, so that a position just beyond
    the end need not be a loss either.
    """
    bounds = await look()
    for _ in range(_LOOKS - 1):
        if offset <= bounds.end:
            break
        await asyncio.sleep(_LOOK_SECONDS)
        bounds = await look()
    return bounds


async def bounds_of(consumer: AIOKafkaConsumer, tp: TopicPartition) -> Bounds:
    """Return the bounds of a partition that is assigned to a consumer of aiokafka; this moves its position."""
    beginning = (await consumer.beginning_offsets([tp]))[tp]
    listed = (await consumer.end_offsets([tp]))[tp]
    if listed > beginning:
        consumer.seek(tp, listed - 1)
        for _ in range(_FETCHES):
            # A control record may be the last one: no record comes, but the position passes over it.
            if await consumer.getmany(tp, timeout_ms=_FETCH_MS, max_records=1) or await consumer.position(tp) >= listed:
                break
    return Bounds(beginning, true_end(listed, consumer.highwater(tp)))


def bulk_bounds_of(consumer: KafkaConsumer, tp: BulkPartition) -> Bounds:
    """Return the bounds of a partition that is assigned to a consumer of kafka-python; this moves its position."""
    beginning: int = consumer.beginning_offsets([tp])[tp]
    listed: int = consumer.end_offsets([tp])[tp]
    if listed > beginning:
        consumer.seek(tp, listed - 1)
        for _ in range(_FETCHES):
            if consumer.poll(timeout_ms=_FETCH_MS, max_records=1) or consumer.position(tp) >= listed:
                break
    return Bounds(beginning, true_end(listed, consumer.highwater(tp)))
