"""The consumer against a real broker and real worker processes; the program they run is at the end of this file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.structs import OffsetAndMetadata

from heft.stream.kafka.batch_consumer import TP, Starts
from heft.stream.kafka.local_broker import kafka_available, running_broker
from heft.stream.kafka.offsets import Bounds, OffsetGoneError
from tests.support.places import ROOT

pytestmark = pytest.mark.kafka
PARTITIONS = 2


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    # Tansu was seen to keep a killed member's partition for longer than a minute: who tests rebalances tests Kafka's.
    with running_broker("kafka" if kafka_available() else "tansu") as bootstrap:
        yield bootstrap


def _until(condition: Any, seconds: float = 30.0, what: str = "") -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)  # a poll for another process, not a guess at how long it takes
    msg = f"not within {seconds} s {what}"
    raise AssertionError(msg)


class Scene:
    """A topic of its own, workers that read it, and what they wrote down."""

    def __init__(self, broker: str, folder: Path, name: str, records: int) -> None:
        self.broker, self.folder, self.topic = broker, folder, name
        admin = KafkaAdminClient(bootstrap_servers=broker)
        admin.create_topics([NewTopic(name, PARTITIONS, 1)])
        admin.close()
        self.publish(records)
        self.workers: list[subprocess.Popen[bytes]] = []

    def publish(self, records: int, transaction: bool = False) -> None:
        name = self.topic if transaction else None
        producer = KafkaProducer(bootstrap_servers=self.broker, linger_ms=5, transactional_id=name)
        if transaction:
            producer.init_transactions()
            producer.begin_transaction()
        for n in range(records):
            producer.send(self.topic, value=b"%d" % n, partition=n % PARTITIONS)
        producer.flush()
        if transaction:
            producer.commit_transaction()
        producer.close()

    def snapshot(self, **offsets: int) -> None:
        for name, offset in offsets.items():
            (self.folder / name).write_text(str(offset))

    def worker(self, mode: str = "read") -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "tests.live.test_batch_consumer",
            self.broker,
            self.topic,
            str(self.folder),
            mode,
        ]
        with (self.folder / f"errors{len(self.workers)}").open("wb") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stderr=errors, stdout=errors)
        self.workers.append(process)
        return process

    def committed(self) -> list[int | None]:
        consumer = KafkaConsumer(bootstrap_servers=self.broker, group_id=self.topic, enable_auto_commit=False)
        committed = [consumer.committed(TopicPartition(self.topic, p)) for p in range(PARTITIONS)]
        consumer.close()
        return committed

    def errors(self, worker: int = 0) -> str:
        return (self.folder / f"errors{worker}").read_text()

    def notes(self) -> list[dict[str, Any]]:
        path = self.folder / "notes"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def seen(self, partition: int) -> list[int]:
        """The offsets that became part of the agents' state, in the order they did."""
        return [
            offset
            for note in self.notes()
            if note.get("partition") == partition
            for offset in range(note["first"], note["end"])
        ]

    def read_to(self, end: int, seconds: float = 30.0) -> None:
        def done() -> bool:
            return all((self.seen(p) or [-1])[-1] == end - 1 for p in range(PARTITIONS))

        _until(done, seconds, f"{[self.seen(p)[-3:] for p in range(PARTITIONS)]} {self.errors()[-2000:]}")


