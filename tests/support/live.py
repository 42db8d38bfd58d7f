"""A shop on a real broker: topics, what was published into them, and real worker processes that read them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from msgspec.structs import replace

from heft.models.records import Closed, Record, Shown
from heft.stream.config.settings import Config, load
from heft.stream.events import messages, wire
from heft.stream.events.messages import Message, ScoredReader
from heft.stream.events.wire import Action, Click, Event, Impression, Order
from heft.stream.join.config import JoinConfig
from heft.stream.join.joiner import Joiner
from heft.stream.kafka.partition_log import Owner, OwnerFilter
from heft.stream.learn.learner import Learner
from heft.stream.state.store import SnapshotStore
from tests.support.places import ROOT

INPUTS = ("impressions", "clicks", "orders", "actions")
TOPICS = (*INPUTS, "samples", "scored", "rejected")
TOPIC_OF: dict[type, str] = {Impression: "impressions", Click: "clicks", Order: "orders", Action: "actions"}
NEVER_IDLE = 10**9
"""Milliseconds of ``idle_after``: the order in which topics are read then changes nothing."""

HEFT = ("-m", "heft")


def learned_late(seen: dict[str, float]) -> float:
    """Messages that were learned more than ten seconds after they were due, of what a worker exports."""
    learned = 'heft_stage_delay_seconds_{}{{{}stage="learn"}}'
    return seen.get(learned.format("count", ""), 0.0) - seen.get(learned.format("bucket", 'le="10.0",'), 0.0)


class Shop:
    """Topics, what was published into them by partition, and workers.

    Parameters
    ----------
    bootstrap, folder, name
        The broker, where files go, and the prefix of the topics.
    partitions
        Of the inputs and of `samples`; users are spread by their number.
    interval, session
        Between snapshots; and how long a worker may be silent.
    message_bytes
        The largest record that the topics take.
    teacher
        Settings of the teacher.
    **join
        Settings of the join.
    """

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        name: str,
        partitions: int = 1,
        interval: str = "1s",
        session: str = "6s",
        message_bytes: int | None = None,
        teacher: dict[str, Any] | None = None,
        **join: Any,
    ) -> None:
        self.bootstrap, self.folder, self.name, self.join = bootstrap, folder, name, join
        self.teacher = teacher or {}
        self.partitions, self.interval, self.session = partitions, interval, session
        self.message_bytes = message_bytes
        self.workers: list[subprocess.Popen[bytes]] = []
        self.may_end: list[subprocess.Popen[bytes]] = []
        self.published: dict[str, list[list[bytes]]] = {topic: [[] for _ in range(partitions)] for topic in INPUTS}
        self._readers: dict[tuple[str, int], tuple[KafkaConsumer, list[bytes]]] = {}
        self.create(*TOPICS)

    # ---------------------------------------------------------------- topics

    def topic(self, short: str) -> str:
        return f"{self.name}.{short}"

    def create(self, *short: str) -> None:
        own = {"max.message.bytes": str(self.message_bytes)} if self.message_bytes else {}
        counts = {"scored": 1, "rejected": 1}
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        admin.create_topics(
            [NewTopic(self.topic(t), counts.get(t, self.partitions), 1, topic_configs=own) for t in short]
        )
        admin.close()

    def make_anew(self, short: str) -> None:
        """Delete a topic and make it again, empty."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        admin.delete_topics([self.topic(short)])
        self.until(lambda: self.topic(short) not in admin.list_topics())
        admin.close()
        self.create(short)
        self.hang_up()
        if short in self.published:
            self.published[short] = [[] for _ in range(self.partitions)]

    def publish(self, log: Sequence[Event | tuple[str, bytes]]) -> None:
        """Send events, by type and user, or raw records of a topic into its partition 0."""
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=2, max_request_size=1 << 25)
        for event in log:
            if isinstance(event, tuple):
                partition, (topic, raw) = 0, event
            else:
                partition = sum(event.user_id.encode()) % self.partitions
                topic, raw = TOPIC_OF[type(event)], wire.encode(event)
            self.published[topic][partition].append(raw)
            producer.send(self.topic(topic), raw, partition=partition)
        producer.flush()
        producer.close()

    def append(self, short: str, *values: bytes) -> None:
        """Append to partition 0 of a topic between the stages."""
        producer = KafkaProducer(bootstrap_servers=self.bootstrap)
        for value in values:
            producer.send(self.topic(short), value, partition=0).get(timeout=20)
        producer.close()

    def read(self, short: str, partition: int = 0) -> list[bytes]:
        """All records of a partition; what was read before is not fetched again."""
        if (short, partition) not in self._readers:
            consumer = KafkaConsumer(
                bootstrap_servers=self.bootstrap, auto_offset_reset="earliest", max_partition_fetch_bytes=1 << 24
            )
            consumer.assign([TopicPartition(self.topic(short), partition)])
            self._readers[short, partition] = (consumer, [])
        consumer, records = self._readers[short, partition]
        tp = TopicPartition(self.topic(short), partition)
        end = consumer.end_offsets([tp])[tp]
        while consumer.position(tp) < end:
            got = consumer.poll(timeout_ms=200, max_records=10_000)
            records += [record.value for batch in got.values() for record in batch]
        return records

    def hang_up(self) -> None:
        """Close our own readers: a client of kafka-python leaves sockets open when its broker goes."""
        for consumer, _ in self._readers.values():
            consumer.close()
        self._readers.clear()

    def messages(self, short: str, partition: int = 0) -> list[Message]:
        return [messages.decode(raw) for raw in self.read(short, partition)]

    # ---------------------------------------------------------------- workers

    def worker(
        self, *stages: str, accept_loss: bool = False, apart: bool = False, heft: Sequence[str] = HEFT
    ) -> subprocess.Popen[bytes]:
        """Start a worker; ``apart``: learning in a process of its own."""
        command = [sys.executable, *heft, "worker", "--config", str(self._write_config())]
        command += ["--processes" if apart else "--one-process"]
        command += ["--stages", ",".join(stages)] if stages else []
        command += ["--accept-loss"] if accept_loss else []
        with self._output(len(self.workers)).open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stderr=output, stdout=output)
        self.workers.append(process)
        return process

    def stop(self, worker: subprocess.Popen[bytes]) -> None:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0 or worker in self.may_end, self.said()

    def ends_with_an_error(self, worker: subprocess.Popen[bytes]) -> str:
        """Wait for a worker to end not well; return what it said."""
        self.may_end.append(worker)
        assert worker.wait(60) not in (0, None)
        return self._output(self.workers.index(worker)).read_text()

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait()
        self.hang_up()

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {seconds} s; {self.said()}"
            dead = [w for w in self.workers if w.poll() not in (None, 0, -signal.SIGKILL) and w not in self.may_end]
            assert not dead, self.said()
            time.sleep(0.1)  # a poll for another process, not a guess at how long it takes
        return value

    def said(self) -> str:
        return "\n".join(self._output(n).read_text()[-3000:] for n in range(len(self.workers)))

    def url(self, worker: subprocess.Popen[bytes]) -> str:
        """Where a worker answers, once it says so."""
        at = re.compile(r"metrics at (\S+)/metrics ")
        output = self._output(self.workers.index(worker))
        found: re.Match[str] = self.until(lambda: at.search(output.read_text()))
        return found[1]

    def scraped(self, worker: subprocess.Popen[bytes]) -> dict[str, float]:
        """What a worker exports now, by name and labels; empty where it does not answer yet."""
        asked = time.time()  # noqa: TID251
        while True:
            try:
                with urllib.request.urlopen(f"{self.url(worker)}/metrics", timeout=5) as answer:
                    lines = answer.read().decode().splitlines()
            except (urllib.error.URLError, TimeoutError):
                return {}
            pairs = (line.rpartition(" ") for line in lines if line[0] != "#")
            values = {name: float(value) for name, _, value in pairs}
            if values["heft_exported_timestamp_seconds"] >= asked:  # or it tells of a moment before
                return values
            assert time.time() < asked + 60, f"the page of metrics stays as it was; {self.said()}"  # noqa: TID251
            time.sleep(0.05)  # a poll for another process, not a guess at how long it takes

    def _output(self, number: int) -> Path:
        return self.folder / f"output{number}"

    def _write_config(self) -> Path:
        names = "\n".join(f'{t} = "{self.topic(t)}"' for t in TOPICS)
        join = "\n".join(f"{key} = {value}" for key, value in self.join.items())
        teacher = "\n".join(f"{key} = {json.dumps(value)}" for key, value in self.teacher.items())
        path = self.folder / "heft.toml"
        path.write_text(
            f'[kafka]\nbootstrap = "{self.bootstrap}"\ngroup = "{self.name}"\n'
            f'session_timeout = "{self.session}"\n[kafka.topics]\n{names}\n'
            f'[join]\n{join}\n[snapshots]\nurl = "{self.folder}/snapshots"\ninterval = "{self.interval}"\n'
            f"[teacher]\n{teacher}\n[metrics]\nport = 0\n"
        )
        return path

    # ---------------------------------------------------------------- what there is, and what there should be

    @property
    def config(self) -> Config:
        return load(self.folder / "heft.toml", {})

    @property
    def store(self) -> SnapshotStore:
        return SnapshotStore(str(self.folder / "snapshots"))

    def scored(self, source: int = 0) -> list[Record]:
        """What a source put into the log, for who reads it as it is meant to be read; reference scores aside."""
        return [replace(r, scores=[]) if isinstance(r, Shown | Closed) else r for r in self.with_scores(source)]

    def with_scores(self, source: int = 0) -> list[Record]:
        """What a source put into the log."""
        reader, records = ScoredReader(), []
        for message in self.messages("scored"):
            new = reader.read(message)
            records += new if message.source == source else []
        return records

    def pure(self, source: int = 0) -> list[Record]:
        """What the pure joiner makes of the same inputs and the idle marks that the messages note."""
        joiner = Joiner(JoinConfig(**self.join), INPUTS)
        owner, made, before = OwnerFilter(Owner()), [], b""

        def read_to(offsets: tuple[int, ...]) -> None:
            for number, end in enumerate(offsets):
                for offset in range(joiner.offsets[number], end):
                    joiner.push(number, offset, self.published[INPUTS[number]][source][offset])

        for raw in self.read("samples", source):
            message = messages.decode(raw)
            if raw != before and owner.passes(message):
                for mark in message.marks:
                    read_to(mark.offsets)
                    joiner.apply(mark)
                read_to(message.offsets)
                made += [record for _, record in joiner.drain()]
            before = raw
        return made

    def undisturbed(self) -> list[Record]:
        """What one joiner makes of all that was published into partition 0, nothing ever idle."""
        joiner = Joiner(JoinConfig(**self.join), INPUTS)
        for number, topic in enumerate(INPUTS):
            for offset, raw in enumerate(self.published[topic][0]):
                joiner.push(number, offset, raw)
        return [record for _, record in joiner.drain()]

    def joined_all(self) -> bool:
        """Whether the output says that every input was read to its end."""
        for source in range(self.partitions):
            made = [message for message in self.messages("samples", source) if not message.marker]
            ends = tuple(len(self.published[topic][source]) for topic in INPUTS)
            if all(message.offsets != ends for message in made):
                return False
        return True

    def latest(self, owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The newest snapshot of an owner and its segments; empty without one."""
        found = self.store.latest(owner)
        return (found[1], found[2]) if found else ({}, {})

    def learned(self) -> Learner:
        """The learner of the newest snapshot."""
        state, segments = self.latest("learn-0")
        return Learner.restore(self.config.learner, state["learner"], segments)

    def relearned(self) -> str:
        """The digest of a fresh learner over the `scored` log that this run left."""
        learner, reader = Learner(self.config.learner), ScoredReader()
        for message in self.messages("scored"):
            for record in reader.read(message):
                learner.apply(message.source, record)
        return learner.digest()

    def joiner(self, source: int = 0) -> Joiner:
        """The joiner of the newest snapshot."""
        return Joiner.restore(JoinConfig(**self.join), INPUTS, self.latest(f"join-{source}")[0]["joiner"])

    def each_has_one_fate(self, source: int = 0) -> bool:
        """Whether the fates of events and those still pending add up to what was published."""
        joiner = self.joiner(source)
        fates = sum(sum(by_fate.values()) for by_fate in joiner.fates.values())
        return fates + joiner.pending == sum(len(self.published[topic][source]) for topic in INPUTS)

    def ends_well(self, *workers: subprocess.Popen[bytes]) -> None:
        """Let the workers finish and stop; then compare everything with the pure stages."""
        sources = range(self.partitions)
        self.until(lambda: self.joined_all() and all(self.scored(n) == self.pure(n) for n in sources), 120)
        self.until(lambda: self.latest("learn-0")[0].get("offset") == len(self.read("scored")))
        for worker in workers:
            self.stop(worker)
        assert [self.scored(n) for n in sources] == [self.pure(n) for n in sources]
        learner = self.learned()
        assert learner.digest() == self.relearned()
        assert all(self.each_has_one_fate(n) for n in sources)
        if self.partitions == 1 and self.join.get("idle_after_ms") == NEVER_IDLE:
            expected, alone = self.undisturbed(), Learner(self.config.learner)
            for record in expected:
                alone.apply(0, record)
            assert self.scored() == expected
            if not self.config.teacher.url:  # what a teacher said in time is of this life alone
                assert learner.digest() == alone.digest(), "the model of a life without accidents"
