"""What waits for its labels: slates by key, and how one becomes a string of bytes when it is written.

A slate is some fifteen small arrays, which take a third of their memory beside their numbers, and of whose bytes half
say nothing new. So once it has been written with a snapshot it is kept as it was written, packed and compressed, and
unpacked when a label acts. A restored learner knows where its slates lie and looks into none of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.features.vectors import Vectors
from heft.models.importance.teacher_scores import TeacherScores, VersionScores
from heft.models.rankers.head import Prediction
from heft.stream.learn.segments import Content, Segments

_HEAD = struct.Struct("<qQQQqqIIHHBBBB")

_as_bytes = msgspec.msgpack.Encoder().encode
_texts = msgspec.msgpack.Decoder(list[str]).decode


class OpenSlate(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A slate as it was shown, or one row of it that was clicked; never changed."""

    request_id: str
    surface: str
    measured: bool
    """Whether it counts in the metrics."""
    vectors: Vectors
    order: Prediction
    click: Prediction | None
    """None once its label is known, of a clicked row."""
    teacher_scores: TeacherScores
    """Of a slate, the teacher's scores that had come in time; of a clicked row, all that had come when it closed."""

    def state(self) -> tuple[Any, ...]:
        """Return all that is in it as plain values and arrays."""
        scores = tuple(version.state() for version in self.teacher_scores)
        plain = (self.request_id, self.surface, self.measured, self.vectors.state(), self.order.state(), scores)
        return plain if self.click is None else (*plain, self.click.state())


class OpenSlates:
    """Slates by key, in the order in which they came; the oldest goes when there are too many.

    Parameters
    ----------
    prefix
        What the names of the segments begin with.
    most
        How many may wait.
    """

    def __init__(self, prefix: str, most: int) -> None:
        self._most = most
        self._numbers: dict[str, int] = {}
        self._segments = Segments(prefix, _packed, _unpacked)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    def add(self, key: str, slate: OpenSlate) -> str | None:
        """Take a slate whose key is not here; return the key of the oldest one if that had to go for it."""
        self._numbers[key] = self._segments.add(key, slate)
        if len(self._numbers) <= self._most:
            return None
        oldest = self._segments.oldest()
        self.remove(oldest)
        return oldest

    def get(self, key: str) -> OpenSlate | None:
        """Return a slate; None without one."""
        number = self._numbers.get(key)
        return None if number is None else self._segments[number]

    def pop(self, key: str) -> OpenSlate | None:
        """Remove a slate and return it; None without one."""
        slate = self.get(key)
        if slate is not None:
            self.remove(key)
        return slate

    def remove(self, key: str) -> None:
        """Remove a slate that is here."""
        self._segments.remove(self._numbers.pop(key))

    def numbered(self) -> Iterator[tuple[int, OpenSlate]]:
        """Yield all slates, one by one, behind the numbers in which they came."""
        return ((number, self._segments[number]) for number in self._numbers.values())

    def state(self) -> tuple[dict[str, Any], list[tuple[str, Callable[[], Content]]]]:
        """Return the state and the segments it needs; what these hold does not change any more."""
        return self._segments.state()

    def restore(self, state: Mapping[str, Any], contents: Mapping[str, Content]) -> None:
        """Go on from what `state` returned; no slate is unpacked for it."""
        self._numbers = dict(self._segments.restore(state, contents))


def _packed(slate: OpenSlate) -> bytes:
    """Return the bytes of a slate: numbers, then arrays, those of the widest numbers first, then texts."""
    vectors, order, click, scores = slate.vectors, slate.order, slate.click, slate.teacher_scores
    predictions: Sequence[Prediction] = (order,) if click is None else (order, click)
    arrays: list[NDArray[Any]] = [vectors.items]
    for version in scores:
        arrays += (version.click, version.order)
    for each in predictions:
        arrays += (each.raw, each.rank, each.p, each.teacher_inputs)
    # Where groups begin are ever larger numbers; how long they are is nearly the same in each row, and compresses.
    lengths = vectors.indptr[1:] - vectors.indptr[:-1]
    arrays += (vectors.slots, lengths, vectors.positions, vectors.seen, vectors.new)
    arrays += [version.missing for version in scores]
    head = _HEAD.pack(
        vectors.at_ms, vectors.request, vectors.user, vectors.query,
        order.changes, 0 if click is None else click.changes,
        len(vectors), len(vectors.slots),
        order.raw.shape[1], 0 if click is None else click.raw.shape[1],
        order.teacher_inputs.size > 0, click is not None and click.teacher_inputs.size > 0,
        len(scores), slate.measured,
    )  # fmt: skip
    texts = _as_bytes((slate.request_id, slate.surface, *(version.version for version in scores)))
    return b"".join((head, *(array.data for array in arrays), texts))


def _unpacked(packed: bytearray) -> OpenSlate:
    """Return a slate whose arrays lie in these bytes, which must be writable.

    Compiled functions know arrays that must not be written to as another type.
    """
    (
        at_ms, request, user, query, order_changes, click_changes, n, slots_size, order_columns, click_columns,
        order_inputs, click_inputs, versions, measured,
    ) = _HEAD.unpack_from(packed)  # fmt: skip
    at = _HEAD.size

    def take(dtype: type[np.generic], size: int, count: int) -> NDArray[Any]:
        nonlocal at
        start, at = at, at + size * count
        return np.frombuffer(packed, dtype, count, start)

    def prediction(columns: int, has_inputs: int, changes: int) -> Prediction:
        raw, rank, p = take(np.float32, 4, 3 * n * columns).reshape(3, n, columns)
        return Prediction(raw, rank, p, take(np.float32, 4, n * has_inputs), changes)

    items = take(np.uint64, 8, n)
    logits = [(take(np.float64, 8, n), take(np.float64, 8, n)) for _ in range(versions)]
    order = prediction(order_columns, order_inputs, order_changes)
    click = prediction(click_columns, click_inputs, click_changes) if click_columns else None
    slots, indptr = take(np.uint32, 4, slots_size), np.zeros(3 * n + 1, np.int32)
    np.cumsum(take(np.int32, 4, 3 * n), out=indptr[1:])
    positions = take(np.uint16, 2, n)
    vectors = Vectors(
        at_ms, request, user, query, items, positions, take(np.bool_, 1, n), take(np.bool_, 1, n), indptr, slots
    )  # fmt: skip
    missing = [take(np.uint8, 1, n) for _ in range(versions)]
    request_id, surface, *names = _texts(memoryview(packed)[at:])
    scores = tuple(
        VersionScores(name, *of_version, reasons)
        for name, of_version, reasons in zip(names, logits, missing, strict=True)
    )
    return OpenSlate(request_id, surface, bool(measured), vectors, order, click, scores)
