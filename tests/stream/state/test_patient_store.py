"""A snapshot store that is away for a while is waited for; one that stays away is an end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from heft.stream.state.patient_store import LONGEST_PAUSE, PatientStore, StoreAwayError
from heft.stream.state.store import Name, SnapshotStore, StoreError


class Folder:
    """A store that can be taken away, the clock beside it, and whoever brings the store back while one waits."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.back_at = path / "snapshots", 0.0, float("inf")
        self.pauses: list[float] = []
        self.store = PatientStore(SnapshotStore(str(self.path)), 600_000, lambda: self.now, self.sleep)

    def take_away(self) -> None:
        if self.path.exists():
            self.path.rename(self.path.with_name("elsewhere"))
        self.path.write_text("a file where the folder was")

    def bring_back(self) -> None:
        self.path.unlink()
        if self.path.with_name("elsewhere").exists():
            self.path.with_name("elsewhere").rename(self.path)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        if self.now >= self.back_at:
            self.bring_back()
            self.back_at = float("inf")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    yield folder
    folder.store.close()


def name(offset: int, owner: str = "learn-0") -> Name:
    return Name(owner, 0, offset, "abc")


def try_save(folder: Folder, offset: int, owner: str = "learn-0") -> int | None:
    return asyncio.run(folder.store.try_save(name(offset, owner), offset, []))


def test_a_snapshot_that_fails_is_counted_and_the_next_takes_its_place(folder: Folder) -> None:
    assert try_save(folder, 1)
    folder.take_away()
    assert try_save(folder, 2) is None
    folder.now = 7.0
    assert (folder.store.failures, folder.store.away_seconds) == (1, 7.0)
    folder.store.check()
    folder.bring_back()
    assert try_save(folder, 3)
    assert (folder.store.failures, folder.store.away_seconds) == (1, 0.0)
    assert [each.offset for each in folder.store.store.names()] == [1, 3]


def test_the_pauses_grow_up_to_a_bound_and_are_never_longer_than_the_interval(folder: Folder) -> None:
    assert folder.store.pause_seconds(60.0) == 60.0
    folder.take_away()
    pauses = []
    for _ in range(2_000):
        assert try_save(folder, 1) is None
        pauses.append(folder.store.pause_seconds(60.0))
    assert 0.25 <= pauses[0] <= 0.5
    assert 1.0 <= pauses[2] <= 2.0
    assert all(LONGEST_PAUSE / 2 <= pause <= LONGEST_PAUSE for pause in pauses[6:])
    assert folder.store.pause_seconds(0.1) == 0.1


def test_a_store_that_stays_away_is_an_end_that_says_what_to_do(folder: Folder) -> None:
    folder.take_away()
    assert try_save(folder, 1) is None
    folder.now = 599.0
    folder.store.check()
    folder.now = 600.0
    with pytest.raises(
        StoreAwayError, match=r"(?s)snapshots\.url .*/snapshots: away for 600 s.*Error: .*Mend the store"
    ):
        folder.store.check()


def test_what_is_written_for_one_owner_does_not_hide_that_another_is_refused(folder: Folder) -> None:
    folder.path.mkdir()
    (folder.path / "learn-0").write_text("in the way")
    for now in (0.0, 300.0, 600.0):
        folder.now = now
        assert try_save(folder, 1) is None
        assert try_save(folder, 1, "join-0")
    with pytest.raises(StoreAwayError):
        folder.store.check()
    folder.store.forget("learn-0")
    folder.store.check()


def test_a_stage_that_opens_waits_for_the_store(folder: Folder) -> None:
    assert try_save(folder, 1)
    folder.take_away()
    folder.back_at = 30.0
    found = asyncio.run(folder.store.latest("learn-0", "abc"))
    assert found is not None
    assert found[0] == name(1)
    assert folder.store.failures == len(folder.pauses)
    assert 30.0 <= folder.now < 40.0


def test_a_snapshot_that_nothing_may_go_on_without_is_waited_for_up_to_the_end_of_patience(folder: Folder) -> None:
    folder.take_away()
    with pytest.raises(StoreAwayError):
        asyncio.run(folder.store.save(name(1), 1, []))
    assert 600.0 <= folder.now <= 600.0 + LONGEST_PAUSE


def test_a_worker_that_stops_waits_no_longer(folder: Folder) -> None:
    folder.take_away()
    folder.store.stop_waiting()
    with pytest.raises(StoreError):
        asyncio.run(folder.store.latest("learn-0", "abc"))
    assert folder.pauses == []


def test_a_state_that_cannot_be_written_is_no_fault_of_the_store(folder: Folder) -> None:
    with pytest.raises(TypeError, match="plain values"):
        asyncio.run(folder.store.try_save(name(1), object(), []))
    assert folder.store.failures == 0
