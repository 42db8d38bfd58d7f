"""What the soak makes of looks at workers: who had a partition when, and what a worker may not say."""

from __future__ import annotations

from bench.soak.timeline import Look, Window, changes, gaps_of, untrue

JOIN, LEARN = "join-0", "learn-0"


def look(
    at: float, worker: str, *restored: str, held: tuple[str, ...] = (JOIN, LEARN), ready: bool = True, why: str = ""
) -> Look:
    return Look(at, worker, "running", True, ready, frozenset(held), frozenset(restored), (why,) if why else ())


def gone(at: float, worker: str) -> Look:
    return Look(at, worker, "no answer")


def test_a_partition_is_away_from_the_last_look_at_one_worker_to_the_first_at_the_next() -> None:
    looks = [look(0.0, "a", JOIN), look(1.0, "a", JOIN), gone(1.1, "a"), look(3.0, "b", JOIN), look(9.0, "b", JOIN)]
    assert gaps_of(JOIN, looks, Window(0.5, 1.0, 9.0)) == [(1.1, 3.0)]
    assert gaps_of(LEARN, looks, Window(0.5, 1.0, 9.0)) == [(0.5, 9.0)]


def test_a_partition_that_another_worker_had_meanwhile_was_never_away() -> None:
    looks = [look(0.0, "a", JOIN), look(1.0, "b", JOIN), gone(1.5, "a"), look(9.0, "b", JOIN)]
    assert gaps_of(JOIN, looks, Window(0.0, 1.5, 9.0)) == []


def test_ready_means_held_and_restored_and_unready_needs_a_reason() -> None:
    true = [
        look(0.0, "a", JOIN, LEARN),
        look(0.1, "a", JOIN, ready=False),
        look(0.2, "a", JOIN, LEARN, ready=False, why="the lag is not known"),
        gone(0.3, "a"),
    ]
    false = [look(0.4, "a", JOIN), look(0.5, "a", held=()), look(0.6, "a", JOIN, LEARN, ready=False)]
    assert untrue([*true, *false]) == false


def test_only_changes_are_told_and_of_each_worker_by_itself() -> None:
    looks = [look(0.0, "a", JOIN), look(0.1, "b", JOIN), look(0.2, "a", JOIN), look(0.3, "a", JOIN, LEARN)]
    assert [each.at for each in changes(looks)] == [0.0, 0.1, 0.3]
