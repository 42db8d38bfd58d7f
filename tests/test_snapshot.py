"""Snapshots: whole or absent, the same bytes for the same state, the newest whole one wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from heft.stream.state import store as snapshot
from heft.stream.state.store import Name, SnapshotError, SnapshotStore

STATE: dict[str, Any] = {
    "text": "ü",
    "bytes": b"\x00\xff",
    "numbers": [1, -2.5, 2**62, True, None],
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
}


def name(offset: int, rollbacks: int = 0, lineage: str = "abc") -> Name:
    return Name("learn-0", rollbacks, offset, lineage)


def test_a_state_survives_its_bytes_and_equal_states_have_equal_digests() -> None:
    again = snapshot.decode(snapshot.encode(STATE))
    assert again["array"].dtype == np.float32
    np.testing.assert_array_equal(again["array"], STATE["array"])
    assert {k: v for k, v in again.items() if k != "array"} == {k: v for k, v in STATE.items() if k != "array"}
    assert snapshot.digest(dict(reversed(STATE.items()))) == snapshot.digest(STATE)
    assert snapshot.digest({**STATE, "text": "u"}) != snapshot.digest(STATE)


@pytest.mark.parametrize("n", [0, 3, 15, 16, 17, 999, 1_000, 1_001, 1_017, 70_000])
def test_written_in_pieces_a_state_has_the_same_bytes(n: int) -> None:
    state = {
        "long": [(f"r{k}", k, b"x") for k in range(n)],
        "map": {f"{k}": k for k in range(n)},
        "array": np.arange(7 * n, dtype=np.float64).reshape(n, 7),
        "short": [[{"b": np.zeros((n, 0)), "a": None}, tuple(range(n))], STATE],
        "in_order": snapshot.InOrder({"b": n, "a": n}),
    }
    parts = [bytes(part) for part in snapshot.pieces(state)]
    assert b"".join(parts) == snapshot.encode(state)
    assert max(map(len, parts)) <= 1 << 20
    assert snapshot.encode(snapshot.unpack(snapshot.pack(state), "x")) == snapshot.encode(
        state | {"in_order": msgspec.msgpack.encode({"b": n, "a": n})}
    )


def test_a_state_of_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="not PosixPath"):
        snapshot.encode({"path": Path()})


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
    store.probe()


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
    assert sorted(path.stem for path in tmp_path.glob("*/*.segment")) == ["s2", "s3", "s4"]
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
    assert not half.exists()


def test_a_rollback_makes_an_older_snapshot_the_newest(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.save(name(1), "old", [("s1", lambda: "kept")])
    store.save(name(2), "new")
    assert store.rollback(name(1)) == name(1, rollbacks=1)
    latest = store.latest("learn-0")
    assert latest is not None
    assert latest[1:] == ("old", {"s1": "kept"})


def test_the_format_of_today_is_read_tomorrow() -> None:
    golden = Path(__file__).parent / "golden" / "snapshot_v1.heft"
    again = snapshot.unpack(golden.read_bytes(), golden.name)
    assert snapshot.digest(again) == snapshot.digest(STATE)


def test_another_format_is_refused_by_number() -> None:
    raw = bytearray(snapshot.pack(STATE))
    raw[5] = 9
    with pytest.raises(SnapshotError, match="format 9, this heft reads format 1"):
        snapshot.unpack(bytes(raw), "x.heft")
