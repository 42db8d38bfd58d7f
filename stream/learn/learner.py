"""The last stage: the ordered log of one shard becomes a model, and what is known about how good it is.

A slate is predicted when it is shown and kept, features and predictions frozen, until its labels act. Labels act
``serve_delay_ms`` after they are due, by the learner's clock: the largest due time read. So every prediction is one
that a ranker fed by this learner's snapshots could have served, live and in replay alike.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.evaluate.cohorts import Cohorts
from heft.models.features.config import FeatureConfig
from heft.models.features.featurizer import Featurizer
from heft.models.features.vectors import Vectors, item_hash
from heft.models.importance.teacher_scores import TeacherScores, scores_at_close, scores_on_time
from heft.models.rankers.arms import Arm, RankerConfig
from heft.models.rankers.bank import Bank
from heft.models.rankers.head import Head, LabelledSlate, Prediction
from heft.models.records import (
    MIN_AT_MS,
    Act,
    Clicked,
    Closed,
    Item,
    Key,
    Matured,
    Record,
    ReferenceScore,
    Shown,
    Slate,
)
from heft.stream.learn.open_slates import OpenSlate, OpenSlates
from heft.stream.state import codec

_ABSTAIN_BELOW_ORDERS = 100
_SKIPPED = (
    "repeated_requests", "shown_out_of_order", "dropped_slates", "clicks_without_slate", "closed_without_slate",
    "unseen", "dropped_clicks", "matured_without_click",
)  # fmt: skip


class LearnConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When labels act, and how much is kept."""

    serve_delay_ms: int = 70_000
    """How long after its due time a label acts: lateness plus the interval of snapshots."""
    max_skew_ms: int = 60_000
    """A slate further behind the newest of its shard is learned and not measured."""
    max_open_slates: int = 400_000
    """Slates that wait for their labels, at most; the oldest goes first, and is not learned."""
    max_clicked_items: int = 1_000_000
    """Clicked items that wait to mature, at most; the oldest goes first, and its order is not learned."""


class LearnerConfig(msgspec.Struct, frozen=True):
    """All that determines what a learner makes of a log."""

    learn: LearnConfig = LearnConfig()
    features: FeatureConfig = FeatureConfig()
    ranker: RankerConfig = RankerConfig()

    @property
    def lineage(self) -> str:
        """A digest of this configuration: learners of different lineage share no snapshots."""
        return codec.digest(msgspec.to_builtins(self))[:12]


class Outcome(NamedTuple):
    """Labels that have become known, beside what had been predicted: a slate of clicks, or a click's order."""

    head: Literal["click", "conversion"]
    request_id: str
    vectors: Vectors
    """The slate as it was shown; of a click, its row alone."""
    shown: Prediction
    """What each arm and, in the last column, the mixture said when it was shown."""
    labels: NDArray[np.uint8]
    """[n]"""
    measured: bool
    """Whether it counts in the metrics."""


Observer = Callable[[Outcome], None]


