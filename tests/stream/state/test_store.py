"""Snapshots: whole or absent, the same bytes for the same state, the newest whole one wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import fsspec
import msgspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from heft.stream.state import codec
from heft.stream.state.codec import SnapshotError
from heft.stream.state.store import Name, SnapshotStore, StoreError
from tests.support.places import GOLDEN

STATE: dict[str, Any] = {
    "text": "ü",
    "bytes": b"\x00\xff",
    "numbers": [1, -2.5, 2**62, True, None],
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
}


def name(offset: int, rollbacks: int = 0, lineage: str = "abc") -> Name:
    return Name("learn-0", rollbacks, offset, lineage)


def test_a_state_survives_its_bytes_and_equal_states_have_equal_digests() -> None:
    again = codec.decode(codec.encode(STATE))
    assert again["array"].dtype == np.float32
    np.testing.assert_array_equal(again["array"], STATE["array"])
    assert {k: v for k, v in again.items() if k != "array"} == {k: v for k, v in STATE.items() if k != "array"}
    assert codec.digest(dict(reversed(STATE.items()))) == codec.digest(STATE)
    assert codec.digest({**STATE, "text": "u"}) != codec.digest(STATE)


@pytest.mark.parametrize("n", [0, 3, 15, 16, 17, 999, 1_000, 1_001, 1_017, 70_000])
def test_written_in_pieces_a_state_has_the_same_bytes(n: int) -> None:
    state = {
        "long": [(f"r{k}", k, b"x") for k in range(n)],
        "map": {f"{k}": k for k in range(n)},
        "array": np.arange(7 * n, dtype=np.float64).reshape(n, 7),
        "short": [[{"b": np.zeros((n, 0)), "a": None}, tuple(range(n))], STATE],
        "in_order": codec.InOrder({"b": n, "a": n}),
        "later": codec.Later(lambda: {"b": list(range(n)), "a": codec.Later(lambda: [codec.InOrder(n)])}),
    }
    parts = [bytes(part) for part in codec.pieces(state)]
    assert b"".join(parts) == codec.encode(state)
    assert max(map(len, parts)) <= 1 << 20
    assert codec.encode(codec.unpack(codec.pack(state), "x")) == codec.encode(
        state
        | {"in_order": msgspec.msgpack.encode({"b": n, "a": n})}
        | {"later": {"b": list(range(n)), "a": [msgspec.msgpack.encode(n)]}}
    )


def test_a_state_of_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="not PosixPath"):
        codec.encode({"path": Path()})


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_newest_wins_and_only_so_many_stay(tmp_path: Path, scheme: str) -> None:
    store = SnapshotStore(f"{scheme}{tmp_path}", keep=2)
    for offset in range(5):
        store.save(name(offset), {"offset": offset})
    assert [each.offset for each in store.names("learn-0")] == [3, 4]
    latest = store.latest("learn-0")
    assert latest is not None
    assert latest[1] == {"offset": 4}
    assert store.latest("learn-0", lineage="other") is None


def test_an_object_store_serves_as_well() -> None:
    store = SnapshotStore("memory://snapshots", keep=2)
    store.save(name(1), STATE)
    assert [each.offset for each in SnapshotStore("memory://snapshots").names()] == [1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_snapshot_is_counted_and_passed_over(tmp_path: Path, damage: str) -> None:
    store = SnapshotStore(str(tmp_path))
    store.save(name(1), STATE)
    store.save(name(2), STATE)
    path = tmp_path / name(2).file
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes({"truncated": raw[: len(raw) // 2], "flipped": raw, "emptied": bytearray()}[damage]))
    with pytest.raises(SnapshotError, match=path.name):
        store.load(name(2))
    latest = store.latest("learn-0")
    assert latest is not None
    assert (latest[0].offset, store.damaged) == (1, 1)


def test_a_segment_is_written_once_and_goes_with_its_last_snapshot(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path), keep=2)
    written = []

    def segment(n: int) -> tuple[str, Any]:
        def content() -> int:
            written.append(n)
            return n

        return f"s{n}", content

    for n in range(4):
        store.save(name(n), n, [segment(n), segment(n + 1)])
    assert written == [0, 1, 2, 3, 4]
    # One that has just become superfluous goes with the next snapshot.
    assert sorted(path.stem for path in tmp_path.glob("*/*.segment")) == ["s1", "s2", "s3", "s4"]
    latest = store.latest("learn-0")
    assert latest is not None
    assert latest[2] == {"s3": 3, "s4": 4}


def test_a_damaged_segment_is_written_anew_by_the_next_that_needs_it(tmp_path: Path) -> None:
    SnapshotStore(str(tmp_path)).save(name(1), "old", [("s1", lambda: "kept")])
    (tmp_path / "learn-0" / "s1.segment").write_bytes(b"HEFT")
    store = SnapshotStore(str(tmp_path))
    assert store.latest("learn-0") is None
    store.save(name(1), "old", [("s1", lambda: "kept")])
    latest = store.latest("learn-0")
    assert latest is not None
    assert latest[1:] == ("old", {"s1": "kept"})


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.save(name(1), "old")
    half = tmp_path / f"{name(2).file}.17.partial"
    half.write_bytes(b"HEFT")
    assert store.names() == [name(1)]
    store.save(name(3), "new")
    assert half.exists()  # it may be that of a worker which is still writing
    store.save(name(4), "newer")
    assert not half.exists()


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    (tmp_path / name(1).file).mkdir(parents=True)
    with pytest.raises(StoreError, match=f"{tmp_path}: IsADirectoryError"):
        store.save(name(1), "new")
    assert list(tmp_path.glob("*/*.partial")) == []


def test_a_rollback_makes_an_older_snapshot_the_newest(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.save(name(1), "old", [("s1", lambda: "kept")])
    store.save(name(2), "new")
    assert store.rollback(name(1)) == name(1, rollbacks=1)
    latest = store.latest("learn-0")
    assert latest is not None
    assert latest[1:] == ("old", {"s1": "kept"})


def kept(store: SnapshotStore) -> list[tuple[str, int, int]]:
    return sorted((each.lineage, each.rollbacks, each.offset) for each in store.names("learn-0"))


def test_a_new_configuration_keeps_its_snapshots_beside_older_ones_that_are_further(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path), keep=2)
    for offset in (1_000, 2_000, 3_000):
        store.save(name(offset, lineage="old"), offset, [(f"old{offset}", lambda: "old")])
    for offset in (1, 2, 3):
        store.save(name(offset, lineage="new"), offset, [(f"new{offset}", lambda: "new")])
    assert kept(store) == [("new", 0, 2), ("new", 0, 3), ("old", 0, 2_000), ("old", 0, 3_000)]
    for lineage, offset in (("old", 3_000), ("new", 3)):
        latest = store.latest("learn-0", lineage)
        assert latest is not None
        assert latest[1:] == (offset, {f"{lineage}{offset}": lineage})


def test_after_a_rollback_of_one_lineage_another_can_still_write(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path), keep=2)
    store.save(name(1_000, lineage="old"), 1_000)
    store.save(name(2_000, lineage="old"), 2_000)
    store.rollback(name(1_000, lineage="old"))
    for offset in (1, 2, 3):
        store.save(name(offset, lineage="new"), offset)
    assert kept(store) == [("new", 0, 2), ("new", 0, 3), ("old", 0, 2_000), ("old", 1, 1_000)]
    latest = store.latest("learn-0", "old")
    assert latest is not None
    assert latest[0] == name(1_000, rollbacks=1, lineage="old")


def test_of_the_lineages_those_written_last_stay(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    for age, lineage in enumerate(("b", "d", "a", "c")):
        store.save(name(1_000 * age, lineage=lineage), age, [(f"of-{lineage}", lambda: "open")])
        os.utime(tmp_path / name(1_000 * age, lineage=lineage).file, (10 - age, 10 - age))
    for _ in range(2):
        store.save(name(5, lineage="e"), "new")
    assert [lineage for lineage, _, _ in kept(store)] == ["b", "d", "e"]
    assert {path.stem for path in tmp_path.glob("*/*.segment")} == {"of-b", "of-d"}


class _Timeless(MemoryFileSystem):
    """A store that does not say when a file was written, as an fsspec file system need not."""

    protocol = "timeless"
    store: ClassVar[dict[str, Any]] = {}

    def modified(self, path: str) -> NoReturn:
        raise NotImplementedError(path)


def test_where_nobody_knows_which_lineage_was_written_last_all_stay() -> None:
    fsspec.register_implementation("timeless", _Timeless, clobber=True)
    store = SnapshotStore("timeless://snapshots", keep=1)
    for n, lineage in enumerate("abcdef"):
        store.save(name(n, lineage=lineage), n)
        store.save(name(n + 1, lineage=lineage), n)
    assert kept(store) == [(lineage, 0, n + 1) for n, lineage in enumerate("abcdef")]


def test_a_snapshot_just_written_stays_even_where_newer_ones_are_damaged(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path), keep=2)
    for offset in (1, 2, 3):
        store.save(name(offset), offset)
    for offset in (2, 3):
        (tmp_path / name(offset).file).write_bytes(b"HEFT")
    store.save(name(1), "again")
    latest = store.latest("learn-0")
    assert latest is not None
    assert latest[:2] == (name(1), "again")


def test_a_damaged_snapshot_of_an_older_lineage_does_not_hold_up_cleaning(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path), keep=1)
    store.save(name(9, lineage="old"), "old")
    (tmp_path / name(9, lineage="old").file).write_bytes(b"HEFT")
    store = SnapshotStore(str(tmp_path), keep=1)
    for offset in (1, 2, 3):
        store.save(name(offset), offset, [(f"s{offset}", lambda: "open")])
    assert {path.stem for path in tmp_path.glob("*/*.segment")} == {"s2", "s3"}


def test_a_segment_that_another_worker_cleaned_away_is_written_again(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.save(name(1), 1, [("s1", lambda: "open")])
    (tmp_path / "learn-0" / "s1.segment").unlink()
    store.save(name(2), 2, [("s1", lambda: "open")])
    latest = store.latest("learn-0")
    assert latest is not None
    assert latest[0] == name(2)


def test_what_another_worker_is_just_writing_is_not_cleaned_away(tmp_path: Path) -> None:
    ours, theirs = SnapshotStore(str(tmp_path)), SnapshotStore(str(tmp_path))
    ours.save(name(1), 1, [("s1", lambda: "open")])
    half = tmp_path / "learn-0" / "s3.segment.0f.partial"

    def content() -> str:
        half.write_bytes(b"HEFT")
        ours.save(name(2), 2, [("s1", lambda: "open")])
        return "open too"

    # Ours cleans while theirs has written a segment, half of another, and no snapshot yet.
    theirs.save(name(3), 3, [("s2", lambda: "open"), ("s3", content)])
    assert half.exists()
    latest = theirs.latest("learn-0")
    assert latest is not None
    assert (latest[0], set(latest[2])) == (name(3), {"s2", "s3"})


def test_the_format_of_today_is_read_tomorrow() -> None:
    golden = GOLDEN / "snapshot_v2.heft"
    again = codec.unpack(golden.read_bytes(), golden.name)
    assert codec.digest(again) == codec.digest(STATE)


def test_another_format_is_refused_by_number() -> None:
    raw = bytearray(codec.pack(STATE))
    raw[5] = 9
    with pytest.raises(SnapshotError, match="format 9, this heft reads format 2"):
        codec.unpack(bytes(raw), "x.heft")
