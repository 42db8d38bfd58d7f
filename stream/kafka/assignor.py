"""Who reads what: partitions that must be together stay together, and nothing moves that need not.

Kafka's range assignor keeps partition p of every topic together, as the join needs, and moves half of all partitions
when a worker comes. Its sticky one moves little and takes topics apart. This one spreads *units*: partition p of all
topics that are read together. Each member says in its metadata what it had last, and keeps of that what its share
allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

Unit: TypeAlias = tuple[int, int]
"""The number of a group of topics, and a partition."""


class Member(NamedTuple):
    """What a member of the consumer group wants and had."""

    groups: frozenset[int]
    """The groups of topics that it reads."""
    had: frozenset[Unit] = frozenset()
    generation: int = -1
    """Which assignment it had them by; where two claim the same, the newer one has it."""


class _Claim(msgspec.Struct, array_like=True):
    """What travels in the members' metadata, and comes back with their assignment."""

    generation: int = -1
    had: list[Unit] = []


def spread(partitions: Mapping[int, Sequence[int]], members: Mapping[str, Member]) -> dict[str, set[Unit]]:
    """Return the units of each member: shares of a group differ by one at most, and as little as possible moves.

    Parameters
    ----------
    partitions
        The partitions of each group of topics.
    members
        By the id that the broker gave them.

    Examples
    --------
    >>> both = frozenset({0})
    >>> spread({0: range(4)}, {"a": Member(both, frozenset({(0, 1), (0, 3)})), "b": Member(both)}) == {
    ...     "a": {(0, 1), (0, 3)}, "b": {(0, 0), (0, 2)}}
    True
    """
    owner: dict[Unit, str] = {}
    for name, member in sorted(members.items(), key=lambda each: (each[1].generation, each[0])):
        owner |= dict.fromkeys(member.had, name)
    spread_to: dict[str, set[Unit]] = {name: set() for name in members}
    for group, all_of_it in sorted(partitions.items()):
        readers = [name for name, member in members.items() if group in member.groups]
        if not readers:
            continue
        held: dict[str, list[Unit]] = {name: [] for name in readers}
        for partition in sorted(all_of_it):
            who = owner.get((group, partition))
            if who in held:
                held[who].append((group, partition))
        # Whoever had most of this group keeps one more than others where shares cannot be equal; else who has least.
        readers.sort(key=lambda name: (-len(held[name]), len(spread_to[name]), name))
        share, more = divmod(len(all_of_it), len(readers))
        shares = {name: share + (place < more) for place, name in enumerate(readers)}
        kept = {unit for name in readers for unit in held[name][: shares[name]]}
        free = [(group, partition) for partition in sorted(all_of_it) if (group, partition) not in kept]
        for name in readers:
            mine = held[name][: shares[name]]
            take, free = free[: shares[name] - len(mine)], free[shares[name] - len(mine) :]
            spread_to[name].update(mine, take)
    return spread_to


class UnitAssignor(AbstractPartitionAssignor):
    """`spread` as aiokafka asks for it; an object for each consumer, which remembers what it had.

    Parameters
    ----------
    together
        The topics that are read together: partition p of all of them goes to the same member.
    """

    name = "heft-units"

    def __init__(self, together: Sequence[Sequence[str]]) -> None:
        self._together = [tuple(topics) for topics in together]
        self._claim = _Claim()

    # aiokafka declares these as methods of the class and calls them on whatever it was given.

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return what this member reads, and what it had."""
        return ConsumerProtocolMemberMetadata(0, list(topics), msgspec.msgpack.encode(self._claim))

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Remember what this member has now."""
        self._claim = _decoded(assignment.user_data)

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Return the assignment of every member, as its leader."""
        claims = {name: _decoded(member.user_data) for name, member in members.items()}
        wanted = {
            name: Member(self._groups(member.subscription), frozenset(claims[name].had), claims[name].generation)
            for name, member in members.items()
        }
        of_topic = {topic: cluster.partitions_for_topic(topic) or set() for each in self._together for topic in each}
        partitions = {
            group: sorted(set().union(*[of_topic[topic] for topic in topics]))
            for group, topics in enumerate(self._together)
        }
        generation = max(claim.generation for claim in claims.values()) + 1
        assigned = {}
        for name, units in spread(partitions, wanted).items():
            topics = {
                topic: [p for g, p in sorted(units) if g == group and p in of_topic[topic]]
                for group, together in enumerate(self._together)
                for topic in together
            }
            claim = msgspec.msgpack.encode(_Claim(generation, sorted(units)))
            pairs = sorted((topic, numbers) for topic, numbers in topics.items() if numbers)
            assigned[name] = ConsumerProtocolMemberAssignment(0, pairs, claim)
        return assigned

    def _groups(self, subscription: Iterable[str]) -> frozenset[int]:
        topics = set(subscription)
        return frozenset(number for number, together in enumerate(self._together) if topics.issuperset(together))


def _decoded(raw: bytes) -> _Claim:
    try:
        return msgspec.msgpack.decode(raw, type=_Claim)
    except msgspec.DecodeError:  # another version of heft, or none: it has had nothing
        return _Claim()