@pytest.fixture
def scene(broker: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(broker, tmp_path, request.node.name.replace("_", "-")[:60], getattr(request, "param", 4000))
    yield scene
    for worker in scene.workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


def test_reads_on_from_the_snapshot_whatever_the_broker_has_committed(scene: Scene) -> None:
    committed = KafkaConsumer(bootstrap_servers=scene.broker, group_id=scene.topic)
    committed.commit({TopicPartition(scene.topic, p): OffsetAndMetadata(7, "", -1) for p in range(PARTITIONS)})
    committed.close()
    scene.snapshot(p0=1500)
    scene.worker()
    scene.read_to(2000)
    assert scene.seen(0) == list(range(1500, 2000))
    assert scene.seen(1) == list(range(2000)), "without a snapshot a partition is read from its beginning"


def test_the_end_is_reached_although_a_control_record_is_the_last(scene: Scene) -> None:
    scene.publish(20, transaction=True)
    scene.worker("holes")
    scene.read_to(2010)
    _until(lambda: {"pid": scene.workers[0].pid, "behind": [0, 0]} in scene.notes()[-3:])
    scene.publish(20)
    scene.read_to(2021)
    assert [scene.seen(p) for p in range(PARTITIONS)] == [[*range(2010), *range(2011, 2021)]] * PARTITIONS


@pytest.mark.slow
def test_a_clean_stop_ends_with_zero_and_the_next_worker_goes_on(scene: Scene) -> None:
    worker = scene.worker()
    scene.read_to(2000)
    _until(lambda: scene.committed() == [2000, 2000], what="for the commits that lag tools read")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, scene.errors()
    scene.publish(400)
    scene.worker()
    scene.read_to(2200)
    assert [scene.seen(p) for p in range(PARTITIONS)] == [list(range(2200))] * PARTITIONS


@pytest.mark.slow
def test_a_held_partition_waits_and_loses_nothing(scene: Scene) -> None:
    scene.publish(8000)
    scene.worker("hold")
    _until(lambda: scene.seen(0) and scene.seen(1) and scene.seen(1)[-1] == 5999)
    assert len(scene.seen(0)) <= 3000, "held after its first batch of at most 1000, two more may be on their way"
    (scene.folder / "release").touch()
    scene.read_to(6000)
    assert scene.seen(0) == list(range(6000))


@pytest.mark.slow
def test_a_partition_that_takes_longer_to_open_than_a_session_lasts_is_opened_once(scene: Scene) -> None:
    scene.worker("slow")
    scene.read_to(2000)
    assert [note["assigned"] for note in scene.notes() if "assigned" in note] == [[0, 1]]


@pytest.mark.slow
def test_an_exception_in_an_agent_ends_the_process_with_its_traceback(scene: Scene) -> None:
    worker = scene.worker("fail")
    assert worker.wait(30) not in (0, None)
    assert "ZeroDivisionError" in scene.errors()
    assert "Traceback" in scene.errors()


@pytest.mark.slow
def test_an_offset_beyond_the_end_ends_the_process_and_says_so(scene: Scene) -> None:
    scene.snapshot(p1=99_999)
    worker = scene.worker()
    assert worker.wait(30) not in (0, None)
    assert f"{scene.topic}-1: expected to go on at offset 99999, but the topic holds 0 to 2000" in scene.errors()


def test_an_offset_that_retention_took_names_what_is_there() -> None:
    error = OffsetGoneError(TP("clicks", 3), 10, Bounds(50, 90))
    assert "clicks-3: expected to go on at offset 10, but the topic holds 50 to 90: retention" in str(error)
    assert "go on at 50" in str(error)


@pytest.mark.slow
def test_partitions_move_between_workers_that_are_killed_and_no_record_is_taken_twice_or_left_out(scene: Scene) -> None:
    scene.worker()
    for _ in range(3):
        other = scene.worker()
        _until(lambda pid=other.pid: any(note["pid"] == pid and note.get("assigned") for note in scene.notes()), 60)
        scene.publish(2000)
        _until(lambda pid=other.pid: any(note["pid"] == pid and "partition" in note for note in scene.notes()))
        other.kill()
        other.wait()
    scene.publish(2000)
    scene.read_to(6000, 60)
    assert [scene.seen(p) for p in range(PARTITIONS)] == [list(range(6000))] * PARTITIONS
    assert any("revoked" in note for note in scene.notes()), "partitions have moved"


def agent(broker: str, topic: str, folder: Path, mode: str) -> None:
    """Run an app whose state is the next offset of each partition, and which notes every batch that changed it."""
    import faust

    from heft.stream.kafka.batch_consumer import Batch, consumer_of, drive
    from heft.stream.kafka.faust_app import App, faust_settings

    quick = {"broker_session_timeout": 6, "broker_heartbeat_interval": 1}
    app = App(topic, broker=f"kafka://{broker}", **(faust_settings() | quick))

    def note(**fields: Any) -> None:
        with (folder / "notes").open("a") as notes:
            notes.write(json.dumps({"pid": os.getpid(), **fields}) + "\n")

    def reached(partition: int) -> int | None:
        """Where a partition goes on: after its last note, or where its snapshot says; None: at the beginning."""
        notes = (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []
        of_partition = [each for each in map(json.loads, notes) if each.get("partition") == partition]
        file = folder / f"p{partition}"
        if of_partition:
            return int(of_partition[-1]["next"])
        return int(file.read_text()) if file.exists() else None

    async def open_one(tp: TP) -> Starts:
        opened = time.monotonic()
        while mode == "slow" and time.monotonic() < opened + 9:
            await asyncio.sleep(0.1)  # longer than a session
        return {tp: reached(tp.partition)}

    async def on_assigned(tps: set[TP], generation: int) -> list[Coroutine[Any, Any, Starts]]:
        note(assigned=sorted(tp.partition for tp in tps), generation=generation)
        return [open_one(tp) for tp in tps]

    async def on_revoked(tps: set[TP]) -> None:
        if tps:
            note(revoked=sorted(tp.partition for tp in tps))

    def take(batch: Batch) -> None:
        partition = batch.tp.partition
        if mode == "fail":
            1 / 0  # noqa: B018
        first, end = batch.records[0].offset, batch.records[-1].offset + 1
        assert [r.offset for r in batch.records] == list(range(first, end))
        assert end == batch.end_offset or mode == "holes"
        had = reached(partition) or 0
        assert first == had or mode == "holes", f"{batch.tp} jumped from {had} to {first}"
        # The notes are the state: one line says both, so that a kill cannot come between them.
        note(partition=partition, first=first, end=end, next=batch.end_offset)

    drive(app, {"bootstrap_servers": broker}, on_assigned, on_revoked, together=[[topic]])

    @app.agent(app.topic(topic, acks=False))
    async def read(stream: Any) -> None:
        async for batch in stream.noack():
            take(batch)
            if mode == "hold" and batch.tp.partition == 0:
                consumer_of(app).hold(batch.tp)
            consumer_of(app).done(batch)
            await consumer_of(app).commit_offsets({batch.tp: batch.end_offset})

    @app.timer(0.1)
    async def note_what_is_left() -> None:
        consumer = consumer_of(app)
        ends = await consumer.end_offsets(consumer.assigned)
        # A rebalance may have come while the ends were fetched.
        left = {tp: end - consumer.next_offset(tp) for tp, end in ends.items() if tp in consumer.assigned}
        note(behind=[left[tp] for tp in sorted(left)])

    @app.timer(0.1)
    async def release() -> None:
        if (folder / "release").exists():
            consumer_of(app).release(TP(topic, 0))

    faust.Worker(app, loglevel="WARN", redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    agent(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
