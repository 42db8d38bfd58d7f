"""Snapshots: everything that a stage needs to go on, in one file that is complete or absent.

A snapshot is named by owner (``join-3``, ``learn-0``), rollbacks, lineage and offset, so two workers that write one
name write the same state. An accepted loss counts as a rollback, since offsets may begin again. New segments are
written first, then the snapshot under a temporary name, fsync, rename; then files that are no longer needed go. On an
object store a file is one PUT under its final name. Offsets of two lineages cannot be compared: each keeps its newest.

*Segments* hold what never changes once written: slates shown and not yet closed. A snapshot names the segments that
it needs, so its cost follows the traffic since the last one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec
import fsspec.core
import msgspec
import zstandard
from fsspec.implementations.local import LocalFileSystem

from heft.stream.state.codec import SnapshotError, State, body, decode, packed
from heft.stream.state.credentials import without_credentials

LINEAGES = 3
"""How many lineages of one owner stay: the one that is being written, and the last ones before it, to go back to."""

T = TypeVar("T")
log = logging.getLogger("heft.snapshot")


class StoreError(RuntimeError):
    """The store cannot be reached, or refuses. The message names it and its error. This may pass by itself."""


class _Needs(msgspec.Struct):
    """The segments that a snapshot names; the rest of the snapshot is skipped when it is decoded."""

    segments: list[str]


_needs_decoder = msgspec.msgpack.Decoder(_Needs)


def _same(state: State) -> State:
    return state


class Name(msgspec.Struct, frozen=True, order=True):
    """What identifies a snapshot. Of several of one owner the greatest is the newest."""

    owner: str
    rollbacks: int
    offset: int
    lineage: str

    @property
    def file(self) -> str:
        """The file's name within the store."""
        return f"{self.owner}/{self.rollbacks:04d}-{self.offset:020d}-{self.lineage}.heft"

    @classmethod
    def parse(cls, file: str) -> Name | None:
        """Return the name that a file has, or None if it is no snapshot."""
        owner, _, base = file.rpartition("/")
        parts = base.removesuffix(".heft").split("-")
        if not base.endswith(".heft") or len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()):
            return None
        return cls(owner.rpartition("/")[2], int(parts[0]), int(parts[1]), parts[2])


