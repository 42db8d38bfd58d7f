"""Workers are killed, stopped and moved; what was learned is what a life without accidents gives.

What each source put into `scored`, read as it is meant to be read, is what the pure `Joiner` gives over the same inputs
and idle marks; the learner is, bit for bit, the one that a fresh replay of the same `scored` log gives.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from models.sample import Record
from stream.broker import Broker, kafka_available
from stream.config import load
from stream.join import Joiner
from stream.learn import Learner
from stream.messages import ScoredReader
from stream.snapshot import SnapshotStore
from tests.test_worker import INPUTS, NEVER_IDLE, Shop, traffic, undisturbed

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module", params=["tansu", "kafka"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "kafka" and not kafka_available():
        pytest.skip("Apache Kafka is not to be had: no Java, or no Maven")
    broker = Broker(request.param)
    broker.start()
    yield broker
    broker.close()


@pytest.fixture
def shop(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(broker.bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", **getattr(request, "param", {}))
    yield shop
    for worker in shop.workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGCONT)
            worker.kill()
        worker.wait()


def latest(shop: Shop, owner: str) -> tuple[dict, dict]:  # type: ignore[type-arg]
    found = SnapshotStore(str(shop.folder / "snapshots")).latest(owner)
    assert found is not None
    return found[1], found[2]


def learned(shop: Shop) -> str:
    """The digest of the learner in the newest snapshot."""
    state, segments = latest(shop, "learn-0")
    return Learner.restore(load(shop.folder / "heft.toml", {}).learner, state["learner"], segments).digest()


def relearned(shop: Shop) -> str:
    """The digest of a fresh learner over the `scored` log that this run left."""
    learner, reader = Learner(load(shop.folder / "heft.toml", {}).learner), ScoredReader()
    for message in shop.messages("scored"):
        for record in reader.read(message):
            learner.apply(message.source, record)
    return learner.digest()


def joiner_left(shop: Shop) -> Joiner:
    state, _ = latest(shop, "join-0")
    return Joiner.restore(load(shop.folder / "heft.toml", {}).join, INPUTS, state["joiner"])


def ends_well(shop: Shop, expected: list[Record] | None = None) -> None:
    """Let the last worker finish and stop; then compare with the pure stages."""
    shop.until(lambda: joined_all(shop) and shop.scored() == (expected or shop.pure()), 60)
    shop.until(lambda: latest(shop, "learn-0")[0]["offset"] == len(shop.read("scored")))
    shop.stop(shop.workers[-1])
    assert shop.scored() == (shop.pure() if expected is None else expected)
    assert learned(shop) == relearned(shop)
    joiner = joiner_left(shop)
    fates = sum(n for by_fate in joiner.fates.values() for n in by_fate.values())
    assert fates + joiner.pending == sum(map(len, shop.published.values())), "every event has exactly one fate"


def joined_all(shop: Shop) -> bool:
    """Whether the output says that every input was read to its end."""
    made = [message.offsets for message in shop.messages("samples") if not message.marker]
    return bool(made) and made[-1] == tuple(len(shop.published[topic]) for topic in INPUTS)


@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE}, {}], indirect=True, ids=["never-idle", "idle"])
def test_a_worker_killed_at_random_moments_loses_and_repeats_nothing(shop: Shop) -> None:
    chance = random.Random(11)
    log, kills = traffic(1500, seed=5), 4
    step = len(log) // (kills + 1) + 1
    for kill in range(kills):
        shop.publish(log[kill * step : (kill + 1) * step])
        worker, before = shop.worker(), len(shop.read("samples"))
        shop.until(lambda before=before: len(shop.read("samples")) > before)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 2))  # the accident comes when it comes
        worker.kill()
        worker.wait()
    shop.publish(log[kills * step :])
    shop.worker()
    ends_well(shop, undisturbed(shop) if shop.join else None)


@pytest.mark.parametrize("shop", [{}], indirect=True)
def test_a_worker_that_slept_through_its_session_does_no_harm(shop: Shop) -> None:
    log = traffic(900, seed=6)
    shop.publish(log[:500])
    sleeper = shop.worker()
    shop.until(lambda: len(shop.scored()) > 300)
    sleeper.send_signal(signal.SIGSTOP)
    shop.publish(log[500:1000])
    shop.worker()
    shop.until(lambda: len({m.writer for m in shop.messages("samples")}) == 2, 60)
    shop.may_end.append(sleeper)  # if it was in the middle of something it finds that it was replaced, and ends
    sleeper.send_signal(signal.SIGCONT)
    shop.publish(log[1000:])
    shop.until(lambda: joined_all(shop), 60)
    sleeper.kill()
    sleeper.wait()
    ends_well(shop)


@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE}], indirect=True)
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_snapshot_is_passed_over(shop: Shop, damage: str) -> None:
    log = traffic(800, seed=7)
    shop.publish(log[:700])
    worker = shop.worker()
    shop.until(lambda: len(list((shop.folder / "snapshots").glob("*/*.heft"))) >= 3)
    shop.stop(worker)
    for owner in ("join-0", "score-0", "learn-0"):
        newest = max((shop.folder / "snapshots" / owner).glob("*.heft"))
        raw = bytearray(newest.read_bytes())
        raw[len(raw) // 2] ^= 1
        newest.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else raw)
    shop.publish(log[700:])
    shop.worker()
    ends_well(shop, undisturbed(shop))


@pytest.mark.parametrize("shop", [{}], indirect=True)
def test_a_broker_that_restarts_is_waited_for(shop: Shop, broker: Broker) -> None:
    if broker.kind == "tansu":
        pytest.skip("Tansu keeps its log in memory")
    log = traffic(900, seed=8)
    shop.publish(log[:800])
    shop.worker()
    shop.until(lambda: len(shop.scored()) > 200)
    broker.stop()
    broker.start()
    shop.publish(log[800:])
    ends_well(shop)