class Learner:
    """The learner of one shard.

    Call `apply` with each record that `ScoredReader` lets through. ``counts`` tells what was dropped or not measured;
    ``samples`` how many were learned.

    Parameters
    ----------
    config
        Determines, with the log, all that is learned.
    observer
        Called with each outcome before it is learned; must not change it. For backtests that measure what the learner
        itself does not.
    """

    def __init__(self, config: LearnerConfig | None = None, observer: Observer | None = None) -> None:
        self.config = config or LearnerConfig()
        self._observer = observer
        self.clock_ms = 0
        self.samples = 0
        self.counts: Counter[str] = Counter(dict.fromkeys(_SKIPPED, 0))  # 0 and not absent: who looks sees them all
        self.featurizer = Featurizer(self.config.features)
        ranker = self.config.ranker
        self.click = self._head("click", ranker.click_arms, ranker.click_bits)
        self.order = self._head("order", ranker.conversion_arms, ranker.conversion_bits, _ABSTAIN_BELOW_ORDERS)
        self._taught = any(head.teacher is not None for head in (self.click, self.order))
        self.cohorts = Cohorts()
        lineage, learn = self.config.lineage, self.config.learn
        self._open = OpenSlates(lineage, learn.max_open_slates)
        self._clicked_rows: dict[str, list[int]] = {}
        self._clicks = OpenSlates(f"{lineage}-clicks", learn.max_clicked_items)  # one row of a slate each
        self._waiting: list[tuple[Key, int, Record]] = []  # labels that are due and do not act yet

    def _head(
        self, label: Literal["click", "order"], arms: tuple[Arm, ...], bits: int, abstain_below: int = 0
    ) -> Head:  # fmt: skip
        weightings = self.config.ranker.weightings_of(arms)
        bank = Bank(arms, bits, [weighting.input for weighting in weightings])
        return Head(arms, bank, self.config.ranker.seed, abstain_below, weightings, label)

    def apply(self, source: int, record: Record) -> None:
        """Take the next record of a source partition."""
        if record.due_ms > self.clock_ms:
            self.clock_ms = record.due_ms
            self._act(record.due_ms - self.config.learn.serve_delay_ms)
        if type(record) is Shown:
            self._show(record)
        elif type(record) is Clicked or type(record) is Closed or type(record) is Matured:
            heapq.heappush(self._waiting, (record.key, source, record))

    def catch_up(self, due_ms: int, most: int) -> bool:
        """Let up to ``most`` labels act that a record due at ``due_ms`` lets act; return whether more are left.

        `apply` does it all at once, which takes minutes where the clock jumps by hours. Who cannot stand still for so
        long calls this first, until it returns False. Labels act in the same order either way.
        """
        if due_ms <= self.clock_ms:
            return False
        until_ms = due_ms - self.config.learn.serve_delay_ms
        self._act(until_ms, most)
        return bool(self._waiting) and self._waiting[0][0][0] <= until_ms

    def flush(self) -> None:
        """End of a log: let the labels that still wait act, so that a report covers all that closed."""
        self._act(self.clock_ms)

    def _act(self, until_ms: int, most: float = inf) -> None:
        waiting = self._waiting
        while waiting and waiting[0][0][0] <= until_ms and most > 0:
            most -= 1
            record = heapq.heappop(waiting)[2]
            match record:
                case Clicked():
                    self._click(record)
                case Closed():
                    self._close(record)
                case Matured():
                    self._mature(record)

    def _show(self, record: Shown) -> None:
        slate = record.slate
        if slate.request_id in self._open:
            self.counts["repeated_requests"] += 1
            return
        vectors = self.featurizer.shown(slate, record.session)
        measured = record.due_ms >= self.clock_ms - self.config.learn.max_skew_ms
        scores = scores_on_time(vectors.items, record.scores) if self._taught else ()
        order, click = self.order.predict(vectors, scores), self.click.predict(vectors, scores)
        shown = OpenSlate(slate.request_id, slate.surface, measured, vectors, order, click, scores)
        dropped = self._open.add(slate.request_id, shown)
        if not measured:
            self.counts["shown_out_of_order"] += 1
        if dropped is not None:
            self._clicked_rows.pop(dropped, None)
            self.counts["dropped_slates"] += 1

    def _click(self, record: Clicked) -> None:
        slate = self._open.get(record.request_id)
        row = -1 if slate is None else slate.vectors.row(record.item_id)
        if slate is None or row < 0:
            self.counts["clicks_without_slate"] += 1
            return
        self._clicked_rows.setdefault(record.request_id, []).append(row)
        self.featurizer.clicked(slate.vectors, row)

    def _close(self, record: Closed) -> None:
        slate = self._open.pop(record.request_id)
        if slate is None or slate.click is None:
            self.counts["closed_without_slate"] += 1
            return
        rows = self._clicked_rows.pop(record.request_id, [])
        vectors = slate.vectors
        labels = np.zeros(len(vectors), np.uint8)
        labels[rows] = 1
        seen = vectors.seen
        self.samples += int(seen.sum())
        self.counts["unseen"] += len(vectors) - int(seen.sum())
        if self._observer is not None:
            self._observer(Outcome("click", slate.request_id, vectors, slate.click, labels, slate.measured))
        scores = scores_at_close(slate.teacher_scores, vectors.items, record.scores) if self._taught else ()
        counts = self._counts(self.click, vectors)
        self.click.observe(LabelledSlate(vectors, slate.click, labels, slate.surface, slate.measured, scores, counts))
        self.featurizer.closed(vectors, labels)
        expected = slate.click.p[seen, -1].astype(np.float64) @ slate.order.p[seen, -1]
        counted = slate.measured and not np.isnan(expected)
        if counted:
            self.cohorts.shown(vectors.at_ms, float(expected), len(rows))
        for row in rows:
            self._keep_click(slate, row, counted, scores)

    def _keep_click(self, slate: OpenSlate, row: int, counted: bool, scores: TeacherScores) -> None:
        vectors, order, of_row = slate.vectors.one(row), slate.order.one(row), tuple(each.one(row) for each in scores)
        click = OpenSlate(slate.request_id, slate.surface, counted, vectors, order, None, of_row)
        key = _click_key(slate.request_id, int(vectors.items[0]))
        again = key in self._clicks  # of a slate long closed whose id has come again
        if again:
            self._clicks.remove(key)
        if self._clicks.add(key, click) is not None or again:
            self.counts["dropped_clicks"] += 1

    def _mature(self, record: Matured) -> None:
        click = self._clicks.pop(_click_key(record.request_id, item_hash(record.item_id)))
        if click is None:
            self.counts["matured_without_click"] += 1
            return
        labels = np.array([record.converted], np.uint8)
        if self._observer is not None:
            self._observer(Outcome("conversion", record.request_id, click.vectors, click.order, labels, click.measured))
        counts = self._counts(self.order, click.vectors)
        self.order.observe(
            LabelledSlate(
                click.vectors, click.order, labels, click.surface, click.measured, click.teacher_scores, counts
            )
        )
        if click.measured:
            self.cohorts.matured(click.vectors.at_ms, record.converted)

    def _counts(self, head: Head, vectors: Vectors) -> NDArray[np.float64] | None:
        """Return how often each item had been shown [n], where an arm of the head asks."""
        return self.featurizer.history.shows_of(vectors.items, vectors.at_ms) if head.importance else None

    # ---------------------------------------------------------------- what is known

    @property
    def open_slates(self) -> int:
        """Slates whose labels have not acted."""
        return len(self._open)

    @property
    def open_clicks(self) -> int:
        """Clicked items whose conversion window has not ended."""
        return len(self._clicks)

    def report(self) -> dict[str, Any]:
        """Return both heads' metrics, and p(click) p(order) against orders over matured impressions."""
        return {
            "click": self.click.report(),
            "conversion": self.order.report() | {"product": self.cohorts.report()},
        }

    def digest(self) -> str:
        """Return what identifies all that determines future predictions and reports."""
        state = self._core() | {
            "slates": [(number, *slate.state()) for number, slate in self._open.numbered()],
            "clicks": [(number, *click.state()) for number, click in self._clicks.numbered()],
        }
        return codec.digest(state)

    def state(self) -> tuple[codec.State, list[tuple[str, Callable[[], codec.State]]]]:
        """Return the state and the segments it needs, for `SnapshotStore.save`.

        All is copied or never changes, and may be encoded later.
        """
        slates, shown = self._open.state()
        clicks, clicked = self._clicks.state()
        return self._core() | {"slates": slates, "clicks": clicks}, [*shown, *clicked]

    def _core(self) -> dict[str, Any]:
        return {
            "clock_ms": self.clock_ms,
            "samples": self.samples,
            "counts": {kind: n for kind, n in sorted(self.counts.items()) if n},
            "features": self.featurizer.state(),
            "click": self.click.state(),
            "order": self.order.state(),
            "cohorts": self.cohorts.state(),
            "clicked_rows": [(request, tuple(rows)) for request, rows in sorted(self._clicked_rows.items())],
            "waiting": [(source, record) for _, source, record in sorted(self._waiting)],
        }

    @classmethod
    def restore(cls, config: LearnerConfig, state: codec.State, segments: dict[str, codec.State]) -> Learner:
        """Return a learner that goes on where `state` was taken."""
        learner = cls(config)
        learner.clock_ms = state["clock_ms"]
        learner.samples = state["samples"]
        learner.counts.update(state["counts"])
        learner.featurizer.restore(state["features"])
        learner.click.restore(state["click"])
        learner.order.restore(state["order"])
        learner.cohorts.restore(state["cohorts"])
        learner._open.restore(state["slates"], segments)
        learner._clicks.restore(state["clicks"], segments)
        learner._clicked_rows = dict(state["clicked_rows"])
        for source, plain in state["waiting"]:
            record: Record = msgspec.convert(plain, Record)
            learner._waiting.append((record.key, source, record))  # sorted, so a heap
        return learner


def warm_up(config: LearnerConfig) -> None:
    """Make a learner do each thing once and forget it, so that everything compiled is compiled and loaded."""
    learner = Learner(config)
    at_ms = MIN_AT_MS
    items = [Item("a", features={"number": 1.0, "text": "a"}, text="a"), Item("b")]
    scores = [ReferenceScore("a", 0, "v@0", True, 0), ReferenceScore("b", 0, "v@0", False)]
    for request in "rs":
        slate = Slate(request_id=request, user_id="u", at_ms=at_ms, items=items, query="a", context={"text": "a"})
        learner.apply(0, Shown(at_ms, slate, [Act("a", "click", at_ms - 1)], scores[:1]))
        learner.apply(0, Clicked(at_ms + 1, request, "a"))
        learner.apply(0, Closed(at_ms + 2, request, scores[1:]))
        learner.apply(0, Matured(at_ms + 3, request, "a", True, 1.0))
        learner.flush()
        at_ms += 4
    learner.report()
    learner.state()


def _click_key(request_id: str, item: int) -> str:
    """Return what a clicked item is known by while it waits, given the hash of the item."""
    return f"{item:016x}{request_id}"
