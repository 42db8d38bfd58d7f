"""What each visitor did lately: the part of the join's state that is attached to slates."""

from __future__ import annotations

from collections import OrderedDict

from models.sample import Act, Slate

_Entry = tuple[int, str, str, str]  # at_ms, item, kind, request of a click


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
        self._users: OrderedDict[str, list[_Entry]] = OrderedDict()  # the longest quiet first

    def add(self, user_id: str, at_ms: int, item_id: str, kind: str, request_id: str = "") -> None:
        """Remember an act; called in the order of time."""
        users, horizon = self._users, at_ms - self._ttl_ms
        acts = users.get(user_id)
        if acts is None:
            users[user_id] = [(at_ms, item_id, kind, request_id)]
        else:
            acts.append((at_ms, item_id, kind, request_id))
            if len(acts) > self._max_acts or acts[0][0] < horizon:
                acts[:] = [act for act in acts[-self._max_acts :] if act[0] >= horizon]
            users.move_to_end(user_id)
        while len(users) > self._max_users or next(iter(users.values()))[-1][0] < horizon:
            users.popitem(last=False)

    def forget(self, user_id: str, request_id: str) -> None:
        """Take back the clicks of a slate that turned out to be a bot's."""
        acts = self._users.get(user_id)
        if acts is None:
            return
        acts[:] = [act for act in acts if act[3] != request_id]
        if not acts:
            del self._users[user_id]

    def before(self, slate: Slate) -> list[Act]:
        """Return what the visitor did strictly before a slate, oldest first; never clicks on the slate itself."""
        acts = self._users.get(slate.user_id)
        if acts is None:
            return []
        end, own = slate.at_ms, slate.request_id
        start = end - self._ttl_ms
        return [Act(item, kind, at) for at, item, kind, of in acts if start <= at < end and (not of or of != own)]

    def state(self) -> list[tuple[str, list[_Entry]]]:
        """Return everything, the longest quiet user first."""
        return list(self._users.items())

    def restore(self, state: list[tuple[str, list[_Entry]]]) -> None:
        """Go on from what `state` returned."""
        self._users = OrderedDict(state)
