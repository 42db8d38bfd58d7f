"""Slates that wait: packed and unpacked they are the same, and no more of them wait than may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from heft.models.features.vectors import Vectors
from heft.models.importance.teacher_scores import TeacherScores, VersionScores
from heft.models.rankers.head import Prediction
from heft.stream.learn.open_slates import OpenSlate, OpenSlates
from heft.stream.state import codec

AT_MS = 1_541_548_939_000


def floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    made = rng.normal(size=shape).astype(np.float32)
    made[rng.random(shape) < 0.2] = np.nan
    return made


def prediction(rng: np.random.Generator, n: int, arms: int, inputs: bool) -> Prediction:
    raw, rank, p = floats(rng, 3, n, arms + 1)
    return Prediction(raw, rank, p, floats(rng, n if inputs else 0), int(rng.integers(9)))


def slate(seed: int, n: int = 5, clicked_row: bool = False, versions: tuple[str, ...] = ()) -> OpenSlate:
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, 9, 3 * n))]).astype(np.int32)
    vectors = Vectors(
        AT_MS, 2**64 - 1, 2**63, seed,
        rng.integers(0, 2**64, n, np.uint64), rng.integers(0, 65_536, n).astype(np.uint16),
        rng.random(n) < 0.5, rng.random(n) < 0.5,
        indptr, rng.integers(0, 2**32, int(indptr[-1]), np.uint32),
    )  # fmt: skip
    scores: TeacherScores = tuple(
        VersionScores(name, rng.normal(size=n), np.full(n, np.nan), rng.integers(0, 4, n).astype(np.uint8))
        for name in versions
    )
    order = prediction(rng, n, 2, inputs=bool(versions))
    click = None if clicked_row else prediction(rng, n, 3, inputs=bool(versions))
    return OpenSlate(f"r{seed}", "söke\n", seed % 2 == 0, vectors, order, click, scores)


def written(slates: OpenSlates) -> tuple[Any, dict[str, Any]]:
    state, segments = slates.state()
    return codec.decode(codec.encode(state)), {
        name: codec.decode(codec.encode(content())) for name, content in segments
    }


def arrays(value: object) -> list[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        return [value]
    return [array for each in value for array in arrays(each)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize("clicked_row", [False, True])
@pytest.mark.parametrize("versions", [(), ("abc@1",), ("a\nb@1", "")])
def test_a_slate_written_and_restored_is_the_same_to_the_bit(
    n: int, clicked_row: bool, versions: tuple[str, ...]
) -> None:
    slates, was = OpenSlates("slates", 10), slate(n, n, clicked_row, versions)
    slates.add("r", was)
    again = OpenSlates("slates", 10)
    again.restore(*written(slates))
    for found in (slates.get("r"), again.get("r")):
        assert found is not None
        assert found is not was
        assert codec.encode(found.state()) == codec.encode(was.state())
        assert found.state()[:3] == was.state()[:3]
        for one, other in zip(arrays(found.state()), arrays(was.state()), strict=True):
            # As another type, each would be compiled for anew.
            assert (one.dtype, one.ndim, one.flags.writeable, one.flags.aligned, one.flags.c_contiguous) == (
                other.dtype, other.ndim, True, True, True,
            )  # fmt: skip


def test_the_oldest_slate_goes_when_there_are_too_many_written_or_not() -> None:
    slates = OpenSlates("slates", 3)
    assert [slates.add(f"r{n}", slate(n)) for n in range(4)] == [None, None, None, "r0"]
    again = OpenSlates("slates", 3)
    again.restore(*written(slates))
    assert again.add("r4", slate(4)) == "r1"
    assert (len(again), "r1" in again, "r2" in again) == (3, False, True)
    assert again.pop("r1") is None
    assert again.pop("r2") is not None
    assert [number for number, _ in again.numbered()] == [3, 4]


def test_a_slate_that_waits_takes_little_more_than_its_compressed_bytes() -> None:
    slates = OpenSlates("slates", 1_000)
    for n in range(100):
        slates.add(f"r{n}", slate(n, 25))
    _, segments = written(slates)
    [content] = segments.values()
    arrays_alone = sum(array.nbytes for _, each in slates.numbered() for array in arrays(each.state()))
    assert content["bytes"].nbytes < 1.1 * arrays_alone
