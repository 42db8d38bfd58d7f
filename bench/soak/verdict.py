"""What came of the events: counted, compared with a replay of the same topics, learned again."""

from __future__ import annotations

import gc
from collections import Counter
from typing import NamedTuple, TypeAlias

from bench.soak.timeline import Look, Window, back_after, gaps_of, longest_gap
from heft.models.records import Key
from heft.stream.config.settings import Config
from heft.stream.events import messages
from heft.stream.events.messages import ScoredReader
from heft.stream.join.joiner import Joiner
from heft.stream.kafka.bulk_reader import Ended, read_inputs, read_partition
from heft.stream.kafka.connect import client_settings
from heft.stream.learn.learner import Learner
from heft.stream.state.store import SnapshotStore

_CHUNK = 256


class Fates(NamedTuple):
    """What became of the events of all partitions, live and in a replay."""

    events: int = 0
    lost: int = 0
    """Events without a fate."""
    twice: int = 0
    """Events with more than one."""
    late: int = 0
    late_in_replay: int = 0
    differ: int = 0
    """Records for the learner that are not in both, up to where the live join came; 0: the same, in the same order."""
    unread: int = 0
    """Records of the inputs, and messages for the learner, that no snapshot has passed."""
    learned_again: bool = True
    """Whether learning `scored` again gives the same learner, bit for bit."""
    notes: tuple[str, ...] = ()
    """What was found where something is wrong."""


Made: TypeAlias = tuple[bytes, Key]
"""A record: the hash of what it says, and its key."""

Moments: TypeAlias = dict[str, list[float]]
"""When each partition wrote a message with records: seconds since the epoch, sorted."""


class Way(NamedTuple):
    """How long the partitions were away, in seconds: one number for each of them and each cause."""

    back: list[float]
    pauses: list[float]


def counted(config: Config, published: int) -> tuple[Fates, Moments]:
    """Compare what workers left, all stopped, with a replay of the topics; ``published``: events sent into them."""
    collecting = gc.isenabled()
    gc.disable()  # nothing here forms cycles, and a walk over all records costs seconds
    try:
        return _counted(config, published)
    finally:
        if collecting:
            gc.enable()


def _counted(config: Config, published: int) -> tuple[Fates, Moments]:
    store, settings, names = SnapshotStore(config.snapshots.url), client_settings(config.kafka), config.kafka.topics
    partitions = range(config.kafka.partitions)
    moments: Moments = {f"{stage}-{n}": [] for stage in ("join", "score") for n in partitions}
    unread = fate_total = pending = late = late_replayed = events = 0
    kept: dict[int, list[Made]] = {n: [] for n in partitions}
    learners = [Learner(config.learner) for _ in range(config.shards)]
    again = True
    for shard, learner in enumerate(learners):
        found = store.latest(f"learn-{shard}", config.learner.lineage)
        offset = found[1]["offset"] or 0 if found else 0
        reader = ScoredReader()
        for record in read_partition(settings, names.scored, shard):
            message = messages.decode(record.value)
            new = reader.read(message)
            if new:
                moments[f"score-{message.source}"].append(record.timestamp_ms / 1000)
            kept[message.source] += [(messages.payload_hash(each), each.key) for each in new]
            unread += record.offset >= offset and bool(new)
            for each in new if record.offset < offset else ():
                learner.apply(message.source, each)
        live = Learner.restore(config.learner, found[1]["learner"], found[2]) if found else Learner(config.learner)
        again = again and live.digest() == learner.digest()
    differ, notes = 0, list[str]()
    for n in partitions:
        found = store.latest(f"join-{n}", "join")
        joiner = Joiner(config.join, config.inputs, config.decoder())
        if found:
            joiner = Joiner.restore(config.join, config.inputs, found[1]["joiner"], config.decoder())
        fate_total += sum(sum(fates.values()) for fates in joiner.fates.values())
        pending += joiner.pending
        late += _late(joiner)
        replayed, made, ends = _replayed(config, n)
        late_replayed += _late(replayed)
        events += sum(ends)
        unread += sum(ends) - sum(joiner.offsets)
        for record in read_partition(settings, names.samples, n):
            if messages.decode(record.value).records:
                moments[f"join-{n}"].append(record.timestamp_ms / 1000)
        mine, theirs = kept[n], made[: len(kept[n])]
        if mine != theirs:
            notes += _differences(n, joiner, replayed, mine, theirs)
            differ += max(1, (Counter(mine) - Counter(made)).total() + (Counter(theirs) - Counter(mine)).total())
    for times in moments.values():
        times.sort()
    missing = events - fate_total - pending
    lost, twice = max(0, published - events) + max(0, missing), max(0, -missing)
    if published != events or missing:
        notes.append(f"published {published}, in the topics {events}; with a fate {fate_total}, pending {pending}")
    return Fates(events, lost, twice, late, late_replayed, differ, unread, again, tuple(notes)), moments


def _differences(partition: int, live: Joiner, replayed: Joiner, mine: list[Made], theirs: list[Made]) -> list[str]:
    """Return in words what tells most about where two runs part."""
    only_live = [key for _, key in (Counter(mine) - Counter(theirs)).elements()]
    only_replayed = [key for _, key in (Counter(theirs) - Counter(mine)).elements()]
    fates = [
        {kind: dict(sorted(counts.items())) for kind, counts in joiner.fates.items() if counts}
        for joiner in (live, replayed)
    ]
    return [
        f"partition {partition}: only live {len(only_live)}, the first {only_live[:2]}; only in a replay "
        f"{len(only_replayed)}, the first {only_replayed[:2]}",
        f"partition {partition}: fates live {fates[0]} pending {live.pending}, in a replay {fates[1]}",
    ]


def _replayed(config: Config, partition: int) -> tuple[Joiner, list[Made], list[int]]:
    """Return the join of a partition replayed from its topics, the records it made, and where its inputs end."""
    joiner, made, ends = Joiner(config.join, config.inputs, config.decoder()), list[Made](), [0] * len(config.inputs)
    for number, each in enumerate(read_inputs(config, partition)):
        if isinstance(each, Ended):
            joiner.tick(each.input)
            continue
        ends[each.input] = each.record.offset + 1
        joiner.push(each.input, each.record.offset, each.record.value)
        if number % _CHUNK == 0:
            made += [(messages.payload_hash(record), record.key) for _, record in joiner.drain()]
            joiner.rejected.clear()
    made += [(messages.payload_hash(record), record.key) for _, record in joiner.finish()]
    return joiner, made, ends


def _late(joiner: Joiner) -> int:
    return sum(fates["late"] for fates in joiner.fates.values())


def way_of(
    partitions: list[str], looks: list[Look], moments: Moments, windows: list[Window]
) -> Way:  # fmt: skip
    """Return how long each partition took to come back after each cause, and its longest pause around it."""
    back: list[float] = []
    pauses: list[float] = []
    for window in windows:
        for partition in partitions:
            gaps = gaps_of(partition, looks, window)
            # A learner writes no topic: it does something where a worker that is ready has it.
            done = moments.get(partition) or sorted(
                look.at for look in looks if look.ready and partition in look.restored
            )
            back.append(back_after(gaps, done, window))
            absent = max((end - start for start, end in gaps), default=0.0)
            pauses.append(absent if partition not in moments else longest_gap(done, window))
    return Way(back, pauses)
