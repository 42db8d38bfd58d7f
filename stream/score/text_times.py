"""Since when texts are known, of a teacher that reads them apart.

What a ranker needs of such a teacher is the vector of each text: once it has had two of them, it has the score of their
pair, whether or not anybody has shown that pair before. So a pair is known since the later of its texts. A static
teacher needs a look at a text and no model: with it a ranker has all vectors, of texts nobody has shown before as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair

AtOnce: TypeAlias = Callable[[Sequence[Pair]], Sequence[Logits | None]]
"""Scores pairs whose texts have both been read, without waiting for anything, from any thread; None for others, unless
it is a static teacher's."""


class Moment(NamedTuple):
    """A moment by the wall clock, and how far the stream had come."""

    wall_ms: int
    event_ms: int


class TextReadTimes:
    """Texts that a teacher has read, and since when; nothing of a teacher that reads pairs.

    ``at_once`` is the teacher's, None for one that reads pairs.

    Parameters
    ----------
    capacity
        Texts that are remembered; the one used longest ago goes first, and is new when it is read again.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._since: OrderedDict[str, Moment] = OrderedDict()
        self._all_since: Moment | None = None
        self.at_once: AtOnce | None = None

    def begin(self, now: Moment, read_ahead: Iterable[str] = (), static: bool = False) -> None:
        """Forget all, since the teacher is another one; it comes with texts that it has read, the most used first."""
        self._all_since = now if static else None
        kept = list(read_ahead)[: self._capacity]
        self._since = OrderedDict.fromkeys(reversed(kept), now)  # the first goes last
        self.at_once = None

    def note(self, pair: Pair, now: Moment) -> Moment:
        """Note that a pair was scored; return since when it could be."""
        if self.at_once is None:
            return now
        for text in pair if self._all_since is None else ():
            self._since.setdefault(text, now)
        since = self._since_both(pair)
        while len(self._since) > self._capacity:
            self._since.popitem(last=False)
        return since

    def scores(self, pairs: Iterable[Pair]) -> list[tuple[Pair, Logits, Moment]]:
        """Return the scores of the pairs that can be scored at once, and since when they could be."""
        if self.at_once is None:
            return []
        read = [pair for pair in pairs if self._all_since or (pair.query in self._since and pair.item in self._since)]
        scored = zip(read, self.at_once(read) if read else [], strict=True)
        return [(pair, logits, self._since_both(pair)) for pair, logits in scored if logits is not None]

    def _since_both(self, pair: Pair) -> Moment:
        if self._all_since is not None:
            return self._all_since
        for text in pair:
            self._since.move_to_end(text)
        query, item = (self._since[text] for text in pair)
        return Moment(max(query.wall_ms, item.wall_ms), max(query.event_ms, item.event_ms))
