"""`heft doctor`: checks a cluster before the first worker starts, and reports in plain words.

It reads the newest records of every partition of the inputs, and writes nothing except a probe in the snapshot store.
Each finding says what is wrong and what to do about it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import fsspec
import fsspec.core
from kafka.errors import KafkaError
from kafka.partitioner import murmur2

from heft.stream.config.settings import Config
from heft.stream.events.wire import EventError
from heft.stream.kafka.bulk_reader import TopicRecord, read_partition
from heft.stream.kafka.connect import client_settings
from heft.stream.kafka.connection_errors import TopicError
from heft.stream.kafka.topics import FOREVER, Found, Topics, Wanted, wanted_topics
from heft.stream.state.credentials import without_credentials

SAMPLE = 500
"""How many of the newest records are read from each partition of each input."""

_FAR_MS = 300_000  # a larger difference between an event's time and its record's is not a delay but a wrong clock
_REPLAY_MS = 86_400_000  # a day behind in every topic: not a wrong clock but an old log that was published
_MURMUR_SHARE = 0.99


class Finding(NamedTuple):
    """Something that is wrong, and what to do about it."""

    what: str
    do: str


class InputProbe(NamedTuple):
    """What the newest records of one input show."""

    topic: str
    records: int
    refused: Counter[str]
    """How many records were refused, by reason with the path of the field."""
    example: str
    """Place of the first refused record."""
    delays_ms: list[int]
    """Time of the record minus the event's own time, in milliseconds."""
    partitions_of: dict[str, set[int]]
    """User → partitions."""
    keyed: int
    """How many records are in the partition that murmur2 of the user's id chooses."""


