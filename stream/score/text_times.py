"""When a teacher that reads texts apart has read each text.

Of such a teacher a ranker needs the vector of each text. Two vectors give the score of their pair, whether or not the
pair has been shown before. So a pair is known from the moment when the later of its two texts was read. With a static
teacher a ranker reads any text itself, so all pairs are known from the moment when the teacher came.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair

AtOnce: TypeAlias = Callable[[Sequence[Pair]], Sequence[Logits | None]]
"""Scores pairs whose texts have both been read, and of a static teacher all pairs; None for the others. It may be
called from any thread, and waits for nothing."""


class Moment(NamedTuple):
    """A moment by two clocks, in milliseconds: the wall clock, and the newest event that the stream had brought."""

    wall_ms: int
    event_ms: int


class TextReadTimes:
    """Texts that a teacher has read, and since when; of a teacher that reads pairs it holds nothing.

    ``at_once`` is the teacher's; it is None for a teacher that reads pairs.

    Parameters
    ----------
    capacity
        The largest number of texts that are remembered. The one used longest ago goes first; when it comes again it
        counts as read from then on.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._since: OrderedDict[str, Moment] = OrderedDict()
        self._all_since: Moment | None = None  # a static teacher's
        self.at_once: AtOnce | None = None

    def begin(self, now: Moment, read_ahead: Iterable[str] = (), static: bool = False) -> None:
        """Begin anew with another teacher, which has read the texts ``read_ahead``, the most used first."""
        self._all_since = now if static else None
        kept = list(read_ahead)[: self._capacity]
        self._since = OrderedDict.fromkeys(reversed(kept), now)  # the most used is forgotten last
        self.at_once = None

    def note(self, pair: Pair, now: Moment) -> Moment:
        """Note that the teacher scored a pair; return since when the pair could be scored."""
        if self.at_once is None:
            return now
        if self._all_since is None:
            for text in pair:
                self._since.setdefault(text, now)
        since = self._since_both(pair)
        while len(self._since) > self._capacity:
            self._since.popitem(last=False)
        return since

    def scores(self, pairs: Iterable[Pair]) -> list[tuple[Pair, Logits, Moment]]:
        """Return those pairs that can be scored at once, with their scores and since when they could be scored."""
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
