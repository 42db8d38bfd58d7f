"""Brokers of our own: up, answering, restarted, gone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heft.stream.config.settings import Config, KafkaConfig
from heft.stream.kafka.bulk_reader import read_partition
from heft.stream.kafka.connect import client_settings
from heft.stream.kafka.local_broker import Broker, BrokerError, free_port, kafka_available, running_broker
from heft.stream.kafka.topics import Topics

pytestmark = pytest.mark.kafka

WITH_KAFKA = pytest.mark.skipif(not kafka_available(), reason="Apache Kafka needs java, and mvn or KAFKA_HOME")


@pytest.fixture(params=["tansu", pytest.param("kafka", marks=[pytest.mark.slow, WITH_KAFKA])])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(request.param, data=tmp_path / "data")
    yield broker
    broker.close()


def config_of(bootstrap: str) -> Config:
    return Config(kafka=KafkaConfig(bootstrap=bootstrap, partitions=2))


def sent(bootstrap: str, value: bytes) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    producer.send("clicks", value, partition=0).get(timeout=20)
    producer.close()


def values(bootstrap: str) -> list[bytes]:
    settings = client_settings(KafkaConfig(bootstrap=bootstrap))
    return [record.value for record in read_partition(settings, "clicks", 0)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_sent_is_there(broker: Broker) -> None:
    broker.start()
    with Topics(config_of(broker.bootstrap)) as topics:
        topics.create()
    sent(broker.bootstrap, b"one")
    sent(broker.bootstrap, b"two")
    assert values(broker.bootstrap) == [b"one", b"two"]
    pid = broker.pid
    broker.stop()
    assert pid is not None
    assert broker.pid is None
    assert not alive(pid)


@pytest.mark.slow
@WITH_KAFKA
def test_apache_kafka_keeps_its_data_over_a_stop_and_a_power_cut(tmp_path: Path) -> None:
    broker = Broker("kafka", data=tmp_path / "data")
    try:
        broker.start()
        with Topics(config_of(broker.bootstrap)) as topics:
            topics.create()
        sent(broker.bootstrap, b"one")
        broker.kill()
        broker.start()
        sent(broker.bootstrap, b"two")
        broker.stop()
        broker.start()
        assert values(broker.bootstrap) == [b"one", b"two"]
    finally:
        broker.close()


def test_a_taken_port_is_an_error_that_says_so() -> None:
    with running_broker() as bootstrap:
        port = int(bootstrap.rpartition(":")[2])
        with pytest.raises(BrokerError, match=f"port {port} .* is taken"), running_broker(port=port):
            pass


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BrokerError, match="'tansu' or 'kafka'"):
        Broker("redpanda")  # type: ignore[arg-type]


def test_temporary_data_goes_with_the_broker() -> None:
    broker = Broker()
    broker.start()
    assert broker.data.is_dir()
    broker.close()
    assert not broker.data.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child of its parent's death")
def test_a_broker_dies_with_its_parent() -> None:
    start = "import sys; from heft.stream.kafka.local_broker import Broker; b = Broker(); b.start(); "
    code = start + "print(b.pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
        gone = os.pidfd_open(pid) if alive(pid) else None
        if gone is not None:
            assert select.select([gone], [], [], 10)[0], "the broker outlived its parent"
            os.close(gone)
    assert not alive(pid)


def test_the_command_ends_on_sigterm_and_leaves_nothing() -> None:
    port = free_port()
    command = [sys.executable, "-m", "heft", "broker", "run", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"127.0.0.1:{port}" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with running_broker(port=port):  # the port is free again
        pass
