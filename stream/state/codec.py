"""A state as bytes, for snapshot files and digests.

Layout of a file: ``HEFT``, format number (u16), checksum of the rest (BLAKE2b, 16 bytes), then MessagePack compressed
with zstd. Equal states give equal bytes: the keys of maps are sorted, except inside `InOrder`.

A thread that encodes must not block the event loop, but encoding holds Python's global lock. So a state is encoded
piece by piece, and each piece is compressed, which releases the lock, before the next one is encoded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec
import numpy as np
import zstandard

FORMAT = 2
_MAGIC = b"HEFT"
_ARRAY = 1  # MessagePack extension code of a numpy array
_DIGEST_BYTES = 16
_FIX = 16  # MessagePack: the length of a shorter list or map is part of its first byte
_PIECE_ENTRIES = 1_000  # of a list: some milliseconds for entries of 5 KB
_PIECE_BYTES = 1 << 20  # of an array

State: TypeAlias = Any
"""Nested dicts, lists, strings, bytes, numbers, booleans, None, numpy arrays, structs, `InOrder` and `Later`."""


class SnapshotError(RuntimeError):
    """A snapshot that cannot be read, or that does not fit. The message names the file and what to do."""


class InOrder:
    """A value whose maps keep their order; elsewhere in a state keys are sorted. `decode` returns it as its bytes."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Later:
    """A part of a state that is made while the state is encoded, by the thread that does so: nobody waits for it.

    It may be made more than once, of things that do not change. `decode` returns what was made.
    """

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], State]) -> None:
        self.make = make


def _encode_hook(value: object) -> object:
    if isinstance(value, Later):
        return value.make()
    if isinstance(value, InOrder):
        return msgspec.msgpack.encode(value.value)
    if isinstance(value, np.ndarray):
        return msgspec.msgpack.Ext(_ARRAY, _array_head(value) + np.ascontiguousarray(value).tobytes())
    if isinstance(value, np.generic):
        return value.item()
    msg = f"a state holds plain values and arrays, not {type(value).__name__}"
    raise TypeError(msg)


def _array_head(array: np.ndarray[Any, Any]) -> bytes:
    head = msgspec.msgpack.encode((array.dtype.str, array.shape))
    return struct.pack(">H", len(head)) + head


def _decode_hook(code: int, data: memoryview) -> object:
    if code != _ARRAY:
        msg = f"unknown extension {code}"
        raise SnapshotError(msg)
    (length,) = struct.unpack(">H", data[:2])
    dtype, shape = msgspec.msgpack.decode(data[2 : 2 + length], type=tuple[str, tuple[int, ...]])
    return np.frombuffer(data[2 + length :], dtype=dtype).reshape(shape).copy()


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook, order="deterministic")
_decoder = msgspec.msgpack.Decoder(ext_hook=_decode_hook)


def encode(state: State) -> bytes:
    """Return the bytes of a state; equal states give equal bytes."""
    return _encoder.encode(state)


def pieces(state: State) -> Iterator[bytes | memoryview]:
    """Yield the bytes of `encode` in pieces, none of which takes long; large arrays are not copied."""
    match state:
        case dict():
            yield _map_head(len(state))
            for key in sorted(state):
                yield _encoder.encode(key)
                yield from pieces(state[key])
        case list() | tuple() if len(state) > _PIECE_ENTRIES:
            yield _list_head(len(state))
            for start in range(0, len(state), _PIECE_ENTRIES):
                part = state[start : start + _PIECE_ENTRIES]
                yield _encoder.encode(part)[len(_list_head(len(part))) :]
        case list() | tuple() if len(state) < _FIX:
            yield _list_head(len(state))
            for each in state:
                yield from pieces(each)
        case Later():
            yield from pieces(state.make())
        case np.ndarray() if state.nbytes > _PIECE_BYTES:
            head, raw = _array_head(state), np.ascontiguousarray(state).reshape(-1).view(np.uint8).data
            yield struct.pack(">BIb", 0xC9, len(head) + len(raw), _ARRAY) + head
            for start in range(0, len(raw), _PIECE_BYTES):
                yield raw[start : start + _PIECE_BYTES]
        case _:
            yield _encoder.encode(state)


def _list_head(n: int) -> bytes:
    return _head(n, 0x90, 0xDC, 0xDD)


def _map_head(n: int) -> bytes:
    return _head(n, 0x80, 0xDE, 0xDF)


def _head(n: int, fix: int, code16: int, code32: int) -> bytes:
    """Return the bytes with which MessagePack begins a list or a map of n entries."""
    if n < _FIX:
        return bytes((fix | n,))
    return struct.pack(">BH", code16, n) if n < 1 << 16 else struct.pack(">BI", code32, n)


def decode(raw: bytes) -> State:
    """Return the state that `encode` wrote; tuples come back as lists."""
    return _decoder.decode(raw)


def digest(state: State) -> str:
    """Return 32 hexadecimal digits that identify a state."""
    return blake2b(encode(state), digest_size=_DIGEST_BYTES).hexdigest()


def pack(state: State) -> bytes:
    """Return the bytes of a snapshot file."""
    return b"".join(packed(state))


def packed(state: State) -> list[bytes]:
    """Return the bytes of a snapshot file in parts, to be written one after another."""
    compressor, checksum = zstandard.ZstdCompressor(level=1).compressobj(), blake2b(digest_size=_DIGEST_BYTES)
    body = [compressor.compress(piece) for piece in pieces(state)]
    body.append(compressor.flush())
    for part in body:
        checksum.update(part)
    return [_MAGIC + struct.pack(">H", FORMAT) + checksum.digest(), *body]


def unpack(raw: bytes, name: str) -> State:
    """Return the state of a snapshot file.

    Raises
    ------
    SnapshotError
        If the file is no snapshot, or of another format, truncated or damaged.
    """
    return decode(body(raw, name))


def body(raw: bytes, name: str) -> bytes:
    """Check a snapshot file; return the bytes that `encode` gave. Raises as `unpack` does."""
    start = len(_MAGIC) + 2 + _DIGEST_BYTES
    if len(raw) < start or raw[:4] != _MAGIC:
        msg = f"{name}: not a heft snapshot ({len(raw)} bytes)"
        raise SnapshotError(msg)
    (format_,) = struct.unpack(">H", raw[4:6])
    if format_ != FORMAT:
        msg = f"{name}: written in format {format_}, this heft reads format {FORMAT}; use the heft that wrote it"
        raise SnapshotError(msg)
    body = memoryview(raw)[start:]  # a file may be large: not copied
    if blake2b(body, digest_size=_DIGEST_BYTES).digest() != raw[6:start]:
        msg = f"{name}: the checksum does not match; the file is truncated or damaged"
        raise SnapshotError(msg)
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)
