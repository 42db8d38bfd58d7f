"""A worker whose teacher is killed, hangs, is slow, answers no numbers, or is exchanged: learning goes on all the same.

``HEFT_TEST_HANG_SECONDS`` says how long the teacher hangs: seconds where it is tested often, 60 by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from models.sample import Closed, ReferenceScore
from stream.broker import running_broker
from stream.events import Event
from tests.builders import HOUR, MINUTE, SECOND, click, impression
from tests.live import NEVER_IDLE, ROOT, Shop, closing

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

HANG_SECONDS = float(os.environ.get("HEFT_TEST_HANG_SECONDS", "3"))  # noqa: TID251
PHASE = 30 * MINUTE
SLATES = 60
PAIRS_SCORED = 'heft_teacher_pairs_total{what="scored"}'


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
    shop = Shop(bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", teacher=teacher, session="3s", idle_after_ms=NEVER_IDLE)
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


def test_learning_goes_on_whatever_the_teacher_does(shop: Shop, scorer: Scorer) -> None:
    worker, phases = shop.worker(), count(1)

    def counted(name: str) -> float:
        return shop.scraped(worker).get(name, 0.0)

    def late() -> float:
        """Messages that were learned more than ten seconds after they were due."""
        learned, seen = 'heft_stage_delay_seconds_{}{{{}stage="learn"}}', shop.scraped(worker)  # both of one moment
        return seen.get(learned.format("count", ""), 0.0) - seen.get(learned.format("bucket", 'le="10.0",'), 0.0)

    def scored_after(reached: Callable[[], bool], seconds: float = 60.0) -> list[ReferenceScore]:
        """Show a minute of slates, wait, close them, and return the scores that came with them."""
        phase = next(phases)
        shop.publish(slates(phase))
        shop.until(lambda: shown(shop, phase) and reached(), seconds)
        shop.publish(ends(phase))
        return scores(shop, phase)

    # It works.
    first = scored_after(lambda: counted(PAIRS_SCORED) >= 3 * SLATES)
    assert len(first) == 3 * SLATES
    assert {score.version for score in first} == {"v1@0"}

    late_at_start = late()  # what was published while the worker started

    # It is killed.
    scorer.kill()
    assert scored_after(lambda: counted('heft_teacher_failures_total{reason="failed"}') > 0) == []
    shop.until(lambda: counted('heft_scores_missing_total{reason="failed"}') == 3 * SLATES)

    # It hangs.
    scorer.told(version="v1@0", seconds=HANG_SECONDS)
    scorer.start()
    timeouts = 'heft_teacher_failures_total{reason="timeout"}'
    assert scored_after(lambda: counted(timeouts) > 0) == []
    end = time.monotonic() + HANG_SECONDS
    while time.monotonic() < end:
        assert scored_after(lambda: True) == []

    # It is ten times slower, then answers no numbers.
    scorer.told(version="v1@0", seconds=0.3)
    assert len(scored_after(lambda: counted("heft_teacher_waiting_pairs") == 0)) <= 3 * SLATES
    scorer.told(version="v1@0", nan=True)
    assert scored_after(lambda: counted('heft_teacher_pairs_total{what="not_finite"}') >= 3 * SLATES) == []
    shop.until(lambda: counted('heft_scores_missing_total{reason="not_finite"}') == 3 * SLATES)

    # Another version takes its place.
    before = counted(PAIRS_SCORED)
    scorer.told(version="v2@0")
    assert {score.version for score in scored_after(lambda: counted(PAIRS_SCORED) >= before + 3 * SLATES)} == {"v2@0"}

    assert late() == late_at_start, "nothing waited"
    shop.publish(closing(next(phases) * PHASE + 30 * HOUR))
    shop.ends_well(worker)


@pytest.mark.usefixtures("scorer")
def test_after_a_crash_the_scores_of_open_slates_are_asked_for_again(shop: Shop) -> None:
    first = shop.worker()
    shop.publish(slates(1))
    shop.until(lambda: shown(shop, 1) and shop.latest("learn-0")[0].get("offset") == len(shop.read("scored")))
    first.kill()
    first.wait()
    second = shop.worker()
    shop.until(lambda: shop.scraped(second).get(PAIRS_SCORED, 0.0) >= 3 * SLATES)
    shop.publish(ends(1))
    assert len(scores(shop, 1)) == 3 * SLATES
    shop.publish(closing(40 * HOUR))
    shop.ends_well(second)
