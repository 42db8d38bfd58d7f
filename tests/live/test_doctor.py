"""What the doctor says of a healthy cluster: nothing. Of each illness: what it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kafka import KafkaProducer
from typer.testing import CliRunner

from heft.stream.cli import main as cli
from heft.stream.cli.doctor import Finding, check_snapshots, check_topics, examine
from heft.stream.config.settings import Config, KafkaConfig, SnapshotConfig
from heft.stream.config.settings import Topics as TopicNames
from heft.stream.events.wire import encode
from heft.stream.kafka.local_broker import free_port, running_broker
from heft.stream.kafka.publish import Publisher
from heft.stream.kafka.topics import Found, Topics, wanted_topics
from tests.support.builders import DAY, HOUR, T0, action, click, impression, order

WANTED = wanted_topics(Config())
HEALTHY = {topic.name: Found(topic.name, topic.partitions, {"retention.ms": topic.retention_ms}) for topic in WANTED}


def now() -> int:
    """The wall time, which brokers stamp records with, in the time of the builders; not that of the import."""
    return round(datetime.now(UTC).timestamp() * 1000) - T0  # noqa: TID251


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with running_broker() as bootstrap:
        yield bootstrap


@pytest.fixture
def config(bootstrap: str, tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    """A configuration of topics that exist and that no other test uses."""
    names = {field: f"{request.node.name[:80]}-{field}" for field in TopicNames.__struct_fields__}
    kafka = KafkaConfig(bootstrap=bootstrap, partitions=3, topics=TopicNames(**names))
    config = Config(kafka=kafka, snapshots=SnapshotConfig(url=str(tmp_path / "snapshots")))
    with Topics(config) as topics:
        topics.create()
    return config


def fill(config: Config, at: int | None = None, clicks_at: int | None = None) -> None:
    at = now() if at is None else at
    publisher = Publisher(config)
    for n in range(40):
        user = f"u{n}"
        publisher.send(impression(request=f"r{n}", user=user, at=at))
        publisher.send(click(request=f"r{n}", user=user, at=at if clicks_at is None else clicks_at))
        publisher.send(action(user=user, at=at))
        publisher.send(order(order_id=f"o{n}", user=user, at=at))
    publisher.close()


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


# ---------------------------------------------------------------- topics and their settings


def test_topics_as_they_are_wanted_are_healthy() -> None:
    assert check_topics(WANTED, HEALTHY) == []


@pytest.mark.parametrize(
    ("name", "found", "what", "do"),
    [
        ("clicks", Found("clicks", 6, {}), "partition counts differ: impressions 4, clicks 6", "make them alike"),
        ("samples", Found("samples", 1, {}), "partition counts differ", "samples"),
        ("scored", Found("scored", 4, {}), "scored has 4 partitions, but join.shards asks for 1", "shard"),
        ("scored", Found("scored", 1, {"retention.ms": "604800000"}), "scored expires", "retention.ms=-1"),
        ("scored", Found("scored", 1, {"retention.bytes": "1000"}), "scored expires", "retention.bytes=-1"),
        ("orders", Found("orders", 4, {"cleanup.policy": "compact"}), "orders is compacted", "delete"),
        ("samples", Found("samples", 4, {"max.message.bytes": "1000"}), "1000 bytes at most", "1000000 or more"),
    ],
)
def test_a_topic_that_is_not_as_wanted_is_named(name: str, found: Found, what: str, do: str) -> None:
    finding = only(check_topics(WANTED, {**HEALTHY, name: found}))
    assert what in finding.what
    assert do in finding.do


def test_a_missing_topic_is_named() -> None:
    finding = only(check_topics(WANTED, {name: topic for name, topic in HEALTHY.items() if name != "orders"}))
    assert finding == Finding("there is no topic orders (input)", "make it with `heft topics --create`")


# ---------------------------------------------------------------- snapshots


def test_a_probe_is_written_read_and_removed(tmp_path: Path) -> None:
    assert check_snapshots(str(tmp_path / "new" / "folder")) == []
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for url in (str(tmp_path / "file"), "nosuchscheme://x"):
        finding = only(check_snapshots(url))
        assert url in finding.what
        assert "snapshots.url" in finding.do


# ---------------------------------------------------------------- a live cluster


@pytest.mark.kafka
def test_a_healthy_cluster_is_healthy(config: Config) -> None:
    assert examine(config) == []
    fill(config)
    assert examine(config) == []


@pytest.mark.kafka
def test_an_old_log_that_was_published_is_no_illness(config: Config) -> None:
    fill(config, at=now() - 400 * DAY)
    assert examine(config) == []


@pytest.mark.kafka
def test_a_fresh_log_published_at_once_is_no_illness(config: Config) -> None:
    publisher = Publisher(config)
    for n in range(600):
        at = now() - (600 - n) * 1000
        publisher.send(action(user=f"u{n % 50}", at=at))
        if n < 300:
            publisher.send(order(order_id=f"o{n}", user=f"u{n % 50}", at=at))
    publisher.close()
    assert examine(config) == []


@pytest.mark.kafka
def test_clocks_that_disagree_are_named_with_seconds(config: Config) -> None:
    fill(config, clicks_at=now() - HOUR)
    far, apart = examine(config)
    assert "clicks: at_ms is 360" in far.what
    assert "behind" in far.what
    assert "are 3600 s apart (join.clock_skew is 5 s)" in apart.what


@pytest.mark.kafka
def test_records_that_do_not_decode_are_named_with_place_and_path(config: Config, bootstrap: str) -> None:
    fill(config)
    topic = config.kafka.topics.clicks
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    raw = encode(click(user="u1", at=now())).replace(b'"user_id":"u1"', b'"user_id":1')
    where = producer.send(topic, raw, partition=1).get(timeout=10)
    producer.close()
    finding = only(examine(config))
    assert f"1 of 41 records are no events. {topic}-1 offset {where.offset}:" in finding.what
    assert "`$.user_id`" in finding.what
    assert "[[mapping]]" in finding.do


@pytest.mark.kafka
def test_a_topic_with_another_partitioner_is_named(config: Config, bootstrap: str) -> None:
    fill(config)
    topic = config.kafka.topics.actions
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for n in range(40):
        producer.send(topic, encode(action(user=f"u{n}", at=now())), partition=n % 3)
    producer.close()
    finding = only(examine(config))
    assert "of 40 users are in two partitions" in finding.what
    assert "murmur2" in finding.do
    assert f"not so sent: {topic}" in finding.do
    assert config.kafka.topics.clicks not in finding.do


@pytest.mark.kafka
def test_the_command_says_so_and_exits_with_1(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEFT_KAFKA__BOOTSTRAP", config.kafka.bootstrap)
    said = CliRunner().invoke(cli.app, ["doctor"])
    assert said.exit_code == 1
    assert "there is no topic impressions" in said.output
    assert "heft topics --create" in said.output
    assert CliRunner().invoke(cli.app, ["topics", "--create"]).exit_code == 0
    said = CliRunner().invoke(cli.app, ["doctor"])
    assert (said.exit_code, "nothing wrong" in said.output) == (0, True)


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    config = Config(kafka=KafkaConfig(bootstrap=bootstrap), snapshots=SnapshotConfig(url=str(tmp_path)))
    finding = only(examine(config))
    assert f"no broker answers at {bootstrap}" in finding.what
    assert "heft broker run" in finding.do
