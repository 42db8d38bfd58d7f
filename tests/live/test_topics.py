"""Topics made, filled from a log, merged, recorded and shown."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaProducer
from typer.testing import CliRunner

from heft.models.records import FIRST_KEY
from heft.stream.cli.main import app
from heft.stream.config.as_toml import to_toml
from heft.stream.config.settings import Config, KafkaConfig
from heft.stream.config.settings import Topics as TopicNames
from heft.stream.events.log import read_lines
from heft.stream.events.mapping import MappingTable
from heft.stream.events.messages import Message
from heft.stream.events.messages import encode as encode_message
from heft.stream.events.watermark import Input
from heft.stream.events.wire import Action, Click, Event, EventError, Impression, Order, decode, encode
from heft.stream.kafka.bulk_reader import (
    Ended,
    Merged,
    TopicRecord,
    input_partitions,
    merge,
    read_inputs,
    read_partition,
)
from heft.stream.kafka.connect import client_settings
from heft.stream.kafka.connection_errors import TopicError
from heft.stream.kafka.local_broker import running_broker
from heft.stream.kafka.publish import newest_json, publish, record
from heft.stream.kafka.topics import Topics
from tests.support.builders import HOUR, MINUTE, SECOND, T0, action, click, impression, order

LATENESS = 10 * SECOND


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with running_broker() as bootstrap:
        yield bootstrap


def config_of(bootstrap: str, name: str, **more: object) -> Config:
    """A configuration whose topics no other test uses."""
    names = {field: f"{name}-{field}" for field in TopicNames.__struct_fields__}
    kafka = KafkaConfig(bootstrap=bootstrap, partitions=3, topics=TopicNames(**names))
    return Config(kafka=kafka, **more)  # type: ignore[arg-type]


def traffic(n: int = 300) -> list[Event]:
    """Events of 40 users over some minutes, in arrival order: up to 9 s late, and a clock a year ahead."""
    random_ = random.Random(4)
    events: list[tuple[int, Event]] = []
    for number in range(n):
        user, at = f"u{random_.randrange(40)}", number * SECOND
        events.append((at, impression(request=f"r{number}", user=user, at=at)))
        events.append((at + random_.randrange(9000), action(user=user, at=at)))
        if number % 5 == 0:
            events.append((at + 3000, click(request=f"r{number}", user=user, at=at + 3000)))
        if number % 60 == 0:
            events.append((at + 5000, order(order_id=f"o{number}", user=user, at=at + 5000)))
    events.append((90 * SECOND, action(user="broken", at=365 * 24 * HOUR)))
    return [event for _, event in sorted(events, key=lambda pair: pair[0])]


def written(path: Path, events: Sequence[Event]) -> Path:
    path.write_bytes(b"".join(encode(event) + b"\n" for event in events))
    return path


def late(events: Sequence[Event]) -> list[Event]:
    """Those that come after the watermark of their sequence has passed them."""
    seen, found = Input(), []
    for event in events:
        seen.see(event.user_id, event.at_ms, LATENESS)
        if event.at_ms < seen.watermark:
            found.append(event)
    return found


def as_source(input_: int, events: Sequence[Event]) -> Iterator[Merged]:
    for offset, event in enumerate(events):
        yield Merged(input_, TopicRecord(f"t{input_}", 0, offset, 0, None, encode(event)), [event])


def merged(sources: Sequence[Sequence[Event]]) -> list[Event]:
    return [
        event
        for one in merge([as_source(n, source) for n, source in enumerate(sources)], LATENESS, HOUR)
        if isinstance(one, Merged)
        for event in one.events or ()
    ]


# ---------------------------------------------------------------- merging


@given(st.lists(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 9)), max_size=40), min_size=1, max_size=4))
def test_what_is_on_time_in_its_topic_is_on_time_in_the_merged_sequence(topics: list[list[tuple[int, int]]]) -> None:
    sources: list[list[Event]] = []
    for n, topic in enumerate(topics):
        newest = 0
        source: list[Event] = []
        for at, user in topic:
            # No more than the lateness behind the newest of its topic.
            newest = max(newest, at)
            source.append(action(user=f"{n}-{user}", at=max(at, newest - 10) * SECOND))
        sources.append(source)
    out = merged(sources)
    assert late(out) == []
    for n, source in enumerate(sources):
        assert [event for event in out if event.user_id.startswith(f"{n}-")] == source


def test_the_end_of_each_topic_is_told_after_its_last_record() -> None:
    sources: list[list[Event]] = [[action(at=n * SECOND) for n in range(length)] for length in (3, 0, 5)]
    out = list(merge([as_source(n, source) for n, source in enumerate(sources)], LATENESS, HOUR))
    last = {n: max((at for at, one in enumerate(out) if one == Ended(n)), default=-1) for n in range(3)}
    assert sorted(one.input for one in out if isinstance(one, Ended)) == [0, 1, 2]
    for at, one in enumerate(out):
        assert at <= last[one.input]


def test_a_sparse_topic_runs_neither_ahead_nor_behind() -> None:
    clicks: list[Event] = [click(request=f"r{n}", user=f"u{n % 9}", at=n * SECOND) for n in range(600)]
    orders: list[Event] = [order(order_id=f"o{n}", user=f"b{n}", at=n * 2 * MINUTE) for n in range(5)]
    times = [event.at_ms for event in merged([clicks, orders])]
    assert times == sorted(times)


@pytest.mark.parametrize("first", [0, 1, 50])
def test_a_clock_a_year_ahead_holds_its_topic_back_only_before_anything_else_is_known(first: int) -> None:
    shown: list[Event] = [impression(request=f"r{n}", user=f"u{n % 9}", at=n * SECOND) for n in range(600)]
    acts: list[Event] = [action(user=f"a{n % 9}", at=n * SECOND) for n in range(600)]
    acts.insert(first, action(user="broken", at=365 * 24 * HOUR))
    assert late(merged([shown, acts])) == []


# ---------------------------------------------------------------- on a broker


@pytest.mark.kafka
def test_topics_are_made_once_as_they_are_wanted(bootstrap: str) -> None:
    config = config_of(bootstrap, "made")
    with Topics(config) as topics:
        assert topics.found() == {}
        made = topics.create()
        found = topics.found()
        assert [wanted.name for wanted in made] == [
            *config.inputs,
            *(f"made-{rest}" for rest in ("samples", "scored", "rejected")),
        ]
        assert {name: topic.partitions for name, topic in found.items()} == {w.name: w.partitions for w in made}
        assert (found["made-clicks"].partitions, found["made-scored"].partitions) == (3, 1)
        assert topics.create() == []
    assert input_partitions(config) == 3


@pytest.mark.kafka
def test_a_log_published_and_recorded_is_the_same_log_in_parts(bootstrap: str, tmp_path: Path) -> None:
    config = config_of(bootstrap, "again")
    with Topics(config) as topics:
        topics.create()
    events = traffic()
    told: list[int] = []
    sent = publish(written(tmp_path / "log.jsonl", events), config, progress=told.append)
    assert sum(told) == sum(sent.values()) == len(events)

    logs = record(tmp_path / "out", config, range(3))
    parts = [[decode(line) for line in read_lines(path)] for path in logs]
    assert sorted(encode(event) for part in parts for event in part) == sorted(map(encode, events))
    users = [{event.user_id for event in part} for part in parts]
    assert all(part for part in parts)
    assert sum(map(len, users)) == len(set().union(*users)), "a user is in two partitions"
    for part in parts:
        assert late(part) == []


@pytest.mark.kafka
def test_a_time_span_can_be_recorded(bootstrap: str, tmp_path: Path) -> None:
    config = config_of(bootstrap, "span")
    with Topics(config) as topics:
        topics.create()
    events = traffic()
    publish(written(tmp_path / "log.jsonl", events), config)
    since, until = T0 + 60 * SECOND, T0 + 120 * SECOND
    logs = record(tmp_path / "out", config, range(3), since, until)
    got = sorted(line for path in logs for line in read_lines(path))
    assert got == sorted(encode(event) for event in events if since <= event.at_ms < until)


@pytest.mark.kafka
def test_publishing_at_a_multiple_of_event_time_takes_that_long(bootstrap: str, tmp_path: Path) -> None:
    from time import monotonic

    config = config_of(bootstrap, "pace")
    with Topics(config) as topics:
        topics.create()
    log = written(tmp_path / "log.jsonl", [action(user="a", at=0), action(user="b", at=3 * MINUTE)])
    started = monotonic()
    publish(log, config, speed=360)
    assert monotonic() - started >= 0.5


@pytest.mark.kafka
def test_a_line_that_is_no_event_is_not_published(bootstrap: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(encode(click()) + b'\n{"type":"clack"}\n')
    config = config_of(bootstrap, "bad")
    with Topics(config) as topics:
        topics.create()
    with pytest.raises(EventError, match=r"log\.jsonl, event 2: .*clack"):
        publish(tmp_path / "log.jsonl", config)


@pytest.mark.kafka
def test_records_that_are_no_events_are_recorded_too_and_mapped_ones_as_events(bootstrap: str, tmp_path: Path) -> None:
    table = MappingTable("raw-taps", "click", {"request_id": "q", "user_id": "u", "item_id": "i", "at_ms": "t"})
    config = config_of(bootstrap, "raw", mapping=(table,))
    assert config.inputs[0] == "raw-taps"
    with Topics(config) as topics:
        topics.create()
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    producer.send("raw-taps", msgspec.json.encode({"q": "r1", "u": "u1", "i": "a", "t": T0}), partition=0)
    producer.send("raw-taps", b'{"q":\n1}', partition=0)
    producer.send("raw-impressions", encode(impression()).replace(b",", b",\n"), partition=0)
    producer.close()
    (path,) = record(tmp_path / "out", config, [0])
    assert sorted(read_lines(path)) == sorted([encode(click(at=0)), b'{"q": 1}', encode(impression())])


@pytest.mark.kafka
def test_reading_starts_where_it_is_told_and_ends_at_the_end_of_its_beginning(bootstrap: str, tmp_path: Path) -> None:
    config = config_of(bootstrap, "part")
    with Topics(config) as topics:
        topics.create()
    publish(written(tmp_path / "log.jsonl", traffic()), config)
    settings = client_settings(config.kafka)
    whole = list(read_partition(settings, "part-actions", 1))
    assert [one.offset for one in whole] == list(range(len(whole)))
    assert list(read_partition(settings, "part-actions", 1, start=7, end=12)) == whole[7:12]
    inputs = [one for one in read_inputs(config, 1) if isinstance(one, Merged)]
    assert [one.record for one in inputs if one.record.topic == "part-actions"] == whole
    with pytest.raises(TopicError, match="no such partition"):
        next(read_partition(settings, "part-actions", 9))


@pytest.mark.kafka
def test_the_newest_records_of_any_topic_are_shown_as_json(bootstrap: str, tmp_path: Path) -> None:
    config = config_of(bootstrap, "tail")
    with Topics(config) as topics:
        topics.create()
    publish(written(tmp_path / "log.jsonl", traffic()), config)
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    producer.send("tail-scored", encode_message(Message(2, 0, 1, "w", FIRST_KEY, (1,), marker=True)), partition=0)
    producer.send("tail-rejected", b"\xff\xfe", partition=0)
    producer.close()
    shown = [json.loads(line) for line in newest_json(config, "tail-impressions", 2)]
    assert [one["partition"] for one in shown] == [0, 0, 1, 1, 2, 2]
    assert {one["value"]["type"] for one in shown} == {"impression"}
    (scored,) = (json.loads(line) for line in newest_json(config, "tail-scored", 5))
    assert (scored["value"]["source"], scored["value"]["marker"]) == (2, True)
    (rejected,) = (json.loads(line) for line in newest_json(config, "tail-rejected", 5))
    assert rejected["value"]["length"] == 2
    with pytest.raises(TopicError, match="there is no topic nowhere"):
        list(newest_json(config, "nowhere", 1))


@pytest.mark.kafka
def test_the_simulated_shop_sends_what_happens_from_now_on_by_type_and_user(bootstrap: str, tmp_path: Path) -> None:
    config = config_of(bootstrap, "simulated")
    with Topics(config) as topics:
        topics.create()
    file = tmp_path / "heft.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    began_ms = time.time_ns() // 1_000_000
    options = ["--publish", "--requests", "50", "--speed", "1e6", "--config", str(file)]
    told = CliRunner().invoke(app, ["simulate", *options], catch_exceptions=False).stdout

    found: Counter[str] = Counter()
    partitions: dict[str, set[int]] = {}
    names = {config.kafka.topics.impressions: Impression, config.kafka.topics.clicks: Click}
    names |= {config.kafka.topics.orders: Order, config.kafka.topics.actions: Action}
    for topic, kind in names.items():
        for partition in range(3):
            for sent in read_partition(client_settings(config.kafka), topic, partition):
                event = decode(sent.value)
                assert isinstance(event, kind)
                assert began_ms <= event.at_ms
                found[topic] += 1
                partitions.setdefault(event.user_id, set()).add(partition)
    assert 45 <= found[config.kafka.topics.impressions] <= 55  # some are lost on the way, or come twice
    assert dict(each.rsplit(" ", 1) for each in told.strip().split(", ")) == {t: str(n) for t, n in found.items()}
    assert all(len(each) == 1 for each in partitions.values())
    assert len(set().union(*partitions.values())) == 3