def examine(config: Config, progress: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Return what is wrong with the cluster and the snapshot store; empty when a worker may start.

    Raises
    ------
    ConfigError
        If the security settings cannot be used.
    """
    progress(f"snapshots at {without_credentials(config.snapshots.url)}")
    findings = check_snapshots(config.snapshots.url)
    progress(f"topics at {config.kafka.bootstrap}")
    try:
        with Topics(config) as topics:
            found = topics.found()
    except (TopicError, KafkaError) as error:
        what, _, do = str(error).partition("; ")
        return [*findings, Finding(what, do or "look at the broker's log")]
    findings += check_topics(wanted_topics(config), found)
    probes = []
    for name in config.inputs:
        if name in found:
            progress(f"newest records of {name}")
            try:
                probes.append(look(config, name, found[name].partitions))
            except (TopicError, KafkaError) as error:
                findings.append(Finding(f"{name} cannot be read: {error}", "may this user read it?"))
    return findings + check_records(probes, config.join.clock_skew_ms)


def check_snapshots(url: str) -> list[Finding]:
    """Write, read and remove a probe where snapshots go."""
    probe = f"probe-{uuid.uuid4().hex}"
    try:
        files, root = fsspec.core.url_to_fs(url)
        files.makedirs(root, exist_ok=True)
        path = f"{root}/{probe}"
        with files.open(path, "wb") as file:
            file.write(probe.encode())
        with files.open(path, "rb") as file:
            read_back = file.read()
        files.rm(path)
    except Exception as error:  # every file system has errors of its own
        what = f"snapshots.url {url}: a probe cannot be written and read ({type(error).__name__}: {error})"
        return [
            Finding(without_credentials(what), "give the worker the right to write there, or set another snapshots.url")
        ]
    if read_back != probe.encode():
        return [Finding(f"snapshots.url {without_credentials(url)}: a probe came back changed", "use another store")]
    return []


def check_topics(wanted: Sequence[Wanted], found: Mapping[str, Found]) -> list[Finding]:
    """Compare the topics that are needed with those that exist."""
    findings = [
        Finding(f"there is no topic {topic.name} ({topic.role})", "make it with `heft topics --create`")
        for topic in wanted
        if topic.name not in found
    ]
    counts = {topic.name: found[topic.name].partitions for topic in wanted if topic.name in found}
    together = {
        topic.name: counts[topic.name]
        for topic in wanted
        if topic.role in ("input", "samples") and topic.name in counts
    }
    if len(set(together.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in together.items())
        do = "make them alike: one user's events must meet in one partition, and samples has as many as the inputs"
        findings.append(Finding(f"partition counts differ: {listed}", do))
    for topic in wanted:
        if topic.name not in found:
            continue
        if topic.role == "scored" and counts[topic.name] != topic.partitions:
            what = f"{topic.name} has {counts[topic.name]} partitions, but join.shards asks for {topic.partitions}"
            findings.append(Finding(what, "one partition for each shard: make the topic anew or set join.shards"))
        findings += _check_settings(topic, found[topic.name].settings)
    return findings


def _check_settings(topic: Wanted, settings: Mapping[str, str]) -> list[Finding]:
    findings = []
    if topic.role == "scored":
        for name in ("retention.ms", "retention.bytes"):
            value = settings.get(name, FOREVER)
            if value != FOREVER:
                what = f"{topic.name} expires ({name} = {value}), but it is the truth of training"
                findings.append(Finding(what, f"set {name}=-1 on it"))
    if settings.get("cleanup.policy", "delete") != "delete":
        what = f"{topic.name} is compacted (cleanup.policy = {settings['cleanup.policy']}): events would vanish"
        findings.append(Finding(what, "set cleanup.policy=delete on it"))
    limit = int(settings.get("max.message.bytes", topic.message_bytes))
    if limit < topic.message_bytes:
        what = f"{topic.name} takes messages of {limit} bytes at most"
        findings.append(Finding(what, f"set max.message.bytes={topic.message_bytes} or more on it"))
    return findings


def look(config: Config, topic: str, partitions: int) -> InputProbe:
    """Read the newest records of an input."""
    settings, decode = client_settings(config.kafka), config.decoder()
    probe = InputProbe(topic, 0, Counter(), "", [], {}, 0)
    for partition in range(partitions):
        for record in read_partition(settings, topic, partition, start=-SAMPLE):
            probe = _with(probe, record, decode, partitions)
    return probe


def _with(
    probe: InputProbe, record: TopicRecord, decode: Callable[[str, bytes], Sequence[object]], partitions: int
) -> InputProbe:
    example, keyed = probe.example, probe.keyed
    try:
        events = decode(record.topic, record.value)
    except EventError as error:
        probe.refused[str(error)] += 1
        example = example or f"{record.topic}-{record.partition} offset {record.offset}"
        events = []
    if events:
        event = events[0]
        user, at_ms = str(getattr(event, "user_id", "")), int(getattr(event, "at_ms", 0))
        probe.partitions_of.setdefault(user, set()).add(record.partition)
        probe.delays_ms.append(record.timestamp_ms - at_ms)
        keyed += (murmur2(user.encode()) & 0x7FFFFFFF) % partitions == record.partition
    return probe._replace(records=probe.records + 1, example=example, keyed=keyed)


def check_records(probes: Sequence[InputProbe], clock_skew_ms: int) -> list[Finding]:
    """Return what the newest records of the inputs show to be wrong."""
    findings = []
    for topic in probes:
        if topic.refused:
            refused = sum(topic.refused.values())
            reason, _ = topic.refused.most_common(1)[0]
            what = f"{topic.topic}: {refused} of {topic.records} records are no events. {topic.example}: {reason}"
            findings.append(Finding(what, "mend the producer, or say in [[mapping]] where the fields are"))
    return findings + _check_partitioners(probes) + _check_clocks(probes, clock_skew_ms)


def _check_partitioners(probes: Sequence[InputProbe]) -> list[Finding]:
    where: dict[str, dict[int, str]] = {}
    for topic in probes:
        for user, partitions in topic.partitions_of.items():
            for partition in partitions:
                where.setdefault(user, {}).setdefault(partition, topic.topic)
    torn = {user: places for user, places in where.items() if len(places) > 1}
    if not torn:
        return []
    user, places = next(iter(torn.items()))
    listed = " and ".join(f"{topic}-{partition}" for partition, topic in sorted(places.items()))
    others = [t.topic for t in probes if t.delays_ms and t.keyed < _MURMUR_SHARE * len(t.delays_ms)]
    do = (
        "send every input with user_id as the key and one partitioner (murmur2; librdkafka: partitioner=murmur2_random)"
    )
    if others:
        do += f"; not so sent: {', '.join(others)}"
    return [Finding(f"{len(torn)} of {len(where)} users are in two partitions: {user} in {listed}", do)]


def _check_clocks(probes: Sequence[InputProbe], clock_skew_ms: int) -> list[Finding]:
    delays = {topic.topic: median(topic.delays_ms) for topic in probes if topic.delays_ms}
    if not delays or min(delays.values()) > _REPLAY_MS:
        return []
    # A log published all at once has minutes of event time in one moment: delays scatter, though no clock is wrong.
    scatter = {topic.topic: _scatter(topic.delays_ms) for topic in probes if topic.delays_ms}
    findings = []
    for topic, delay in delays.items():
        if abs(delay) > _FAR_MS + scatter[topic]:
            side = "behind" if delay > 0 else "ahead of"
            what = f"{topic}: at_ms is {abs(delay) / 1000:.0f} s {side} the records' own time"
            findings.append(Finding(what, "look at the producer's clock, time zone and time unit"))
    low, high = min(delays, key=lambda t: delays[t]), max(delays, key=lambda t: delays[t])
    apart = delays[high] - delays[low]
    if apart > max(clock_skew_ms, 1000) + scatter[low] + scatter[high]:
        skew = f"join.clock_skew is {clock_skew_ms / 1000:g} s"
        what = f"the clocks of {high} and {low} are {apart / 1000:.0f} s apart ({skew})"
        findings.append(Finding(what, "bring the producers' clocks together, or send both with the same delay"))
    return findings


def _scatter(delays_ms: Sequence[int]) -> int:
    """Return the width of the middle nine tenths of the delays."""
    ordered = sorted(delays_ms)
    cut = len(ordered) // 20
    return ordered[-1 - cut] - ordered[cut]
