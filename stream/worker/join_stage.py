"""The join of one partition with its Kafka around it: takes over its output, repeats what was done, and goes on.

The snapshot only shortens this. Everything since then is in the output: each message says at which input offsets it
was made and which inputs were idle. So the inputs are read again up to there, and the records made are compared with
those in the log. Equal ones are not written again; a difference ends the stage.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from heft.models.records import FIRST_KEY, Key, Record
from heft.stream.events import messages
from heft.stream.events.messages import Message, MessageError
from heft.stream.events.wire import Decode
from heft.stream.join.config import JoinConfig
from heft.stream.join.joiner import Joiner
from heft.stream.join.rejected import Rejected
from heft.stream.kafka.batch_consumer import TP, Batch
from heft.stream.kafka.offsets import OffsetGoneError
from heft.stream.kafka.partition_log import Cursor, MissingRecordsError, Owner, OwnerFilter, Writer
from heft.stream.state.store import Name
from heft.stream.worker.stage import (
    Connections,
    PendingSnapshot,
    RecoveryError,
    TopicFingerprint,
    healthy_or_broken,
    read_message,
)


class JoinStage:
    """The join of one partition: the inputs' partition in, `samples` partition out.

    Parameters
    ----------
    connections
        What the stages of a worker share.
    config
        Windows and bounds of the join.
    decode
        Turns a topic and a raw record into events; None for the wire format.
    partition
        The partition of every input, and of ``samples``.
    inputs
        The topics to read, in the order of the joiner's inputs.
    samples, rejected
        The topics to write.
    """

    def __init__(
        self,
        connections: Connections,
        config: JoinConfig,
        decode: Decode | None,
        partition: int,
        inputs: Sequence[str],
        samples: str,
        rejected: str,
    ) -> None:
        self.connections, self.config, self.partition = connections, config, partition
        self.tps = [TP(topic, partition) for topic in inputs]
        self.inputs = tuple(inputs)
        self.healthy, self.dirty = False, False
        self._decode: tuple[Decode, ...] = () if decode is None else (decode,)
        self._rejected_topic = rejected
        self._samples = TP(samples, partition)
        self._writer = Writer(connections.client, connections.producer, self._samples)
        self._keys: dict[int, Key] = {}
        self._made: dict[int, list[Record]] = {}  # in recovery: records by shard that are not yet found in the output
        self._floor: dict[int, Key] = {}  # by shard, after an accepted loss: records up to here were written before
        self._fingerprints = [TopicFingerprint(tp) for tp in self.tps]
        self._output_fingerprint = TopicFingerprint(self._samples)
        self._rollbacks = 0
        self._logged_offsets: list[int] = []  # the input offsets in the last message written
        self.joiner = Joiner(config, self.inputs, *self._decode)

    @property
    def owner_name(self) -> str:
        """The owner of this stage's snapshots."""
        return f"join-{self.partition}"

    async def open(self) -> Mapping[TP, int | None]:
        """Restore the snapshot, take over the output, and do again what was done since."""
        start, owner = await self._restore()
        without_snapshot = start is None
        losses, partitions = self.connections.losses, (*self.tps, self._samples)
        gaps = losses.of(*partitions)
        resume_at = [None if without_snapshot else offset for offset in self.joiner.offsets]
        pairs = zip(self._fingerprints, resume_at, strict=True)
        self.joiner.seek(await asyncio.gather(*[each.verify(self.connections, at) for each, at in pairs]))
        start = await self._output_fingerprint.verify(self.connections, start)
        marker = await self._writer.claim(start, owner, tuple(self.joiner.offsets))
        try:
            await self._do_again(start, marker, owner, without_snapshot)
        except (RecoveryError, OffsetGoneError, MissingRecordsError, MessageError) as error:
            losses.accept(self._samples, error)
            await self._go_on_after(start, marker, owner)
        self.joiner.wait_for_all()  # what the owner before found dry may have had a backlog since
        self.healthy, self.dirty = True, True  # the next snapshot saves repeating all this
        self._rollbacks += losses.of(*partitions) > gaps
        return self.offsets()

    def offsets(self) -> Mapping[TP, int | None]:
        """Return where each input goes on."""
        return dict(zip(self.tps, self.joiner.offsets, strict=True))

    async def take(self, batches: Sequence[Batch]) -> None:
        """Push batches and write what is due."""
        with healthy_or_broken(self):
            before, moved_ms = self.joiner.frontier, None
            for batch in batches:
                number = self.tps.index(batch.tp)
                for record in batch.records:
                    self.joiner.push(number, record.offset, record.value or b"")
                    if moved_ms is None and self.joiner.frontier > before:
                        moved_ms = record.timestamp_ms  # of the first record that made anything due: never too late
                self._fingerprints[number].note(batch.records[-1])
                await asyncio.sleep(0)  # a thousand records take 30 to 40 ms: others must have a turn
            await self._write(moved_ms)

    async def tick(self, tp: TP, now_ms: int) -> None:
        """Tell the join that an input has run dry, and write what that makes due."""
        with healthy_or_broken(self):
            self.joiner.tick(self.tps.index(tp))
            await self._write(now_ms)

    def idle(self, tp: TP) -> bool:
        """Whether this input is known to have run dry."""
        return self.joiner.idle[self.tps.index(tp)]

    def awaited(self, tp: TP) -> bool:
        """Whether this input is waited for after a silence."""
        return self.joiner.awaited[self.tps.index(tp)]

    def wait_for_all(self, long: bool = False) -> None:
        """Count no input as idle until it is found dry again; see `Joiner.wait_for_all`."""
        self.joiner.wait_for_all(long)
        self.dirty = True

    def held(self) -> dict[TP, bool]:
        """Return for each input whether it is too far ahead of the others to be read on."""
        return {tp: self.joiner.held(number) for number, tp in enumerate(self.tps)}

    async def pending(self) -> PendingSnapshot:
        """Write the input offsets to the output, for recoveries from older snapshots; return a copy of the state."""
        with healthy_or_broken(self):
            if self.joiner.marks or self._logged_offsets != self.joiner.offsets:  # else the last message holds both
                await self._append(0, [])
        state = {
            "joiner": self.joiner.state(),
            "output": self._writer.next_offset,
            "owner": tuple(self._writer.owner),
            "keys": sorted(self._keys.items()),
            "seen": [each.state() for each in self._fingerprints],
            "written": (self._writer.next_offset - 1, self._writer.checksum, self._output_fingerprint.partitions),
            "inputs": list(self.inputs),
        }
        name = Name(self.owner_name, self._rollbacks, self._writer.next_offset, "join")
        self.dirty = False
        return PendingSnapshot(name, state, ())

    # ---------------------------------------------------------------- output

    async def _write(self, due_since_ms: int | None) -> None:
        drained = self.joiner.drain()
        await self._write_rejected()
        await self._write_records(drained, due_since_ms)

    async def _write_records(self, drained: Sequence[tuple[int, Record]], due_since_ms: int | None = None) -> None:
        shards: dict[int, list[Record]] = {}
        for shard, record in drained:
            if record.key > self._floor.get(shard, FIRST_KEY):
                shards.setdefault(shard, []).append(record)
        for shard, records in shards.items():
            for part in messages.batches(records):
                await self._append(shard, part, due_since_ms)

    async def _append(self, shard: int, records: list[Record], due_since_ms: int | None = None) -> None:
        epoch, writer = self._writer.owner
        marks, self.joiner.marks = self.joiner.marks, []
        after, offsets = self._keys.get(shard, FIRST_KEY), tuple(self.joiner.offsets)
        message = Message(self.partition, shard, epoch, writer, after, offsets, marks, records)
        await self._writer.append(message, due_since_ms)
        self._logged_offsets = list(offsets)
        if records:
            self._keys[shard] = records[-1].key

    async def _write_rejected(self) -> None:
        """Send all and wait for all at once: one by one, a shop that sends broken records would slow the join down."""
        values = [rejected_record(self.tps[each.input], each) for each in self.joiner.rejected]
        await self.connections.producer.send_all(self._rejected_topic, values)
        self.joiner.rejected.clear()

    # ---------------------------------------------------------------- recovery

    async def _restore(self) -> tuple[int | None, Owner]:
        """Return where in the output the snapshot was taken, None without one, and who owned the output then."""
        found = await self.connections.store.latest(self.owner_name, "join")
        if found is None:
            return None, Owner()
        name, state, _ = found
        if tuple(state["inputs"]) != self.inputs:
            msg = f"{name.file}: made from the topics {state['inputs']}, the configuration names {list(self.inputs)}"
            raise RecoveryError(msg)
        self.joiner = await asyncio.to_thread(
            Joiner.restore, self.config, self.inputs, state["joiner"], *self._decode
        )  # fmt: skip
        self._keys = {shard: _key(key) for shard, key in state["keys"]}
        self._fingerprints = [TopicFingerprint(tp, *each) for tp, each in zip(self.tps, state["seen"], strict=True)]
        self._output_fingerprint = TopicFingerprint(self._samples, *state["written"])
        self._rollbacks = name.rollbacks
        return state["output"], Owner(*state["owner"])

    async def _do_again(self, start: int, marker: int, owner: Owner, without_snapshot: bool) -> None:
        """Read our own output since ``start`` and the inputs it was made of; write what is missing of it."""
        owner_filter = OwnerFilter(owner)
        made = self._made
        previous: bytes | None = b""
        async with contextlib.AsyncExitStack() as open_inputs:
            cursors: list[Cursor] = []
            async with Cursor(self.connections.client, self._samples, start) as log:
                async for record in log.up_to(marker):
                    if record.value == previous:
                        continue  # sent again because an acknowledgement was lost
                    previous, message = record.value, messages.decode(record.value or b"")
                    if without_snapshot and message.marker:
                        self.joiner.seek(message.offsets)
                        without_snapshot = False
                    if not owner_filter.passes(message):
                        continue
                    if not cursors:
                        pairs = zip(self.tps, self.joiner.offsets, strict=True)
                        cursors = [
                            await open_inputs.enter_async_context(Cursor(self.connections.client, tp, offset))
                            for tp, offset in pairs
                        ]
                    await self._advance(cursors, message)
                    for shard, remade in self.joiner.drain():
                        made.setdefault(shard, []).append(remade)
                    self._compare(record.offset, message, made.setdefault(message.shard, []))
        await self._write_made()

    async def _write_made(self) -> None:
        """Write the remade records that are not in the output; marks and rejected records were written before."""
        self.joiner.marks, self.joiner.rejected = [], []
        made, self._made = self._made, {}
        await self._write_records([(shard, record) for shard, rest in made.items() for record in rest])

    async def _go_on_after(self, start: int, marker: int, owner: Owner) -> None:
        """Go on from where the recovery stopped, and write no record again that is in the output."""
        owner_filter = OwnerFilter(owner)
        async with Cursor(self.connections.client, self._samples, start) as log:
            async for record in log.up_to(marker):
                message = read_message(self.connections, self._samples, record)
                if message is not None and owner_filter.passes(message) and message.records:
                    highest = self._keys.get(message.shard, FIRST_KEY)
                    self._keys[message.shard] = max(highest, message.records[-1].key)
        self._floor = dict(self._keys)
        await self._write_made()

    async def _advance(self, cursors: Sequence[Cursor], message: Message) -> None:
        for mark in message.marks:
            await self._read_to(cursors, mark.offsets)
            try:
                self.joiner.apply(mark)
            except ValueError as error:
                raise RecoveryError(str(error)) from None
        await self._read_to(cursors, message.offsets)

    async def _read_to(self, cursors: Sequence[Cursor], offsets: Sequence[int]) -> None:
        for number, (cursor, end) in enumerate(zip(cursors, offsets, strict=True)):
            async for record in cursor.up_to(end):
                self.joiner.push(number, record.offset, record.value or b"")
                self._fingerprints[number].note(record)

    def _compare(self, offset: int, message: Message, made: list[Record]) -> None:
        after = self._keys.get(message.shard, FIRST_KEY)
        where = f"{self._samples.topic}-{self.partition} at offset {offset}, shard {message.shard}"
        if message.after != after:
            msg = f"{where}: expected a message after {after}, found one after {message.after}"
            raise RecoveryError(msg)
        for number, written in enumerate(message.records):
            remade = made[number] if number < len(made) else None
            if remade is None or messages.payload_hash(remade) != messages.payload_hash(written):
                msg = (
                    f"{where}: the recovery made {remade and remade.key}, but {written.key} was written; "
                    "the inputs or the configuration of the join have changed since"
                )
                raise RecoveryError(msg)
        if message.records:
            self._keys[message.shard] = message.records[-1].key
            del made[: len(message.records)]


def rejected_record(tp: TP, rejected: Rejected) -> bytes:
    """Return a record of the topic `rejected`: where it came from, why, its length and hash, its first 64 KB."""
    fields: dict[str, Any] = {
        "topic": tp.topic,
        "partition": tp.partition,
        "offset": rejected.offset,
        "reason": rejected.reason,
        "bytes": rejected.length,
        "blake2b": rejected.blake2b,
    }
    try:
        fields["raw"] = rejected.raw.decode()
    except UnicodeDecodeError:
        fields["raw_base64"] = base64.b64encode(rejected.raw).decode()
    return msgspec.json.encode(fields)


def _key(plain: Sequence[Any]) -> Key:
    due_ms, kind, id_, id2 = plain
    return due_ms, kind, id_, id2
