"""What a worker says of its health, state by state; the clock is the test's."""

from __future__ import annotations

import pytest

from heft.stream.observe.health import LAG_KNOWN_SECONDS, STALE_SECONDS, STARTING_SECONDS, Health, Readiness

JOIN, LEARN = ("join", 0), ("learn", 0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    health = Health(most_lag=100, clock=clock)
    health.beat()
    return health


def running(health: Health) -> Health:
    health.assigned([JOIN, LEARN])
    health.restored(JOIN)
    health.restored(LEARN)
    health.lag(0)
    return health


def why_not(health: Health) -> list[str]:
    found = health.readiness()
    assert found.ready == (not found.missing)
    return found.missing


def test_a_worker_is_ready_once_its_partitions_are_restored_and_the_lag_is_known(health: Health) -> None:
    assert why_not(health) == ["starting", "no partition is assigned"]
    health.assigned([JOIN, LEARN])
    assert why_not(health) == ["not restored yet: join-0, learn-0"]
    health.restored(JOIN)
    assert health.readiness().state == "restoring 1 of 2 partitions"
    assert why_not(health) == ["not restored yet: learn-0"]
    health.restored(LEARN)
    assert why_not(health) == ["the lag is not known"]
    health.lag(100)
    assert health.readiness() == Readiness(
        True, "running", [], ["join-0", "learn-0"], ["join-0", "learn-0"], 100, "", None, None
    )


def test_a_lag_above_the_bound_names_the_key_that_says_it(health: Health) -> None:
    running(health).lag(101)
    assert why_not(health) == ["a lag of 101 records, more than metrics.ready_lag = 100"]


def test_a_lag_that_nobody_has_looked_at_for_long_is_not_known(health: Health, clock: Clock) -> None:
    running(health)
    clock.now += LAG_KNOWN_SECONDS + 1
    health.beat()
    assert why_not(health) == ["the lag is not known"]
    assert not health.lag_known


def test_waiting_for_a_broker_or_for_topics_is_a_state_and_ends_with_partitions(health: Health) -> None:
    health.state("waiting for topics: clicks")
    assert health.readiness().state == "waiting for topics: clicks"
    assert why_not(health) == ["waiting for topics: clicks", "no partition is assigned"]
    running(health).state("waiting for a broker")
    assert why_not(health) == ["waiting for a broker"]
    health.state("")
    assert why_not(health) == []


def test_a_partition_that_comes_anew_must_be_restored_anew(health: Health) -> None:
    running(health).assigned([JOIN])
    assert why_not(health) == ["not restored yet: join-0"]


def test_a_worker_whose_partitions_have_gone_is_not_ready(health: Health) -> None:
    running(health).revoked([JOIN])
    assert why_not(health) == []
    health.revoked([LEARN])
    assert health.readiness().state == "waiting for partitions"
    assert why_not(health) == ["no partition is assigned"]


def test_an_error_is_told_with_its_age_and_only_one_that_ends_the_worker_makes_it_unready(
    health: Health, clock: Clock
) -> None:
    running(health).error("the disk is full")
    clock.now += 5
    found = health.readiness()
    assert (found.ready, found.error, found.error_seconds) == (True, "the disk is full", 5.0)
    health.gives_up("the store stays away")
    assert why_not(health) == ["it gives up: the store stays away"]


def test_a_worker_that_stops_is_not_ready_whatever_comes_meanwhile(health: Health) -> None:
    running(health).stopping()
    health.assigned([JOIN])
    health.restored(JOIN)
    health.lag(0)
    assert why_not(health) == ["stopping"]
    assert health.readiness().state == "stopping"


def test_the_age_of_the_oldest_snapshot_is_told_of_partitions_that_are_held(health: Health, clock: Clock) -> None:
    running(health).saved("join-0")
    clock.now += 60
    health.saved("learn-0")
    assert health.readiness().snapshot_seconds == 60.0
    health.revoked([JOIN])
    health.saved("join-0")  # written while it went
    assert health.readiness().snapshot_seconds == 0.0


def test_a_worker_is_alive_while_its_loop_turns(health: Health, clock: Clock) -> None:
    running(health)
    clock.now += STALE_SECONDS
    assert health.alive()
    clock.now += 0.1
    assert not health.alive()
    assert why_not(health) == ["the event loop stands still"]
    health.beat()
    assert health.alive()


def test_a_worker_that_has_not_begun_has_longer_than_one_whose_loop_turned(clock: Clock) -> None:
    health = Health(most_lag=100, clock=clock)
    clock.now += STARTING_SECONDS
    assert health.alive()
    clock.now += 0.1
    assert not health.alive()


def test_a_worker_that_waits_before_its_loop_turns_is_alive_for_as_long_as_it_says_so(clock: Clock) -> None:
    health = Health(most_lag=100, clock=clock)
    for _ in range(3):
        clock.now += STARTING_SECONDS - 1
        health.state("waiting for topics: clicks")
        assert health.alive()
    clock.now += STARTING_SECONDS + 1
    assert not health.alive()
