"""Who reads what: shares are even, partitions of topics that are read together stay together, little moves."""

from __future__ import annotations

from typing import cast

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from hypothesis import given
from hypothesis import strategies as st

from heft.stream.kafka.assignor import Member, Unit, UnitAssignor, spread

INPUTS = ("impressions", "clicks")
TOGETHER = (INPUTS, ("samples",), ("scored",))
PARTITIONS = {0: range(4), 1: range(4), 2: range(1)}
ALL = frozenset(PARTITIONS)


class Cluster:
    """What aiokafka knows of the topics."""

    def __init__(self, **partitions: int) -> None:
        self._partitions = partitions

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(self._partitions[topic])) if topic in self._partitions else None


def rounds(*groups: frozenset[str]) -> list[dict[str, set[Unit]]]:
    """What members have while some come and others go, each claiming what it had last."""
    had: dict[str, tuple[set[Unit], int]] = {}
    seen = []
    for generation, names in enumerate(groups):
        members = {n: Member(ALL, frozenset(had.get(n, (set(), -1))[0]), had.get(n, (set(), -1))[1]) for n in names}
        seen.append(spread(PARTITIONS, members))
        had |= {name: (units, generation) for name, units in seen[-1].items()}
    return seen


groups = st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=8)


@given(groups)
def test_each_partition_has_one_reader_and_shares_differ_by_one_at_most(names: list[frozenset[str]]) -> None:
    for units in rounds(*names):
        given_out = sorted(unit for each in units.values() for unit in each)
        assert given_out == [(group, p) for group in PARTITIONS for p in PARTITIONS[group]]
        for group in PARTITIONS:
            sizes = [sum(g == group for g, _ in each) for each in units.values()]
            assert max(sizes) - min(sizes) <= 1


@given(groups)
def test_who_comes_again_to_the_same_members_finds_everything_where_it_was(names: list[frozenset[str]]) -> None:
    *_, before, after = rounds(*names, names[-1])
    assert before == after


@given(groups, st.sampled_from("abcdef"))
def test_a_member_that_comes_moves_no_more_than_its_own_share(names: list[frozenset[str]], new: str) -> None:
    *_, before, after = rounds(*names, names[-1] | {new})
    if new not in names[-1]:
        assert all(after[name] <= before[name] for name in names[-1])


def test_where_two_claim_the_same_the_newer_claim_counts() -> None:
    mine = frozenset({(2, 0)})
    late = spread({2: range(1)}, {"a": Member(ALL, mine, generation=3), "b": Member(ALL, mine, generation=4)})
    assert late == {"a": set(), "b": {(2, 0)}}


def test_a_worker_of_one_stage_gets_nothing_of_the_others() -> None:
    units = spread(PARTITIONS, {"a": Member(ALL), "joins": Member(frozenset({0}))})
    assert {group for group, _ in units["joins"]} == {0}
    assert sum(group == 0 for group, _ in units["a"]) == 2


def test_partitions_of_topics_that_are_read_together_go_to_the_same_member_round_after_round() -> None:
    cluster = cast(ClusterMetadata, Cluster(impressions=3, clicks=3, samples=3, scored=1))
    first, second = UnitAssignor(TOGETHER), UnitAssignor(TOGETHER)
    topics = [topic for together in TOGETHER for topic in together]
    alone = first.assign(cluster, {"a": first.metadata(topics)})
    first.on_assignment(alone["a"])
    both = first.assign(cluster, {"a": first.metadata(topics), "b": second.metadata(topics)})
    for member in both.values():
        of = dict(member.assignment)
        assert of.get("impressions") == of.get("clicks")
    assert set(both["a"].partitions()) < set(alone["a"].partitions())


def test_a_member_that_speaks_another_version_has_had_nothing() -> None:
    cluster = cast(ClusterMetadata, Cluster(impressions=2, clicks=2, samples=2, scored=1))
    topics = [topic for together in TOGETHER for topic in together]
    strange = ConsumerProtocolMemberMetadata(0, topics, b"\xc1")
    given_out = UnitAssignor(TOGETHER).assign(cluster, {"a": strange})
    assert len(given_out["a"].partitions()) == 7
