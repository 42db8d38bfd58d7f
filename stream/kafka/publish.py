"""Event logs into topics and back: `heft publish` and `heft record`."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from heft.stream.config.settings import Config
from heft.stream.events import messages, wire
from heft.stream.events.log import new_log, read_lines
from heft.stream.events.wire import Event, EventError
from heft.stream.kafka.bulk_reader import Ended, Merged, connect, read_inputs, read_partition
from heft.stream.kafka.connect import client_settings, require_reachable
from heft.stream.kafka.connection_errors import AuthorisationError, TopicError

Progress = Callable[[int], None]
"""Called with the number of records since the last call."""

_REPORT_EVERY = 1000


class Publisher:
    """Sends events to the topics of their types, keyed by user: one user's events meet in one partition.

    Parameters
    ----------
    config
        The cluster and its topics.

    Raises
    ------
    TopicError
        If no broker answers, and from `send` and `close` when one refuses a record.
    """

    def __init__(self, config: Config) -> None:
        self._settings, topics = client_settings(config.kafka), config.kafka.topics
        self.sent: Counter[str] = Counter()
        self._topics: dict[type, str] = {
            wire.Impression: topics.impressions,
            wire.Click: topics.clicks,
            wire.Order: topics.orders,
            wire.Action: topics.actions,
        }
        self._failed: list[BaseException] = []
        require_reachable(self._settings)
        try:
            # The default partitioner is the Java client's (murmur2 of the key).
            self._producer = KafkaProducer(
                **self._settings,
                acks="all",
                linger_ms=20,
                batch_size=1 << 18,
                max_request_size=wire.MAX_EVENT_BYTES + 1024,
            )
        except (KafkaError, OSError, ValueError) as error:
            raise self._settings.why(error) from None

    def send(self, event: Event, raw: bytes | None = None) -> None:
        """Send an event; ``raw`` is its line in the log, sent as it is."""
        self._raise_failed()
        topic = self._topics[type(event)]
        if not topic:
            msg = f"the log holds an event for a topic that kafka.topics leaves out: {wire.encode(event)[:120]!r}"
            raise TopicError(msg)
        value = raw if raw is not None else wire.encode(event)
        self._put(topic, value, event.user_id.encode())

    def flush(self) -> None:
        """Wait until everything sent has been acknowledged."""
        self._producer.flush()
        self._raise_failed()

    def close(self) -> None:
        """Flush and leave the cluster."""
        try:
            self.flush()
        finally:
            self._producer.close()

    def _put(self, topic: str, value: bytes, key: bytes) -> None:
        try:
            self._producer.send(topic, value, key=key).add_errback(self._failed.append)
        except KafkaError as error:
            self._failed.append(error)
        self._raise_failed()
        self.sent[topic] += 1

    def _raise_failed(self) -> None:
        if self._failed:
            error = self._failed[0]
            if isinstance(known := self._settings.why(error), AuthorisationError):
                raise known
            msg = f"a record was not accepted ({type(error).__name__}: {error}); `heft doctor` may know why"
            raise TopicError(msg)


def publish(log: Path, config: Config, speed: float | None = None, progress: Progress | None = None) -> Counter[str]:
    """Send an event log to the topics; return how many records each was sent.

    Parameters
    ----------
    log
        An event log.
    config
        The cluster and its topics.
    speed
        Event time per wall time: at 60 an hour's events take a minute. None: as fast as possible.
    progress
        Called with the number of records sent since the last call.

    Raises
    ------
    EventError
        If a line is no event, so that every log that was published can also be replayed.
    """
    publisher = Publisher(config)
    pending = 0
    first_ms, started = 0, time.monotonic()
    try:
        for number, raw in enumerate(read_lines(log), 1):
            try:
                event = wire.decode(raw)
            except EventError as error:
                msg = f"{log}, event {number}: {error}"
                raise EventError(msg) from None
            if speed is not None:
                first_ms = first_ms or event.at_ms
                ahead = (event.at_ms - first_ms) / 1000 / speed - (time.monotonic() - started)
                if ahead > 0:
                    time.sleep(ahead)
            publisher.send(event, raw)
            pending += 1
            if progress is not None and (pending == _REPORT_EVERY or speed is not None):
                progress(pending)
                pending = 0
    finally:
        publisher.close()
    if progress is not None:
        progress(pending)
    return publisher.sent


def record(
    out: Path,
    config: Config,
    partitions: Iterable[int],
    since_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress | None = None,
) -> dict[Path, Counter[str]]:
    """Write the inputs into event logs, one for each partition; return how many lines each holds, by topic.

    Records that are no events are written too, so that a replay counts them as the live join did. Records of topics
    that a mapping names are written as the events that they hold.
    """
    out.mkdir(parents=True, exist_ok=True)
    mapped = {table.topic for table in config.mapping}

    def one(partition: int) -> tuple[Path, Counter[str]]:
        path = out / f"partition-{partition:03d}.jsonl.zst"
        count: Counter[str] = Counter()
        pending = 0
        with new_log(path) as log:
            for merged in read_inputs(config, partition, since_ms, until_ms):
                if isinstance(merged, Ended):
                    continue
                lines = _lines(merged, mapped)
                log.write(b"".join(lines))
                count[merged.record.topic] += len(lines)
                pending += 1
                if progress is not None and pending == _REPORT_EVERY:
                    progress(pending)
                    pending = 0
        if progress is not None:
            progress(pending)
        return path, count

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(pool.map(one, partitions))


def _lines(merged: Merged, mapped: set[str]) -> list[bytes]:
    raw = merged.record.value
    if merged.events is None:
        # It stays no event; only its line ends must go.
        return [raw.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"] if raw.strip() else []
    if merged.record.topic in mapped or b"\n" in raw or b"\r" in raw:
        return [wire.encode(event) + b"\n" for event in merged.events]
    return [raw + b"\n"]


def newest_json(config: Config, topic: str, n: int) -> Iterator[str]:
    """Yield the newest ``n`` records of each partition of a topic as lines of JSON."""
    settings = client_settings(config.kafka)
    consumer = connect(settings)
    try:
        partitions = sorted(consumer.partitions_for_topic(topic) or ())
    finally:
        consumer.close()
    if not partitions:
        msg = f"there is no topic {topic}; `heft topics` lists those heft needs"
        raise TopicError(msg)
    for partition in partitions:
        for record in deque(read_partition(settings, topic, partition, start=-n), maxlen=n):
            line = {
                "partition": partition,
                "offset": record.offset,
                "timestamp_ms": record.timestamp_ms,
                "key": record.key.decode("utf-8", errors="backslashreplace") if record.key else None,
                "value": as_json(config, topic, record.value),
            }
            yield msgspec.json.encode(line).decode()


def as_json(config: Config, topic: str, raw: bytes) -> Any:
    """Return a record of any topic as a value that can be encoded as JSON."""
    names = config.kafka.topics
    if topic in (names.samples, names.scored):
        try:
            return msgspec.json.decode(messages.to_json(raw))
        except messages.MessageError as error:
            return {"unreadable": str(error)}
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(raw)
    with suppress(msgspec.MsgspecError):
        return msgspec.msgpack.decode(raw)
    return {"bytes": raw[:200].decode("utf-8", errors="backslashreplace"), "length": len(raw)}
