"""A real worker process on a real broker: what it writes is what the pure `Joiner` gives."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from heft.stream.cli import snapshots
from heft.stream.cli.status import Code, ask
from heft.stream.events.wire import Order
from heft.stream.kafka.local_broker import running_broker
from heft.stream.state.codec import SnapshotError
from heft.stream.state.store import SnapshotStore
from tests.support.libraries import LOOK_UP, TORCH, heft_without
from tests.support.live import NEVER_IDLE, Shop
from tests.support.live_traffic import traffic
from tests.support.places import ROOT

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with running_broker("tansu") as bootstrap:
        yield bootstrap


@pytest.fixture
def shop(bootstrap: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", **getattr(request, "param", {}))
    yield shop
    shop.close()


@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE}], indirect=True)
def test_what_reaches_scored_is_what_the_pure_joiner_gives(shop: Shop) -> None:
    shop.publish(traffic(600, seed=1))
    expected = shop.undisturbed()
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
    shop.until(lambda: len(shop.scored()) >= 600 and shop.scored() == shop.pure())
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
    expected = shop.undisturbed()
    second = shop.worker("join", "score")
    shop.until(lambda: len(shop.scored()) >= len(expected))
    assert shop.scored() == expected
    shop.stop(second)


# With idle inputs, whichever topic of the second half is read first would make the others late.
@pytest.mark.parametrize("shop", [{"idle_after_ms": NEVER_IDLE}], indirect=True)
def test_a_worker_goes_on_while_its_snapshots_cannot_be_written(shop: Shop) -> None:
    log, folder = traffic(400, seed=7), shop.folder / "snapshots"
    shop.publish(log[:200])
    worker = shop.worker()
    shop.until(lambda: shop.store.names("join-0") and shop.store.names("learn-0"))
    before = shop.store.names("learn-0")[-1].offset
    folder.rename(folder.with_name("away"))
    folder.write_text("a file where the folder was")
    shop.publish(log[200:])
    shop.until(lambda: shop.scraped(worker).get("heft_snapshot_failures_total", 0) >= 3 and shop.joined_all())
    shop.until(lambda: shop.scraped(worker).get('heft_samples_total{shard="0"}', 0) >= 400 * 3)
    assert shop.scraped(worker)["heft_snapshot_store_away_seconds"] > 0
    folder.unlink()
    folder.with_name("away").rename(folder)
    shop.until(lambda: shop.store.names("learn-0")[-1].offset > before)
    shop.until(lambda: shop.scraped(worker)["heft_snapshot_store_away_seconds"] == 0)
    shop.ends_well(worker)


def test_a_worker_is_ready_when_its_partitions_are_restored_and_the_lag_is_known(shop: Shop) -> None:
    shop.publish(traffic(20, seed=8))
    worker = shop.worker()
    said = []

    def ready() -> bool:
        answer = ask(shop.url(worker))
        said.append(answer.readiness)
        return answer.code is Code.READY

    shop.until(ready, 180.0)  # with a fresh clone numba compiles first
    *before, last = [each for each in said if each is not None]
    assert all(each.missing for each in before)
    assert last.held == last.restored == ["join-0", "learn-0", "score-0"]
    assert last.state == "running"
    shop.stop(worker)
    assert ask(shop.url(worker)).code is Code.NOT_REACHED


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_worker_in_two_processes_looks_like_one_and_ends_as_one(shop: Shop, stop: signal.Signals) -> None:
    shop.publish(traffic(50, seed=8))
    worker = shop.worker(apart=True)
    shop.until(lambda: (found := ask(shop.url(worker)).readiness) and found.ready)
    shop.until(lambda: shop.scraped(worker).get('heft_stage_delay_seconds_count{stage="learn"}'))
    children = [int(each) for each in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]
    stages = [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    assert len(stages) == 2
    shop.may_end.append(worker)
    worker.send_signal(stop)
    assert worker.wait(30) == (0 if stop == signal.SIGTERM else -signal.SIGKILL)
    shop.until(lambda: not any(Path(f"/proc/{child}").exists() for child in stages))


def test_a_worker_whose_port_is_taken_ends_at_once_and_names_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop.worker("join")
    port = shop.url(first).rpartition(":")[2]
    monkeypatch.setenv("HEFT_METRICS__PORT", port)
    said = shop.ends_with_an_error(shop.worker("join"))
    assert said.startswith(f"heft: metrics.port {port}: taken on 127.0.0.1")
    assert "Traceback" not in said
    shop.until(lambda: shop.scraped(first))
    shop.stop(first)


def test_a_store_that_stays_away_ends_the_worker_and_is_named(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEFT_SNAPSHOTS__PATIENCE", "2s")
    (shop.folder / "snapshots").write_text("a file where the folder should be")
    said = shop.ends_with_an_error(shop.worker("join"))
    assert f"snapshots.url {shop.folder}/snapshots: away for" in said
    assert "NotADirectoryError" in said
    assert "Mend the store" in said


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


@pytest.mark.parametrize("shop", [{"session": "3s", "teacher": {"model": "on-another-host"}}], indirect=True)
def test_a_worker_that_joins_and_learns_needs_nothing_of_its_shops_teacher(shop: Shop) -> None:
    shop.publish(traffic(20, seed=6))
    worker = shop.worker("join", "learn", heft=heft_without((*TORCH, *LOOK_UP)))
    shop.until(lambda: shop.joined_all())
    shop.append("scored", *shop.read("samples"))
    shop.until(lambda: shop.scraped(worker).get('heft_samples_total{shard="0"}', 0.0) >= 60)
    shop.stop(worker)


def test_a_worker_leaves_no_folder_behind_however_it_ends(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    shop.publish(traffic(20, seed=7))
    worker = shop.worker("join", "score")
    shop.until(lambda: len(shop.scored()) >= 40)
    assert list(temporary.iterdir()) == [], "what is not there need not be removed after a kill"
    shop.stop(worker)
    assert list(temporary.iterdir()) == []
    assert list(ROOT.glob("*-data")) == [], "nor where Faust puts its folder when it is told nothing"
