"""Workers are killed, stopped and moved; what was learned is what a life without accidents gives.

What each source put into `scored`, read as it is meant to be read, is what the pure `Joiner` gives over the same inputs
and idle marks; the learner is, bit for bit, the one that a fresh replay of the same `scored` log gives; see
`Shop.ends_well`.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from heft.stream.events import messages
from heft.stream.kafka.local_broker import Broker
from tests.support.live import NEVER_IDLE, Shop
from tests.support.live_traffic import traffic

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
KILLS = {"kafka": 8, "tansu": 6}


@pytest.fixture
def shop(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(broker.bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", **getattr(request, "param", {}))
    yield shop
    shop.close()


@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE, "session": "3s"}], indirect=True)
def test_a_worker_killed_at_random_moments_loses_and_repeats_nothing(shop: Shop, broker: Broker) -> None:
    chance = random.Random(11)
    log, kills = traffic(2000, seed=5), KILLS[broker.kind]
    step = len(log) // (kills + 1) + 1
    for kill in range(kills):
        shop.publish(log[kill * step : (kill + 1) * step])
        worker, before = shop.worker(), len(shop.read("samples"))
        shop.until(lambda before=before: len(shop.read("samples")) > before)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1.5))  # the accident comes when it comes
        worker.kill()
        worker.wait()
    shop.publish(log[kills * step :])
    shop.ends_well(shop.worker())


@pytest.mark.parametrize("shop", [{"partitions": 4, "session": "3s"}], indirect=True)
def test_partitions_that_move_between_two_workers_keep_their_order(shop: Shop) -> None:
    log = traffic(1500, seed=9)
    parts = [log[n * len(log) // 5 : (n + 1) * len(log) // 5] for n in range(5)]

    def moved(before: int) -> bool:
        """Whether someone else has taken partitions over, and what was published last has gone on to `scored`."""
        return writers(shop) > before and len(shop.scored(0)) > 0

    shop.publish(parts[0])
    first = shop.worker()
    shop.until(lambda: moved(0))
    alone = writers(shop)
    shop.publish(parts[1])
    second = shop.worker()
    shop.until(lambda: moved(alone))
    shared = writers(shop)
    shop.publish(parts[2])
    shop.stop(first)
    shop.until(lambda: moved(shared))
    third, before = shop.worker(), writers(shop)
    shop.publish(parts[3])
    shop.until(lambda: moved(before))
    second.kill()
    second.wait()
    left = writers(shop)
    shop.publish(parts[4])
    shop.until(lambda: moved(left))
    shop.ends_well(third)


def writers(shop: Shop) -> int:
    """How often partitions of the join have been taken over."""
    return sum(message.marker for n in range(shop.partitions) for message in shop.messages("samples", n))


@pytest.mark.parametrize("shop", [{"partitions": 2, "session": "3s"}], indirect=True)
def test_one_of_two_workers_that_slept_through_its_session_does_no_harm(shop: Shop) -> None:
    log = traffic(900, seed=6)
    shop.publish(log[:500])
    sleeper = shop.worker()
    shop.until(lambda: len(shop.scored(0)) > 100)
    other, before = shop.worker(), writers(shop)
    shop.until(lambda: writers(shop) > before)  # each has one of the two partitions
    sleeper.send_signal(signal.SIGSTOP)
    before = writers(shop)
    shop.publish(log[500:1000])
    shop.until(lambda: writers(shop) > before)  # the other has taken over
    shop.may_end.append(sleeper)  # if it was in the middle of something it finds that it was replaced, and ends
    sleeper.send_signal(signal.SIGCONT)
    shop.publish(log[1000:])
    shop.ends_well(*[worker for worker in (other, sleeper) if worker.poll() is None])


@pytest.mark.parametrize("broker", ["tansu"], indirect=True)  # which broker there is makes no difference to it
@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE}], indirect=True)
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_snapshot_is_named_counted_and_passed_over(shop: Shop, damage: str) -> None:
    log, owners = traffic(800, seed=7), ("join-0", "score-0", "learn-0")
    worker = shop.worker()
    for snapshots, part in enumerate((log[:400], log[400:700])):
        shop.publish(part)
        shop.until(lambda least=snapshots + 1: all(len(shop.store.names(owner)) >= least for owner in owners))  # type: ignore[misc]
    shop.stop(worker)
    damaged = []
    for owner in owners:
        newest = max((shop.folder / "snapshots" / owner).glob("*.heft"))
        raw = bytearray(newest.read_bytes())
        raw[len(raw) // 2] ^= 1
        newest.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else raw)
        damaged.append(newest)
    shop.publish(log[700:])
    worker = shop.worker()
    shop.until(lambda: shop.scraped(worker).get("heft_snapshots_damaged_total") == 3)
    assert all(str(path) in shop.said() for path in damaged)
    shop.ends_well(worker)


@pytest.mark.parametrize("shop", [{"session": "3s"}], indirect=True)
def test_a_broker_that_restarts_is_waited_for(shop: Shop, broker: Broker) -> None:
    if broker.kind == "tansu":
        pytest.skip("Tansu keeps its log in memory")
    log = traffic(900, seed=8)
    shop.publish(log[:500])
    worker = shop.worker()
    shop.until(lambda: len(shop.scored()) > 200)
    shop.hang_up()
    broker.stop()
    broker.start()
    shop.publish(log[500:800])
    shop.until(lambda: max((message.offsets[0] for message in shop.messages("samples")), default=0) > 400)
    shop.hang_up()
    broker.kill()
    broker.start()
    shop.publish(log[800:])
    shop.ends_well(worker)


@pytest.mark.parametrize("shop", [{"interval": "1h", "idle_after_ms": NEVER_IDLE}], indirect=True)
def test_a_message_that_the_broker_took_twice_is_one_message(shop: Shop) -> None:
    """A lost acknowledgement: the producer sends again, and both are in the log."""
    log = traffic(300, seed=10)
    shop.publish(log)
    worker = shop.worker("join")
    made = len(shop.undisturbed())
    shop.until(lambda: sum(len(message.records) for message in shop.messages("samples")) == made)
    last = [raw for raw in shop.read("samples") if messages.decode(raw).records][-1:]
    worker.kill()
    worker.wait()
    assert shop.read("samples")[-1:] == last, "no snapshot came after it"
    shop.append("samples", *last)
    shop.interval = "1s"
    shop.ends_well(shop.worker())


@pytest.mark.parametrize("shop", [{"session": "45s", "idle_after_ms": NEVER_IDLE}], indirect=True)
def test_a_worker_that_is_asked_to_stop_saves_and_leaves_the_group(shop: Shop, broker: Broker) -> None:
    if broker.kind == "tansu":
        pytest.skip("Tansu answers whoever joins after half the session, left group or not")
    shop.publish(traffic(300, seed=14))
    worker = shop.worker()
    shop.until(lambda: len(shop.scored()) > 600)
    shop.stop(worker)
    made = len(shop.read("samples"))
    assert shop.latest("join-0")[0]["output"] == made, "nothing is to be done again"
    worker = shop.worker()
    shop.until(lambda: len(shop.read("samples")) > made, 30)  # and nobody waits for a session to end
    shop.ends_well(worker)
