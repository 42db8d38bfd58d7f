"""What each visitor did lately: the part of the join's state that is attached to slates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from heft.models.records import Act, Slate
from heft.stream.join.columns import packed

_Entry: TypeAlias = tuple[int, str, str, str]  # at_ms, item, kind, request of a click
_Acts: TypeAlias = tuple[_Entry, ...]

_unpacked = msgspec.msgpack.Decoder(tuple[_Entry, ...]).decode


class Sessions:
    """Acts by user, bounded in time and in number; the users longest quiet go first.

    Parameters
    ----------
    ttl_ms
        How far back acts are remembered.
    max_acts
        At most this many a user; the oldest go first.
    max_users
        At most this many users.
    """

    def __init__(self, ttl_ms: int, max_acts: int, max_users: int) -> None:
        self._ttl_ms = ttl_ms
        self._max_acts = max_acts
        self._max_users = max_users
        # In the order in which they last acted; a plain dict that loses its first entries would look for the next ever
        # longer. Tuples: a snapshot takes them along, and is written later. Bytes: not looked at since it was read.
        self._users: OrderedDict[str, _Acts | bytes] = OrderedDict()

    def add(self, user_id: str, at_ms: int, item_id: str, kind: str, request_id: str = "") -> None:
        """Remember an act; called in the order of time."""
        users, horizon = self._users, at_ms - self._ttl_ms
        acts = (*self._of(user_id), (at_ms, item_id, kind, request_id))
        if len(acts) > self._max_acts or acts[0][0] < horizon:
            acts = tuple([act for act in acts[-self._max_acts :] if act[0] >= horizon])
        users.pop(user_id, None)  # who is put in again comes last
        users[user_id] = acts
        while len(users) > self._max_users or self._of(next(iter(users)))[-1][0] < horizon:
            users.popitem(last=False)

    def forget(self, user_id: str, request_id: str) -> None:
        """Take back the clicks of a slate that turned out to be a bot's."""
        acts = self._of(user_id)
        if not acts:
            return
        left = tuple([act for act in acts if act[3] != request_id])
        if left:
            self._users[user_id] = left
        else:
            del self._users[user_id]

    def before(self, slate: Slate) -> list[Act]:
        """Return what the visitor did strictly before a slate, oldest first; never clicks on the slate itself."""
        acts = self._of(slate.user_id)
        end, own = slate.at_ms, slate.request_id
        start = end - self._ttl_ms
        return [Act(item, kind, at) for at, item, kind, of in acts if start <= at < end and (not of or of != own)]

    def state(self) -> dict[str, Any]:
        """Return a copy of everything: users, the longest quiet first, and what each did, packed."""
        # Nobody is ever moved within the dict below, so it has the same order, and is copied ten times as fast.
        users, acts = list(dict.keys(self._users)), list(dict.values(self._users))
        return {"users": users, "acts": packed(acts)}

    def restore(self, users: Sequence[str], acts: Sequence[bytes]) -> None:
        """Go on from what `state` became when it was written; acts are read when their user acts."""
        self._users = OrderedDict(zip(users, acts, strict=True))

    def _of(self, user_id: str) -> _Acts:
        """Return what a user did, empty for one who is not known."""
        acts = self._users.get(user_id, ())
        if isinstance(acts, bytes):
            acts = _unpacked(acts)
            self._users[user_id] = acts
        return acts
