"""A worker whose teacher is killed, hangs, is slow, answers no numbers, or is exchanged: learning goes on all the same.

``HEFT_TEST_HANG_SECONDS`` says how long the teacher hangs: seconds where it is tested often, 60 by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from models.sample import Closed, ReferenceScore
from stream.broker import running_broker
from stream.events import Event
from tests.builders import MINUTE, SECOND, click, impression
from tests.live import NEVER_IDLE, ROOT, Shop, closing

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

HANG_SECONDS = float(os.environ.get("HEFT_TEST_HANG_SECONDS", "3"))  # noqa: TID251
PHASE = 30 * MINUTE
SLATES = 60


class Scorer:
    """A teacher's server, made to misbehave."""

    def __init__(self, folder: Path) -> None:
        self.orders, self.output = folder / "orders.json", folder / "answered"
        self.port = 0
        self.told(version="v1@0")
        self.start()

    def told(self, **orders: object) -> None:
        part = self.orders.with_suffix(".part")
        part.write_text(json.dumps(orders), encoding="utf-8")
        part.replace(self.orders)

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "tests" / "scorer.py"), str(self.port), str(self.orders)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with running_broker("tansu") as bootstrap:
        yield bootstrap


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Scorer]:
    scorer = Scorer(tmp_path)
    yield scorer
    scorer.kill()


@pytest.fixture
def shop(bootstrap: str, tmp_path: Path, scorer: Scorer) -> Iterator[Shop]:
    teacher = {"url": f"http://127.0.0.1:{scorer.port}", "template": "{query} | {item.text}", "timeout": "1s"}
    shop = Shop(bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", teacher=teacher, idle_after_ms=NEVER_IDLE)
    yield shop
    shop.close()


def slates(phase: int) -> list[Event]:
    """A minute of slates that nobody has seen before, some clicked, and what moves the stream past them."""
    log: list[Event] = []
    for n in range(SLATES):
        request, user, at = f"p{phase}-{n}", f"u{n}", phase * PHASE + n * SECOND
        shown = impression(request, user, at, query=f"query {phase} {n % 7}")
        items = [msgspec.structs.replace(item, text=f"{item.item_id} {phase} {n}") for item in shown.items]
        log.append(msgspec.structs.replace(shown, items=items))
        if n % 3 == 0:
            log.append(click(request, "abc"[n % 3], user, at + SECOND))
    return log + closing(phase * PHASE + 3 * MINUTE, f"shown{phase}-")


def ends(phase: int) -> list[Event]:
    """What closes the slates of a phase."""
    return closing(phase * PHASE + 20 * MINUTE, f"closed{phase}-")


def shown(shop: Shop, phase: int) -> bool:
    return sum(record.key[2].startswith(f"p{phase}-") for record in shop.scored() if record.key[1] == 0) == SLATES


def scores(shop: Shop, phase: int) -> list[ReferenceScore]:
    """The scores that came when the slates of a phase closed; waits until they have."""

    def closed() -> list[Closed]:
        all_ = [record for record in shop.with_scores() if isinstance(record, Closed)]
        found = [record for record in all_ if record.request_id.startswith(f"p{phase}-")]
        return found if len(found) == SLATES else []

    records: list[Closed] = shop.until(closed)
    return [score for record in records for score in record.scores]


def counted(shop: Shop, worker: subprocess.Popen[bytes], name: str) -> float:
    return shop.scraped(worker).get(name, 0.0)


def test_learning_goes_on_whatever_the_teacher_does(shop: Shop, scorer: Scorer) -> None:
    worker = shop.worker()

    def count(name: str) -> float:
        return counted(shop, worker, name)

    # It works.
    shop.publish(slates(1))
    shop.until(lambda: shown(shop, 1) and count('heft_teacher_pairs_total{what="scored"}') >= 3 * SLATES)
    shop.publish(ends(1))
    first = scores(shop, 1)
    assert len(first) == 3 * SLATES
    assert {score.version for score in first} == {"v1@0"}

    # It is killed.
    scorer.kill()
    shop.publish(slates(2))
    shop.until(lambda: shown(shop, 2) and count('heft_teacher_failures_total{reason="failed"}') > 0)
    shop.publish(ends(2))
    assert scores(shop, 2) == []
    shop.until(lambda: count('heft_scores_missing_total{reason="failed"}') == 3 * SLATES)

    # It hangs.
    scorer.told(version="v1@0", seconds=HANG_SECONDS)
    scorer.start()
    shop.publish(slates(3))
    shop.until(lambda: shown(shop, 3) and count('heft_teacher_failures_total{reason="timeout"}') > 0, 60 + HANG_SECONDS)
    shop.publish(ends(3))
    assert scores(shop, 3) == []

    # It is ten times slower, then answers no numbers.
    scorer.told(version="v1@0", seconds=0.3)
    shop.publish(slates(4))
    shop.until(lambda: shown(shop, 4))
    shop.publish(ends(4))
    scores(shop, 4)
    scorer.told(version="v1@0", nan=True)
    shop.publish(slates(5))
    shop.until(lambda: shown(shop, 5) and count("heft_teacher_waiting_pairs") == 0, 120)
    shop.publish(ends(5))
    assert scores(shop, 5) == []
    shop.until(lambda: count('heft_scores_missing_total{reason="not_finite"}') > 0)

    # Another version takes its place.
    before = count('heft_teacher_pairs_total{what="scored"}')
    scorer.told(version="v2@0")
    shop.publish(slates(6))
    shop.until(lambda: shown(shop, 6) and count('heft_teacher_pairs_total{what="scored"}') >= before + 3 * SLATES)
    shop.publish(ends(6))
    assert {score.version for score in scores(shop, 6)} == {"v2@0"}

    learned = 'heft_stage_delay_seconds_{}{{{}stage="learn"}}'
    assert count(learned.format("bucket", 'le="10.0",')) == count(learned.format("count", "")), "nothing was held up"
    shop.publish(closing(40 * 60 * MINUTE))
    shop.ends_well(worker)


@pytest.mark.usefixtures("scorer")
def test_after_a_crash_the_scores_of_open_slates_are_asked_for_again(shop: Shop) -> None:
    first = shop.worker()
    shop.publish(slates(1))
    shop.until(lambda: shown(shop, 1) and shop.latest("learn-0")[0].get("offset") == len(shop.read("scored")))
    first.kill()
    first.wait()
    second = shop.worker()
    shop.until(lambda: counted(shop, second, 'heft_teacher_pairs_total{what="scored"}') >= 3 * SLATES)
    shop.publish(ends(1))
    assert len(scores(shop, 1)) == 3 * SLATES
    shop.publish(closing(40 * 60 * MINUTE))
    shop.ends_well(second)
