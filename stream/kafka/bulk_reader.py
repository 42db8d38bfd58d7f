"""Reading topics in bulk, outside any consumer group: for replays, recordings, `heft tail` and `heft doctor`.

A read ends at the offsets that were the end when it began. Partition p of several topics becomes one sequence, merged
by the event time that each topic has reached, so that what was on time live is on time in the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from heft.stream.config.settings import Config
from heft.stream.events.watermark import Input
from heft.stream.events.wire import Event, EventError
from heft.stream.kafka.connect import TopicError, client_settings, require_reachable, unreachable

Decode: TypeAlias = Callable[[str, bytes], Sequence[Event]]

_STALL_POLLS = 60  # of half a second each
_END_POLLS = 4


class TopicRecord(NamedTuple):
    """A record of a topic as it came; ``timestamp_ms`` is the broker's or the producer's, as the topic is set."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes


class Merged(NamedTuple):
    """A record of an input, and what it holds; ``events`` is None where it is no event."""

    input: int
    record: TopicRecord
    events: Sequence[Event] | None


class Ended(NamedTuple):
    """An input has given its last record; from now on it must hold nobody back."""

    input: int


def read_partition(
    settings: dict[str, Any], topic: str, partition: int, start: int | None = None, end: int | None = None
) -> Iterator[TopicRecord]:
    """Yield the records of a partition.

    Parameters
    ----------
    settings
        From `client_settings`.
    topic, partition
        What to read.
    start
        First offset; None: the first there is; negative: so many before the end.
    end
        Offset to stop before; None: where the partition ends now.

    Raises
    ------
    TopicError
        If the topic has no such partition, or the broker stops answering.
    """
    tp = TopicPartition(topic, partition)
    consumer = connect(settings)
    try:
        if partition not in (consumer.partitions_for_topic(topic) or ()):
            msg = f"{topic}-{partition}: no such partition; `heft topics --create` makes what is missing"
            raise TopicError(msg)
        consumer.assign([tp])
        first, last = consumer.beginning_offsets([tp])[tp], _end(consumer, tp)
        at = first if start is None else max(first, last + start if start < 0 else start)
        consumer.seek(tp, at)
        stop = last if end is None else min(end, last)
        stalled = 0
        while at < stop:
            polled = consumer.poll(timeout_ms=500, max_records=2000).get(tp, [])
            for record in polled:
                at = record.offset + 1
                if record.offset >= stop:
                    return
                yield TopicRecord(topic, partition, record.offset, record.timestamp, record.key, record.value or b"")
            if not polled:
                # Compaction and transactions leave offsets without a record: the position passes over them.
                at = max(at, consumer.position(tp))
                stalled += 1
                if stalled > _STALL_POLLS:
                    msg = f"{topic}-{partition}: nothing came from offset {at} on for 30 s, but it ends at {stop}"
                    raise TopicError(msg)
            else:
                stalled = 0
    finally:
        consumer.close()


def read_inputs(
    config: Config, partition: int, since_ms: int | None = None, until_ms: int | None = None
) -> Iterator[Merged | Ended]:
    """Yield partition ``partition`` of all inputs as one sequence, merged by the event time that each has reached.

    Parameters
    ----------
    config
        Says which topics are the inputs and how they decode.
    partition
        The same of every topic.
    since_ms, until_ms
        Event times: from the first on, up to but not with the second. A topic ends when its watermark passes the
        second. None: from the beginning, up to the end as it is now.
    """
    settings, decode, lateness = client_settings(config.kafka), config.decoder(), config.join.lateness_ms
    sources = [
        _within(read_partition(settings, topic, partition), n, decode, lateness, since_ms, until_ms)
        for n, topic in enumerate(config.inputs)
    ]
    return merge(sources, lateness, config.join.max_ahead_ms)


def input_partitions(config: Config) -> int:
    """Return how many partitions the inputs have.

    Raises
    ------
    TopicError
        If an input does not exist, or they do not all have as many.
    """
    consumer = connect(client_settings(config.kafka))
    try:
        counts = {topic: len(consumer.partitions_for_topic(topic) or ()) for topic in config.inputs}
    finally:
        consumer.close()
    if 0 in counts.values() or len(set(counts.values())) > 1:
        listed = ", ".join(f"{topic} {count}" for topic, count in counts.items())
        msg = f"the inputs must exist and have equally many partitions, found {listed}; see `heft doctor`"
        raise TopicError(msg)
    return next(iter(counts.values()))


def merge(sources: Sequence[Iterator[Merged]], lateness_ms: int, max_ahead_ms: int) -> Iterator[Merged | Ended]:
    """Merge sequences, each kept in its order, by the newest event time that each has reached with its next record.

    After the last record of a sequence comes its `Ended`.

    A clock gone wrong moves nothing: a time more than ``max_ahead_ms`` above the watermark of the merged sequence
    does not count as reached.
    """
    watermark = Input()
    heads = [next(source, None) for source in sources]
    reached = [0] * len(sources)
    for n, head in enumerate(heads):
        if head is None:
            yield Ended(n)

    def place(n: int) -> tuple[int, int, int]:
        head = heads[n]
        at_ms = head.events[0].at_ms if head is not None and head.events else 0
        plausible = watermark.watermark == 0 or at_ms <= watermark.watermark + max_ahead_ms
        return (max(reached[n], at_ms) if plausible else reached[n], at_ms, n)

    while alive := [n for n, head in enumerate(heads) if head is not None]:
        reached_now, _, n = min(map(place, alive))
        head = heads[n]
        assert head is not None
        reached[n] = reached_now
        yield head
        for event in head.events or ():
            watermark.see(event.user_id, event.at_ms, lateness_ms)
        heads[n] = next(sources[n], None)
        if heads[n] is None:
            yield Ended(n)


def connect(settings: dict[str, Any], **more: Any) -> KafkaConsumer:
    """Return a consumer of kafka-python without a group.

    Raises
    ------
    TopicError
        If no broker answers.
    """
    require_reachable(settings)
    try:
        return KafkaConsumer(
            **settings, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest",
            max_partition_fetch_bytes=8 << 20, bootstrap_timeout_ms=10_000, **more,
        )  # fmt: skip
    except (KafkaError, OSError, ValueError) as error:
        raise unreachable(settings, error) from None


def _end(consumer: KafkaConsumer, tp: TopicPartition) -> int:
    """Return the offset after the last record. Tansu tells that of its last batch's second; a fetch knows better."""
    told: int = consumer.end_offsets([tp])[tp]
    if told <= consumer.beginning_offsets([tp])[tp]:
        return told
    consumer.seek(tp, told - 1)
    for _ in range(_END_POLLS):
        if consumer.poll(timeout_ms=500, max_records=1):
            return max(told, consumer.highwater(tp) or 0)
    # A transaction's marker may be the last: nothing to fetch, and the broker is right.
    return told


def _within(
    records: Iterator[TopicRecord],
    input_: int,
    decode: Decode,
    lateness_ms: int,
    since_ms: int | None,
    until_ms: int | None,
) -> Iterator[Merged]:
    watermark = Input()
    for record in records:
        try:
            found: Sequence[Event] | None = decode(record.topic, record.value)
        except EventError:
            found = None
        if found is None or (since_ms is None and until_ms is None):
            yield Merged(input_, record, found)
            continue
        for event in found:
            watermark.see(event.user_id, event.at_ms, lateness_ms)
        if until_ms is not None and watermark.watermark >= until_ms:
            return
        if all((since_ms or 0) <= event.at_ms < (until_ms or event.at_ms + 1) for event in found):
            yield Merged(input_, record, found)
