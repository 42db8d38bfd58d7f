"""A real worker process on a real broker: what it writes is what the pure `Joiner` gives."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from models.sample import Record
from stream import events, messages, snapshots
from stream.broker import running_broker
from stream.events import Action, Click, Event, Impression, Order
from stream.fence import Owner, Rightful
from stream.join import JoinConfig, Joiner
from stream.messages import Message, ScoredReader
from stream.snapshot import SnapshotError, SnapshotStore
from tests.builders import HOUR, MINUTE, SECOND, action, click, impression, order

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
ROOT = Path(__file__).parent.parent
INPUTS = ("impressions", "clicks", "orders", "actions")
TOPIC_OF: dict[type, str] = {Impression: "impressions", Click: "clicks", Order: "orders", Action: "actions"}
NEVER_IDLE = 10**9


def traffic(requests: int, seed: int) -> list[Event]:
    """Slates a second apart with clicks, orders and actions, then five users in each topic far later."""
    chance = random.Random(seed)
    log: list[Event] = []
    for n in range(requests):
        request, user, at = f"r{n}", f"u{n % 17}", n * SECOND
        log.append(impression(request, user, at))
        if chance.random() < 0.4:
            log.append(click(request, chance.choice("abcx"), user, at + chance.randrange(1, 11 * MINUTE)))
        if chance.random() < 0.2:
            log.append(order(f"o{n}", chance.choice("abc"), user, at + chance.randrange(SECOND, HOUR)))
        if chance.random() < 0.3:
            log.append(action(chance.choice("abc"), user, at + chance.randrange(SECOND)))
    log.sort(key=lambda event: event.at_ms)
    end = 30 * HOUR
    for n in range(5):
        user = f"last{n}"
        log += [impression(f"last{n}", user, end), click(f"none{n}", "a", user, end)]
        log += [order(f"last{n}", "a", user, end), action("a", user, end)]
    return log


class Shop:
    """Topics, what was published into them, and workers that read them."""

    def __init__(self, bootstrap: str, folder: Path, name: str, **join: Any) -> None:
        self.bootstrap, self.folder, self.name, self.join = bootstrap, folder, name, join
        self.workers: list[subprocess.Popen[bytes]] = []
        self.may_end: list[subprocess.Popen[bytes]] = []
        self.published: dict[str, list[bytes]] = {topic: [] for topic in INPUTS}
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        admin.create_topics([NewTopic(self.topic(t), 1, 1) for t in (*INPUTS, "samples", "scored", "rejected")])
        admin.close()

    def topic(self, short: str) -> str:
        return f"{self.name}.{short}"

    def publish(self, log: Sequence[Event | tuple[str, bytes]]) -> None:
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=2)
        for event in log:
            topic, raw = event if isinstance(event, tuple) else (TOPIC_OF[type(event)], events.encode(event))
            self.published[topic].append(raw)
            producer.send(self.topic(topic), raw, partition=0)
        producer.flush()
        producer.close()

    def worker(self, *stages: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stream.cli", "worker", "--config", str(self._config())]
        command += ["--stages", ",".join(stages)] if stages else []
        with (self.folder / f"errors{len(self.workers)}").open("wb") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stderr=errors, stdout=errors)
        self.workers.append(process)
        return process

    def _config(self) -> Path:
        names = "\n".join(f'{t} = "{self.topic(t)}"' for t in (*INPUTS, "samples", "scored", "rejected"))
        join = "\n".join(f"{key} = {value}" for key, value in self.join.items())
        path = self.folder / "heft.toml"
        path.write_text(
            f'[kafka]\nbootstrap = "{self.bootstrap}"\ngroup = "{self.name}"\n[kafka.topics]\n{names}\n'
            f'[join]\n{join}\n[snapshots]\nurl = "{self.folder}/snapshots"\ninterval = "1s"\n'
        )
        return path

    def errors(self) -> str:
        return "\n".join((self.folder / f"errors{n}").read_text()[-3000:] for n in range(len(self.workers)))

    def read(self, short: str) -> list[bytes]:
        """All records of a topic."""
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, auto_offset_reset="earliest")
        consumer.assign([TopicPartition(self.topic(short), 0)])
        records: list[bytes] = []
        while got := consumer.poll(timeout_ms=300, max_records=10_000):
            records += [record.value for batch in got.values() for record in batch]
        consumer.close()
        return records

    def messages(self, short: str) -> list[Message]:
        return [messages.decode(raw) for raw in self.read(short)]

    def scored(self) -> list[Record]:
        """What the log holds for who reads it as it is meant to be read."""
        reader = ScoredReader()
        return [record for message in self.messages("scored") for record in reader.read(message)]

    def pure(self) -> list[Record]:
        """What the pure joiner makes of the same inputs and the idle marks that the messages note."""
        joiner = Joiner(JoinConfig(**self.join), INPUTS)
        owner, made = Rightful(Owner()), []

        def read_to(offsets: tuple[int, ...]) -> None:
            for number, end in enumerate(offsets):
                for offset in range(joiner.offsets[number], end):
                    joiner.push(number, offset, self.published[INPUTS[number]][offset])

        for message in self.messages("samples"):
            if owner.passes(message):
                for mark in message.marks:
                    read_to(mark.offsets)
                    joiner.apply(mark)
                read_to(message.offsets)
                made += [record for _, record in joiner.drain()]
        return made

    def until(self, condition: Callable[[], Any], seconds: float = 40.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s; {self.errors()}"
            dead = [w for w in self.workers if w.poll() not in (None, 0, -signal.SIGKILL) and w not in self.may_end]
            assert not dead, self.errors()
            time.sleep(0.1)  # a poll for another process, not a guess at how long it takes

    def stop(self, worker: subprocess.Popen[bytes]) -> None:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0, self.errors()


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with running_broker("tansu") as bootstrap:
        yield bootstrap


@pytest.fixture
def shop(bootstrap: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", **getattr(request, "param", {}))
    yield shop
    for worker in shop.workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


def undisturbed(shop: Shop) -> list[Record]:
    """What one joiner makes of all that was published, topic after topic, nothing ever idle."""
    joiner = Joiner(JoinConfig(**shop.join), INPUTS)
    for number, topic in enumerate(INPUTS):
        for offset, raw in enumerate(shop.published[topic]):
            joiner.push(number, offset, raw)
    return [record for _, record in joiner.drain()]


@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE}], indirect=True)
def test_what_reaches_scored_is_what_the_pure_joiner_gives(shop: Shop) -> None:
    shop.publish(traffic(600, seed=1))
    expected = undisturbed(shop)
    worker = shop.worker("join", "score")
    shop.until(lambda: len(shop.scored()) >= len(expected))
    assert shop.scored() == expected
    assert len(expected) > 1500, "shown and closed of every slate, clicks and what became of them"
    shop.stop(worker)
    assert {path.name for path in (shop.folder / "snapshots").iterdir()} == {"join-0", "score-0"}


def test_a_quiet_topic_does_not_hold_the_others_back(shop: Shop) -> None:
    log = [event for event in traffic(300, seed=2) if not isinstance(event, Order)]
    shop.publish(log)
    shop.worker("join", "score")
    shop.until(lambda: len(shop.scored()) >= 600)
    assert shop.scored() == shop.pure()
    assert any(mark.idle for message in shop.messages("samples") for mark in message.marks)


def test_what_is_no_event_goes_to_rejected_with_its_place_and_the_stream_goes_on(shop: Shop) -> None:
    bad = [("clicks", b"\xff\xfe"), ("impressions", b'{"type":"click"}'), ("actions", b"[1]")]
    shop.publish([*bad, *traffic(20, seed=3)])
    shop.worker("join", "score")
    shop.until(lambda: len(shop.scored()) >= 40 and len(shop.read("rejected")) >= 3)
    rejected = [json.loads(raw) for raw in shop.read("rejected")]
    assert {(each["topic"].split(".")[-1], each["offset"]) for each in rejected} == {(topic, 0) for topic, _ in bad}
    assert all("$" in each["reason"] for each in rejected)


@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE}], indirect=True)
def test_a_stopped_worker_is_followed_by_one_that_goes_on(shop: Shop) -> None:
    log = traffic(600, seed=4)
    shop.publish(log[:700])
    first = shop.worker("join", "score")
    shop.until(lambda: len(shop.scored()) > 200)
    shop.stop(first)
    shop.publish(log[700:])
    expected = undisturbed(shop)
    second = shop.worker("join", "score")
    shop.until(lambda: len(shop.scored()) >= len(expected))
    assert shop.scored() == expected
    shop.stop(second)


def test_learning_again_from_one_snapshot_gives_a_later_one(shop: Shop) -> None:
    log, store = traffic(400, seed=5), SnapshotStore(f"{shop.folder}/snapshots", keep=1000)
    worker = shop.worker()
    shop.publish(log[:400])
    shop.until(lambda: store.names("learn-0"))
    first = store.names("learn-0")[0]
    kept = (shop.folder / "snapshots" / first.file).read_bytes()
    shop.publish(log[400:])
    shop.until(lambda: store.names("learn-0")[-1].offset > first.offset)
    shop.stop(worker)
    # Meanwhile it may have made way for newer ones; its segments, if any, are those of the second.
    (shop.folder / "snapshots" / first.file).write_bytes(kept)
    last = store.names("learn-0")[-1]
    again = snapshots.verify(shop.folder / "heft.toml", first.file, last.file, lambda _: None)
    learner, _ = store.load(last)
    assert learner["learner"]["samples"] > 0
    assert len(again) == 32
    with pytest.raises(SnapshotError, match="an older and a newer"):
        snapshots.verify(shop.folder / "heft.toml", last.file, first.file, lambda _: None)
