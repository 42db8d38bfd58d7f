"""The messages in the topics `samples` and `scored`, and the one way to read their records back.

A message holds records of one source partition and one shard. It names the key that it follows, so that a gap is
noticed; its writer, so that a stalled predecessor does no harm; and the input offsets at which it was made, so that
the join can repeat the same. Layout: one version byte, CRC-32 of the rest (u32), then MessagePack compressed with zstd.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import zstandard

from heft.models.records import FIRST_KEY, Clicked, Closed, Converted, Key, Matured, Record, Shown

VERSION = 1
MAX_MESSAGE_BYTES = 900_000
_TARGET_BYTES = 400_000  # of records before compression, so that messages stay well below the limit
SPAN_MS = 20_000
"""Between the due times of a message's records; partitions are read together in steps of messages."""


class MessageError(ValueError):
    """A record of `samples` or `scored` that cannot be read: damaged, of another version, or out of sequence."""


class GapError(MessageError):
    """Messages before this one are missing from the topic."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Notes that an input became idle, or active again, when the next offsets of all inputs were ``offsets``.

    ``awaited``: it has given nothing itself, but after a silence all inputs are waited for.
    """

    input: int
    idle: bool
    offsets: tuple[int, ...]
    awaited: bool = False


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Records of one source and shard, in the order of their keys.

    ``after`` is the key of the source's last record in this shard before this message; ``offsets`` are the next
    offsets of all inputs when it was made. A *marker* announces a new writer and carries no records.
    """

    source: int
    shard: int
    epoch: int
    writer: str
    after: Key
    offsets: tuple[int, ...]
    marks: list[Mark] = []
    records: list[Record] = []
    marker: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_record_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Return the bytes of a message.

    Raises
    ------
    MessageError
        If it is larger than `MAX_MESSAGE_BYTES`; see `batches`.
    """
    body = zstandard.ZstdCompressor(level=1).compress(_encoder.encode(message))
    if len(body) > MAX_MESSAGE_BYTES:
        msg = f"a message of {len(body)} bytes is larger than {MAX_MESSAGE_BYTES}; a single slate may not be that large"
        raise MessageError(msg)
    return struct.pack(">BI", VERSION, zlib.crc32(body)) + body


def decode(raw: bytes) -> Message:
    """Return the message that `encode` wrote.

    Raises
    ------
    MessageError
        If the version is unknown or the checksum does not match.
    """
    if len(raw) < 5 or raw[0] != VERSION:
        found = raw[0] if raw else "nothing"
        msg = f"Expected a message of version {VERSION}, found {found}; is this topic written by another program?"
        raise MessageError(msg)
    body = raw[5:]
    if zlib.crc32(body) != struct.unpack(">I", raw[1:5])[0]:
        msg = f"the checksum of a message of {len(raw)} bytes does not match: it was damaged on the way"
        raise MessageError(msg)
    try:
        return _decoder.decode(zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 28))
    except (msgspec.MsgspecError, zstandard.ZstdError) as error:
        msg = f"a message of {len(raw)} bytes does not decode: {error}"
        raise MessageError(msg) from None


def batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Split records into lists, each of which fits into a message of moderate size and span."""
    batch: list[Record] = []
    size = 0
    for record in records:
        bytes_ = len(_record_encoder.encode(record))
        if batch and (size + bytes_ > _TARGET_BYTES or record.due_ms >= batch[0].due_ms + SPAN_MS):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += bytes_
    if batch:
        yield batch


def payload_hash(record: Record) -> bytes:
    """Return 16 bytes that identify the content of a record without its reference scores."""
    if isinstance(record, Shown | Closed):
        record = msgspec.structs.replace(record, scores=[])
    return blake2b(_record_encoder.encode(record), digest_size=16).digest()


def to_json(raw: bytes) -> bytes:
    """Return a message as one line of JSON for people to read."""
    message = decode(raw)
    names = {Shown: "shown", Clicked: "clicked", Converted: "converted", Closed: "closed", Matured: "matured"}

    def plain(record: Record) -> dict[str, Any]:
        return {"record": names[type(record)]} | {f: getattr(record, f) for f in record.__struct_fields__}

    fields = {field: getattr(message, field) for field in message.__struct_fields__}
    return msgspec.json.encode(fields | {"records": [plain(record) for record in message.records]})


class _Source(msgspec.Struct, array_like=True):
    """What a reader remembers of one source: its writer, and the key of its last record."""

    epoch: int = 0
    writer: str = ""
    key: Key = FIRST_KEY


class ScoredReader:
    """Reads one partition of `samples` or `scored`: each record of each source once, in order, from its owner alone.

    ``repeated`` counts the records that were dropped because they had been read before, ``fenced`` the messages that
    were dropped because their writer had been replaced.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self.fenced = 0
        self._sources: dict[int, _Source] = {}

    def read(self, message: Message) -> list[Record]:
        """Return the records of a message that are new.

        Raises
        ------
        GapError
            If messages between the last one read of this source and this one are missing; see `skip_gap`.
        """
        source = self._sources.setdefault(message.source, _Source())
        newer = message.epoch > source.epoch
        if message.marker:
            # Of two writers with equal epochs, the one whose marker comes first owns the log.
            if newer:
                source.epoch, source.writer = message.epoch, message.writer
            return []
        if newer:
            # A writer puts its marker into every log that it writes to, before its first message there.
            msg = (
                f"source {message.source}, shard {message.shard}: a message of epoch {message.epoch}, but the last "
                f"writer announced has epoch {source.epoch}; what announces this one is missing from the topic"
            )
            raise GapError(msg)
        if (message.epoch, message.writer) != (source.epoch, source.writer):
            self.fenced += 1
            return []
        if message.after > source.key:
            msg = (
                f"source {message.source}, shard {message.shard}: a message follows {message.after}, but the last "
                f"record read was {source.key}; records between them are missing from the topic"
            )
            raise GapError(msg)
        new = [record for record in message.records if record.key > source.key]
        self.repeated += len(message.records) - len(new)
        if new:
            source.key = new[-1].key
        return new

    def skip_gap(self, message: Message) -> None:
        """Go on with this message although some before it are missing."""
        source = self._sources.setdefault(message.source, _Source())
        if message.epoch > source.epoch:
            source.epoch, source.writer = message.epoch, message.writer
        source.key = max(source.key, message.after)

    def state(self) -> bytes:
        """Return what `restore` needs to go on; the two counts are not part of it."""
        return msgspec.msgpack.encode(sorted(self._sources.items()))

    @classmethod
    def restore(cls, state: bytes) -> ScoredReader:
        """Return a reader that goes on from where ``state`` was taken."""
        reader = cls()
        reader._sources = dict(msgspec.msgpack.decode(state, type=list[tuple[int, _Source]]))
        return reader
