"""A worker whose teacher is killed, hangs, is slow, answers no numbers, or is exchanged: learning goes on all the same.

``HEFT_TEST_HANG_SECONDS`` says how long the teacher hangs: seconds where it is tested often, 60 by hand.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from heft.models.records import Closed, ReferenceScore
from heft.stream.events.wire import Event
from heft.stream.kafka.local_broker import running_broker
from tests.support.builders import HOUR, MINUTE, SECOND, click, impression
from tests.support.live import NEVER_IDLE, Shop, learned_late
from tests.support.live_traffic import closing
from tests.support.scorer_process import Scorer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

HANG_SECONDS = float(os.environ.get("HEFT_TEST_HANG_SECONDS", "3"))  # noqa: TID251
PHASE = 30 * MINUTE
SLATES = 60
ITEMS = 3 * SLATES
CROWD = 24
"""Slates of `closing`. Their items have no text, so all are the same pair, known from the first phase on."""
PAIRS_SCORED = 'heft_teacher_pairs_total{what="scored"}'
FAILED = 'heft_teacher_failures_total{reason="failed"}'


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with running_broker("tansu") as bootstrap:
        yield bootstrap


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Scorer]:
    scorer = Scorer(tmp_path, version="v1@0")
    yield scorer
    scorer.kill()


@pytest.fixture
def shop(bootstrap: str, tmp_path: Path, scorer: Scorer) -> Iterator[Shop]:
    teacher = {"url": scorer.url, "template": "{query} | {item.text}", "timeout": "1s"}
    shop = Shop(bootstrap, tmp_path, f"shop-{uuid4().hex[:8]}", teacher=teacher, session="3s", idle_after_ms=NEVER_IDLE)
    yield shop
    shop.close()


def slates(phase: int, first_item_of: int | None = None) -> list[Event]:
    """A minute of new slates, some of them clicked, and the events that move the stream past them.

    With ``first_item_of``, the pair of the first item of each slate is one of that earlier phase.
    """
    log: list[Event] = []
    of = phase if first_item_of is None else first_item_of
    for n in range(SLATES):
        request, user, at = f"p{phase}-{n}", f"u{n}", phase * PHASE + n * SECOND
        shown = impression(request, user, at, query=f"query {of} {n % 7}")
        phases = (of, phase, phase)
        items = [
            msgspec.structs.replace(item, text=f"{item.item_id} {its} {n}")
            for item, its in zip(shown.items, phases, strict=True)
        ]
        log.append(msgspec.structs.replace(shown, items=items))
        if n % 3 == 0:
            log.append(click(request, "abc"[n % 3], user, at + SECOND))
    return log + closing(phase * PHASE + 3 * MINUTE, f"shown{phase}-")


def ends(phase: int) -> list[Event]:
    """Events that close the slates of a phase."""
    return closing(phase * PHASE + 20 * MINUTE, f"closed{phase}-")


def shown(shop: Shop, phase: int) -> bool:
    return sum(record.key[2].startswith(f"p{phase}-") for record in shop.scored() if record.key[1] == 0) == SLATES


def slates_closed(shop: Shop, phase: int) -> list[Closed]:
    """Wait until the slates of a phase have closed; return them with their scores, those of the crowd last."""

    def closed() -> list[Closed]:
        all_ = [record for record in shop.with_scores() if isinstance(record, Closed)]
        found = [record for record in all_ if record.request_id.startswith((f"p{phase}-", f"shown{phase}-"))]
        return found if len(found) == SLATES + CROWD else []

    records: list[Closed] = shop.until(closed)
    return records


def scores_of(records: list[Closed]) -> list[ReferenceScore]:
    return [score for record in records for score in record.scores]


def test_learning_goes_on_whatever_the_teacher_does(shop: Shop, scorer: Scorer) -> None:
    worker, phases = shop.worker(), count(1)

    def scraped() -> dict[str, float]:
        seen: dict[str, float] = shop.until(lambda: shop.scraped(worker))
        return seen

    def counted(name: str) -> float:
        return scraped().get(name, 0.0)

    def missing() -> Counter[str]:
        """Items that went on without a score, by reason."""
        name = 'heft_scores_missing_total{reason="'
        found = {key.removeprefix(name)[:-2]: int(n) for key, n in scraped().items() if key.startswith(name)}
        return Counter({reason: n for reason, n in found.items() if n})

    def closed_after(
        reached: Callable[[], bool], log: Callable[[int], list[Event]] = slates
    ) -> tuple[list[Closed], Counter[str]]:
        """Show a minute of slates, wait, and close them; return them, and how many items had no score, by reason."""
        phase, before = next(phases), missing()
        shop.publish(log(phase))
        shop.until(lambda: shown(shop, phase) and reached())
        shop.publish(ends(phase))
        records, reasons = slates_closed(shop, phase), missing() - before
        assert len(scores_of(records)) + reasons.total() == 3 * len(records), (
            "each item has a score, or one reason why it has none"
        )
        return records[:SLATES], reasons

    shop.until(lambda: shop.scraped(worker), 180.0)  # with a fresh clone numba compiles first

    # It works.
    shop.publish(closing(PHASE - MINUTE, "first"))
    records, _ = closed_after(lambda: counted(PAIRS_SCORED) >= ITEMS + 1)
    assert Counter(score.version for score in scores_of(records)) == {"v1@0": ITEMS}

    late_at_start = learned_late(scraped())  # what was published while the worker started

    # It is killed.
    scorer.kill()
    records, dead = closed_after(lambda: counted(FAILED) > 0)
    assert scores_of(records) == []
    assert dead["failed"] > 0
    assert set(dead) <= {"failed", "asked", "waiting"}

    # It hangs.
    scorer.order(version="v1@0", seconds=HANG_SECONDS)
    scorer.start()
    timeouts = 'heft_teacher_failures_total{reason="timeout"}'
    records, hanging = closed_after(lambda: counted(timeouts) > 0)
    end = time.monotonic() + HANG_SECONDS
    while time.monotonic() < end:
        more, reasons = closed_after(lambda: True)
        records, hanging = records + more, hanging + reasons
    assert scores_of(records) == []
    assert hanging.total() == 3 * len(records)
    assert hanging["timeout"] > 0
    assert set(hanging) <= {"timeout", "asked", "waiting"}

    # It is ten times slower, then answers no numbers.
    scorer.order(version="v1@0", seconds=0.3)
    records, slow = closed_after(lambda: counted("heft_teacher_waiting_pairs") == 0)
    assert {score.version for score in scores_of(records)} == {"v1@0"}
    assert set(slow) <= {"asked", "timeout"}, "the teacher was working on them when their slates closed"
    scorer.order(version="v1@0", nan=True)
    not_finite = 'heft_teacher_pairs_total{what="not_finite"}'
    assert closed_after(lambda: counted(not_finite) >= ITEMS)[1] == {"not_finite": ITEMS}

    # It works again, and is killed while slates are open whose first items it has scored; another version comes back.
    before = counted(PAIRS_SCORED)
    scorer.order(version="v1@0")
    closed_after(lambda: counted(PAIRS_SCORED) >= before + ITEMS)
    scorer.kill()
    failed, before = counted(FAILED), counted(PAIRS_SCORED)

    def exchanged() -> bool:
        if counted(FAILED) > failed and scorer.process.poll() is not None:
            scorer.order(version="v2@0")
            scorer.start()
        return counted(PAIRS_SCORED) >= before + 2 * SLATES

    records, _ = closed_after(exchanged, lambda phase: slates(phase, first_item_of=phase - 1))
    assert {tuple(score.version for score in record.scores) for record in records} == {("v1@0", "v2@0", "v2@0")}

    assert learned_late(scraped()) == late_at_start, "nothing waited"
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
    shop.until(lambda: shop.scraped(second).get(PAIRS_SCORED, 0.0) >= ITEMS)
    shop.publish(ends(1))
    assert len(scores_of(slates_closed(shop, 1)[:SLATES])) == ITEMS
    shop.publish(closing(40 * HOUR))
    shop.ends_well(second)
