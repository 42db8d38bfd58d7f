"""Pages of several processes become one that Prometheus reads as that of one worker."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from heft.stream.observe.health import Readiness
from heft.stream.observe.scrape import Scrape
from heft.stream.observe.together import metrics_together, readiness_together


def page(taken: float, exported: float, size: float, stage: str) -> str:
    registry = CollectorRegistry()
    Counter("taken", "Taken", ["of"], registry=registry).labels("clicks").inc(taken)
    Gauge("heft_exported_timestamp_seconds", "When", registry=registry).set(exported)
    Gauge("process_resident_memory_bytes", "Memory", registry=registry).set(size)
    Gauge("open", "Open", ["stage"], registry=registry).labels(stage).set(taken)
    Histogram("delay", "Delay", ["stage"], buckets=(1.0, 2.0), registry=registry).labels("join").observe(taken)
    return generate_latest(registry).decode()


def test_each_family_comes_once_and_what_counts_is_added() -> None:
    text = metrics_together([page(1.5, 20.0, 100.0, "join"), page(0.5, 10.0, 30.0, "learn")])
    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    seen = Scrape(text)
    assert seen.total("taken_total", of="clicks") == 2.0
    assert seen.by("stage", "open") == {"join": 1.5, "learn": 0.5}
    assert seen.total("heft_exported_timestamp_seconds") == 10.0, "as old as the oldest"
    assert seen.total("process_resident_memory_bytes") == 130.0
    assert seen.by("le", "delay_bucket", stage="join") == {"1.0": 1.0, "2.0": 2.0, "+Inf": 2.0}


def said(ready: bool, held: list[str], lag: int | None = 0, state: str = "running", error: str = "") -> Readiness:
    missing = [] if ready else ["something"]
    return Readiness(ready, state, missing, held, held, lag, error, 5.0 if error else None, None)


def test_all_are_ready_when_each_is() -> None:
    both = readiness_together([("join", said(True, ["join-0"], 3)), ("learn", said(True, ["learn-0"], 4))])
    assert (both.ready, both.state, both.held, both.lag) == (True, "running", ["join-0", "learn-0"], 7)


def test_one_that_is_not_ready_or_does_not_answer_is_named() -> None:
    late = said(False, ["learn-0"], None, "restoring 1 of 2 partitions", "the store failed")
    all_three = readiness_together([("join", said(True, ["join-0"])), ("score", None), ("learn", late)])
    assert not all_three.ready
    assert all_three.state == "learn: restoring 1 of 2 partitions"
    assert all_three.missing == ["learn: something", "score: its process does not answer"]
    assert all_three.lag is None
    assert (all_three.error, all_three.error_seconds) == ("learn: the store failed", 5.0)
