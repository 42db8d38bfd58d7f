"""Sessions: the longest quiet user goes first, and what a snapshot has taken does not change any more."""

from __future__ import annotations

import pickle

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from heft.stream.join.sessions import Sessions
from heft.stream.state import codec
from tests.support.builders import SECOND, impression

TTL, ACTS, USERS = 10 * SECOND, 3, 4
acts = st.lists(st.tuples(st.integers(0, 4 * SECOND), st.sampled_from("abcdef"), st.sampled_from(["", "r1", "r2"])))


class Plain:
    """The same by the book: everything is looked through at every act."""

    def __init__(self) -> None:
        self.users: dict[str, list[tuple[int, str, str, str]]] = {}

    def add(self, user: str, at: int, request: str) -> None:
        mine = [*self.users.pop(user, []), (at, "i", "click", request)]
        self.users[user] = [act for act in mine[-ACTS:] if act[0] >= at - TTL]
        while len(self.users) > USERS or next(iter(self.users.values()))[-1][0] < at - TTL:
            del self.users[next(iter(self.users))]

    def forget(self, user: str, request: str) -> None:
        if user in self.users:
            self.users[user] = [act for act in self.users[user] if act[3] != request]
            if not self.users[user]:
                del self.users[user]


@settings(max_examples=200)
@given(acts, st.integers(0, 20))
def test_they_keep_what_looking_through_everything_would_keep(steps: list[tuple[int, str, str]], cut: int) -> None:
    sessions, plain, now = Sessions(TTL, ACTS, USERS), Plain(), 0
    taken = sessions.state(), codec.encode(sessions.state())
    for number, (wait, user, request) in enumerate(steps):
        now += wait
        if number == cut:
            taken = sessions.state(), codec.encode(sessions.state())
            sessions = Sessions(TTL, ACTS, USERS)
            sessions.restore(**codec.decode(taken[1]))
        if request == "r2" and wait % 2:
            sessions.forget(user, "r1")
            plain.forget(user, "r1")
        else:
            sessions.add(user, now, "i", "click", request)
            plain.add(user, now, request)
        state = codec.decode(codec.encode(sessions.state()))
        assert state["users"] == list(plain.users)
        assert [msgspec.msgpack.decode(acts) for acts in state["acts"]] == [
            [list(act) for act in acts] for acts in plain.users.values()
        ]
    assert codec.encode(taken[0]) == taken[1]


def test_what_a_restored_visitor_did_is_read_when_the_visitor_acts() -> None:
    sessions, unreadable = Sessions(TTL, ACTS, USERS), b"\xc1"
    did = {user: msgspec.msgpack.encode([(SECOND, "i", "view", "")]) for user in ("oldest", "a")}
    sessions.restore([*did, "b"], [*did.values(), unreadable])
    sessions.add("a", 2 * SECOND, "j", "view")
    state = codec.decode(codec.encode(sessions.state()))
    assert state["users"] == ["oldest", "b", "a"]
    assert state["acts"][:2] == [did["oldest"], unreadable]
    assert msgspec.msgpack.decode(state["acts"][2]) == [[SECOND, "i", "view", ""], [2 * SECOND, "j", "view", ""]]


def test_what_is_kept_is_bounded_by_users_and_not_by_acts() -> None:
    sessions = Sessions(TTL, ACTS, USERS)
    sessions.add("quiet", 0, "i", "view")
    for n in range(TTL):
        sessions.add("busy", n, "i", "view")
    assert len(pickle.dumps(sessions)) < 1_000


def test_nothing_is_known_of_a_stranger() -> None:
    assert Sessions(TTL, ACTS, USERS).before(impression()) == []