class SnapshotStore:
    """Snapshots in a folder or behind any fsspec URL.

    Parameters
    ----------
    url
        Where they lie. All workers of a group need the same.
    keep
        How many snapshots of each lineage of an owner stay, the newest; `LINEAGES` says how many lineages do.
    """

    def __init__(self, url: str, keep: int = 3) -> None:
        self.url = without_credentials(url)  # for people; the file system has the whole
        self.keep = keep
        self.damaged = 0
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._needs: dict[str, list[str]] = {}  # segments by snapshot file, so that cleaning reads no file twice
        self._known_good: set[str] = set()  # segments that this process has written, or read and found undamaged
        self._unneeded: dict[str, set[str]] = {}  # by owner: files that no snapshot needed at the last cleaning
        self._local = isinstance(self._fs, LocalFileSystem)

    def names(self, owner: str | None = None) -> list[Name]:
        """Return the names of the snapshots of an owner, or of all, oldest first."""
        owners = [owner] if owner else [path.rpartition("/")[2] for path in self._paths()]
        names = [Name.parse(path) for each in owners for path in self._paths(each, ".heft")]
        return sorted(name for name in names if name is not None)

    def save(self, name: Name, state: State, segments: Iterable[tuple[str, Callable[[], State]]] = ()) -> int:
        """Write a snapshot, and those of its segments that are not known to be there; return the bytes written.

        A segment whose file exists is still written, unless this process has written or read it: the file may be a
        damaged one, passed over at start.

        Parameters
        ----------
        name, state
            The snapshot.
        segments
            Names, and functions that return their states; only those of segments to be written are called.

        Raises
        ------
        StoreError
            If the store cannot be reached or refuses. Older snapshots stay as they were.
        """
        folder = f"{self._root}/{name.owner}"
        with self._reached():
            self._fs.makedirs(folder, exist_ok=True)
        there = self._segments(name.owner)  # a worker that has just lost this partition may have removed some
        written = 0
        named = []
        for segment, content in segments:
            path = f"{folder}/{segment}.segment"
            named.append(segment)
            if path not in self._known_good or segment not in there:
                written += self._write(path, packed(content()))
                self._known_good.add(path)
        written += self._write(f"{self._root}/{name.file}", packed({"segments": named, "state": state}))
        self._needs[name.file] = named
        self._clean(name)
        return written

    def load(self, name: Name) -> tuple[State, dict[str, State]]:
        """Return a snapshot's state and its segments by name.

        Raises
        ------
        SnapshotError
            If the snapshot or one of its segments is missing or damaged.
        """
        content = self._read(f"{self._root}/{name.file}")
        folder = f"{self._root}/{name.owner}"
        paths = {segment: f"{folder}/{segment}.segment" for segment in content["segments"]}
        segments = {segment: self._read(path) for segment, path in paths.items()}
        self._known_good.update(paths.values())
        return content["state"], segments

    def latest(self, owner: str, lineage: str | None = None) -> tuple[Name, State, dict[str, State]] | None:
        """Return the newest undamaged snapshot of an owner; damaged ones are logged, counted and passed over."""
        for name in reversed(self.names(owner)):
            if lineage is not None and name.lineage != lineage:
                continue
            try:
                state, segments = self.load(name)
            except SnapshotError as error:
                self.damaged += 1
                log.warning("passing over a snapshot: %s", error)
                continue
            return name, state, segments
        return None

    def rollback(self, name: Name) -> Name:
        """Write an older snapshot again as the newest one, with one more rollback; return its new name."""
        state, segments = self.load(name)
        rollbacks = max(other.rollbacks for other in self.names(name.owner)) + 1
        again = msgspec.structs.replace(name, rollbacks=rollbacks)
        self.save(again, state, [(segment, partial(_same, content)) for segment, content in segments.items()])
        return again

    def _write(self, path: str, parts: list[bytes]) -> int:
        with self._reached():
            if self._local:
                _write_whole(path, parts)
            else:
                self._fs.pipe_file(path, b"".join(parts))
        return sum(map(len, parts))

    def _read(self, path: str) -> State:
        return self._decoded(path, decode)

    def _decoded(self, path: str, as_: Callable[[bytes], T]) -> T:
        with self._reached():
            try:
                raw = self._fs.cat_file(path)
            except FileNotFoundError:
                msg = f"{path}: no such file"
                raise SnapshotError(msg) from None
        try:
            return as_(body(raw, path))
        except (msgspec.MsgspecError, zstandard.ZstdError) as error:
            msg = f"{path}: does not decode: {error}"
            raise SnapshotError(msg) from None

    def _clean(self, written: Name) -> None:
        """Remove the files of an owner that no snapshot needs, after one has been written."""
        owner = written.owner
        # Listed before the snapshots, so that segments written in between are not touched.
        segments = self._segments(owner)
        unfinished = set(self._paths(owner, ".partial"))
        names = self.names(owner)
        kept = self._kept(names, written)
        for name in names:
            if name not in kept:
                self._remove(f"{self._root}/{name.file}")
                self._needs.pop(name.file, None)
        needed = self._needed(kept, written)
        if needed is None:
            return
        # Another worker may be in the middle of writing: only files that were not needed last time either are removed.
        unneeded = unfinished | {path for segment, path in segments.items() if segment not in needed}
        for path in unneeded & self._unneeded.get(owner, set()):
            self._remove(path)
            self._known_good.discard(path)
        self._unneeded[owner] = unneeded

    def _kept(self, names: list[Name], written: Name) -> set[Name]:
        lineages: dict[str, list[Name]] = {}
        for name in names:
            lineages.setdefault(name.lineage, []).append(name)
        for lineage in self._lineages_to_drop(lineages, written.lineage):
            del lineages[lineage]
        # The one just written is not among the newest where a damaged one, or another worker's, has a higher offset.
        return {name for of_lineage in lineages.values() for name in of_lineage[-self.keep :]} | {written}

    def _lineages_to_drop(self, lineages: dict[str, list[Name]], written: str) -> list[str]:
        """Return the lineages that no longer stay; none where the store cannot tell which were written last."""
        others = sorted(lineages.keys() - {written})
        if len(others) < LINEAGES:
            return []
        files = {each: [f"{self._root}/{name.file}" for name in lineages[each]] for each in others}
        with self._reached():
            try:
                last = {each: max(map(self._fs.modified, paths)) for each, paths in files.items()}
            except (NotImplementedError, FileNotFoundError):
                # Not every store knows, and another worker may be cleaning: too many are better than the wrong ones.
                return []
        return sorted(others, key=lambda lineage: last[lineage])[: 1 - LINEAGES]

    def _needed(self, kept: set[Name], written: Name) -> set[str] | None:
        """Return the segments that these snapshots name; None where one that counts cannot be read."""
        needed: set[str] = set()
        for name in kept:
            if name.file not in self._needs:
                try:
                    needs = self._decoded(f"{self._root}/{name.file}", _needs_decoder.decode)
                except SnapshotError:
                    if name.lineage == written.lineage:
                        return None  # it may need any segment: all stay until newer snapshots have taken its place
                    continue  # its lineage is no longer written, and nobody can go on from it
                self._needs[name.file] = needs.segments
            needed.update(self._needs[name.file])
        return needed

    def _segments(self, owner: str) -> dict[str, str]:
        """Return the paths of an owner's segments, by name."""
        paths = self._paths(owner, ".segment")
        return {path.rpartition("/")[2].removesuffix(".segment"): path for path in paths}

    def _paths(self, owner: str = "", ending: str = "") -> list[str]:
        # Not with `glob`, which returns nothing for a folder that cannot be read.
        with self._reached():
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(f"{self._root}/{owner}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
        return [str(path).rstrip("/") for path in found if str(path).endswith(ending)]

    def _remove(self, path: str) -> None:
        # A worker that has just lost this partition may be removing files as well.
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(path)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except SnapshotError:
            raise
        except Exception as error:  # every file system has errors of its own
            msg = without_credentials(f"{self.url}: {type(error).__name__}: {error}")
            raise StoreError(msg) from error


def _write_whole(path: str, parts: list[bytes]) -> None:
    """Write a local file so that a reader sees all of it or none, even if the machine stops in between."""
    unfinished = Path(f"{path}.{uuid.uuid4().hex}.partial")
    try:
        with unfinished.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError:
        # On a full disk the remains of each try would keep it full.
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
