"""Reading topics in bulk, outside any consumer group: for replays, recordings, `heft tail` and `heft doctor`.

A read ends where the topic ended when the read began. Partition p of several topics becomes one sequence, merged by
the event time that each topic has reached, so that events which were on time live are on time in the sequence too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from heft.stream.config.settings import Config
from heft.stream.events.watermark import Input
from heft.stream.events.wire import Decode, Event, EventError
from heft.stream.kafka.connect import ClientSettings, client_settings, require_reachable
from heft.stream.kafka.connection_errors import TopicError
from heft.stream.kafka.offsets import PATIENCE_SECONDS, bulk_bounds_of

_POLL_MS = 500


class TopicRecord(NamedTuple):
    """A record of a topic as it came; its topic's configuration says whose time ``timestamp_ms`` is."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes


class Merged(NamedTuple):
    """A record of an input, and the events in it; ``events`` is None where it cannot be read as any."""

    input: int
    record: TopicRecord
    events: Sequence[Event] | None


class Ended(NamedTuple):
    """An input has given its last record; from now on it must not hold back the others."""

    input: int


def read_partition(
    settings: ClientSettings, topic: str, partition: int, start: int | None = None, end: int | None = None
) -> Iterator[TopicRecord]:
    """Yield the records of a partition.

    Parameters
    ----------
    settings
        From `client_settings`.
    topic, partition
        What to read.
    start
        First offset; None: the first there is; negative: this many offsets before the end.
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
        first, last = bulk_bounds_of(consumer, tp)
        at = first if start is None else max(first, last + start if start < 0 else start)
        consumer.seek(tp, at)
        stop = last if end is None else min(end, last)
        stalled = 0
        while at < stop:
            polled = consumer.poll(timeout_ms=_POLL_MS, max_records=2000).get(tp, [])
            for record in polled:
                if record.offset >= stop:
                    return
                yield TopicRecord(topic, partition, record.offset, record.timestamp, record.key, record.value or b"")
            before, at = at, consumer.position(tp)
            stalled = stalled + 1 if at == before else 0
            if stalled * _POLL_MS >= PATIENCE_SECONDS * 1000:
                msg = (
                    f"{topic}-{partition}: nothing came from offset {at} on for {PATIENCE_SECONDS:.0f} s, but it ends "
                    f"at {stop}; is the broker well?"
                )
                raise TopicError(msg)
    except KafkaError as error:
        raise settings.why(error) from None
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
        Event times in milliseconds: from the first on, and before the second. A topic ends when its watermark passes
        the second. None: from the beginning, and up to the end as it is now.
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
        If an input does not exist, or if their numbers of partitions differ.
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

    After the last record of a sequence comes its `Ended`. One wrong clock does no harm: a time more than
    ``max_ahead_ms`` above the watermark of the merged sequence does not count as reached.
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


def connect(settings: ClientSettings, **more: Any) -> KafkaConsumer:
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
        raise settings.why(error) from None


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
