"""`heft snapshots`: look at what workers go on from, and go back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from heft.stream.config.settings import load
from heft.stream.events import messages
from heft.stream.events.messages import ScoredReader
from heft.stream.kafka.bulk_reader import read_partition
from heft.stream.kafka.connect import client_settings
from heft.stream.learn.learner import Learner, LearnerConfig
from heft.stream.state.codec import SnapshotError
from heft.stream.state.store import Name, SnapshotStore
from heft.stream.terminal.table import Column, Fitted


def _store(config: Path | None) -> SnapshotStore:
    snapshots = load(config).snapshots
    return SnapshotStore(snapshots.url, snapshots.keep)


def _name(store: SnapshotStore, file: str) -> Name:
    found = [name for name in store.names() if file in (name.file, name.file.rpartition("/")[2])]
    if len(found) != 1:
        msg = (
            f"{store.url}: expected one snapshot named {file}, found {len(found)}; `heft snapshots list` has the names"
        )
        raise SnapshotError(msg)
    return found[0]


class Described(NamedTuple):
    """A snapshot, how many segments it consists of, and, where it is not whole, what is wrong with it."""

    name: Name
    segments: int
    damage: str


def describe_all(config: Path | None) -> Iterator[Described]:
    """Yield each snapshot, oldest first, and whether it is whole."""
    store = _store(config)
    for name in store.names():
        try:
            _, segments = store.load(name)
        except SnapshotError as error:
            yield Described(name, 0, str(error))
        else:
            yield Described(name, len(segments), "")


def snapshots_table(described: Sequence[Described]) -> Fitted[Described]:
    """Return a row for each snapshot."""
    columns: list[Column[Described]] = [
        Column("snapshot", lambda each: each.name.file, "left"),
        Column("segments", lambda each: "DAMAGED" if each.damage else f"{each.segments:,}"),
        Column("offset", lambda each: f"{each.name.offset:,}"),
    ]
    return Fitted(columns, described, lambda each: "red" if each.damage else "")


def show(config: Path | None, file: str) -> str:
    """Return what a snapshot holds, by key: numbers as they are, arrays by shape, lists by length."""
    store = _store(config)
    state, segments = store.load(_name(store, file))
    lines = list(_lines("", state))
    lines += [f"segment {name}: {len(content):,} entries" for name, content in segments.items()]
    return "\n".join(lines)


def rollback(config: Path | None, file: str) -> str:
    """Make a snapshot the newest of its owner; return its new name."""
    store = _store(config)
    return store.rollback(_name(store, file)).file


def _lines(path: str, value: Any) -> Iterator[str]:
    match value:
        case dict():
            for key, each in value.items():
                yield from _lines(f"{path}.{key}" if path else str(key), each)
        case np.ndarray():
            yield f"{path}: {value.dtype} {list(value.shape)}, {value.nbytes:,} bytes"
        case list() | bytes():
            yield f"{path}: {len(value):,} {'bytes' if isinstance(value, bytes) else 'entries'}"
        case _:
            yield f"{path}: {value}"


def verify(config: Path | None, first: str, second: str, progress: Callable[[int], None]) -> str:
    """Learn `scored` again from one snapshot of a shard to a later one; return the digest both have.

    Raises
    ------
    SnapshotError
        If the two are not of one shard and lineage in this order, or what is learned again differs.
    """
    settings, store = load(config), _store(config)
    start, end = _name(store, first), _name(store, second)
    of_learner = start.owner == end.owner and start.owner.startswith("learn-")
    if not of_learner or start.lineage != end.lineage or start.offset > end.offset:
        msg = f"expected an older and a newer snapshot of one shard and lineage, got {start.file} and {end.file}"
        raise SnapshotError(msg)
    learner, reader = _learner(store, start, settings.learner)
    wanted, _ = _learner(store, end, settings.learner)
    shard, clients = int(start.owner.removeprefix("learn-")), client_settings(settings.kafka)
    for record in read_partition(clients, settings.kafka.topics.scored, shard, start.offset, end.offset):
        message = messages.decode(record.value)
        for each in reader.read(message):
            learner.apply(message.source, each)
        progress(1)
    if learner.digest() != wanted.digest():
        msg = f"learning again from {start.file} gave {learner.digest()}, {end.file} holds {wanted.digest()}"
        raise SnapshotError(msg)
    return learner.digest()


def _learner(store: SnapshotStore, name: Name, config: LearnerConfig) -> tuple[Learner, ScoredReader]:
    if name.lineage != config.lineage:
        msg = f"{name.file}: learned under another configuration (lineage {name.lineage}, this is {config.lineage})"
        raise SnapshotError(msg)
    state, segments = store.load(name)
    return Learner.restore(config, state["learner"], segments), ScoredReader.restore(state["reader"])
