"""Four unordered, repeating streams become one ordered log of records (docs/architecture.md, "Join").

The joiner is a discrete-event simulation in event time. On arrival an event only waits: everything but three fates
(invalid, late, duplicate by ``event_id``) is decided when the *frontier* passes it, in the order of the keys. So the
order in which topics are read changes nothing, and a crash is mended by doing the same again.

No clock, no network: wall time enters only through `Joiner.tick`, offsets only as numbers to remember.
"""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from heft.models.records import Clicked, Closed, Converted, Matured, Record, Shown, Slate
from heft.stream.events import wire
from heft.stream.events.messages import Mark
from heft.stream.events.watermark import Input, frontier_of
from heft.stream.events.wire import Action, Click, Decode, Event, EventError, Order, one_event
from heft.stream.join.ahead import Ahead
from heft.stream.join.config import JoinConfig
from heft.stream.join.early_clicks import EarlyClicks
from heft.stream.join.fifo_map import Fifo
from heft.stream.join.open_clicks import OpenClicks
from heft.stream.join.open_slates import OpenSlates
from heft.stream.join.rejected import Rejected
from heft.stream.join.sessions import Sessions
from heft.stream.join.state import LATER_CLICKS, ClosedSlate, JoinState, KnownId, KnownOrder, OpenClick, OpenSlate
from heft.stream.join.steps import CLICKED, GIVE_UP, NTH_BITS, Step, packed_steps, step_of, unpacked_step

DROPPED = ("slates", "clicks")
"""Joined state that is dropped to stay bounded."""

_NEVER = sys.maxsize
_NO_STEP = Step(_NEVER, GIVE_UP, "", "", 0, 0, None)
_KIND_OF: dict[type, str] = {Slate: "impression", Click: "click", Order: "order", Action: "action"}


class Joiner:
    """The join of one partition.

    Parameters
    ----------
    config
        Windows and bounds.
    inputs
        Names of the topics read, in a fixed order; a log file counts as one.
    decode
        Turns ``(topic, raw)`` into events; the wire format by default, a mapping of a shop's own JSON otherwise.

    Notes
    -----
    Call `push` for each record of each input in the order of its offsets, `tick` when an input has run dry, and
    `drain` after either. ``fates`` counts what became of each event by its type; ``dropped`` counts joined state that
    had to go. Events are pending until they have a fate: see `pending`.
    """

    def __init__(self, config: JoinConfig, inputs: Sequence[str], decode: Decode = one_event) -> None:
        self.config = config
        self.names = tuple(inputs)
        self.frontier = 0
        self.fates: dict[str, Counter[str]] = {kind: Counter() for kind in (*_KIND_OF.values(), "unknown")}
        self.dropped: Counter[str] = Counter()
        self.rejected: list[Rejected] = []
        self.marks: list[Mark] = []
        self._decode = decode
        self._inputs = [Input() for _ in self.names]
        self._ids: list[Fifo[str, KnownId]] = [Fifo(KnownId, "id") for _ in self.names]
        self._steps: list[Step] = []  # a heap, without what waits ahead
        self._ahead = [Ahead() for _ in self.names]
        self._open = OpenSlates()
        self._closed: Fifo[str, ClosedSlate] = Fifo(ClosedSlate, "request_id")
        self._clicks = OpenClicks(config.conversion_window_ms, config.max_open_clicks)
        self._orders: Fifo[tuple[str, str], KnownOrder] = Fifo(KnownOrder, "order_id", "item_id")
        self._early = EarlyClicks(config.max_waiting_clicks)
        self._sessions = Sessions(config.session_ttl_ms, config.session_acts, config.max_sessions)

    # ---------------------------------------------------------------- what comes in

    def push(self, input: int, offset: int, raw: bytes) -> None:
        """Take the record at ``offset`` of an input; an idle input is active again, after a silence of all all are.

        While another input is active the frontier has kept up with it, and a wait would save nothing: inputs that are
        seldom used would only take turns at being waited for.
        """
        source = self._inputs[input]
        if source.idle and all(self.idle):
            self.wait_for_all(long=True)
        elif source.idle:
            self.apply(Mark(input, False, tuple(self.offsets)))
        source.awaited = False
        source.offset = offset + 1
        try:
            found = self._decode(self.names[input], raw)
            wire.require_travelling(raw, found)
            for nth, event in enumerate(found):
                self._arrive(input, source, offset << NTH_BITS | nth, event)
        except EventError as error:
            self.fates["unknown"]["invalid"] += 1
            self.rejected.append(Rejected.of(input, offset, raw, str(error)))

    def tick(self, input: int) -> None:
        """Wall time has passed and this input has nothing left: it no longer holds the others back."""
        if not self._inputs[input].idle:
            self.apply(Mark(input, True, tuple(self.offsets)))

    def wait_for_all(self, long: bool = False) -> None:
        """Count no input as idle until a `tick` says so again: what it was found to have does not hold any more.

        ``long``: there was a silence, and a tick is due only when an input has had nothing for ``lateness_ms``.
        """
        for number, source in enumerate(self._inputs):
            if source.idle or long:
                self.apply(Mark(number, False, tuple(self.offsets), long))

    def apply(self, mark: Mark) -> None:
        """Make an input idle or active; a recovery repeats the noted marks at the noted offsets."""
        if mark.offsets != tuple(self.offsets):
            name, now = self.names[mark.input], tuple(self.offsets)
            msg = f"idle mark of {name} was made at offsets {mark.offsets}, not at {now}"
            raise ValueError(msg)
        source = self._inputs[mark.input]
        source.idle, source.awaited = mark.idle, mark.awaited
        self.marks.append(mark)
        self._advance()

    def held(self, input: int) -> bool:
        """Whether this input is too far ahead of the others to be read on (``align_ms``)."""
        return self._inputs[input].watermark > self.frontier + self.config.align_ms

    def _arrive(self, input: int, source: Input, serial: int, event: Event) -> None:
        at_ms = event.at_ms
        kind = _KIND_OF[type(event)]
        if source.see(event.user_id, at_ms, self.config.lateness_ms):
            self._advance()
        event_id = event.event_id
        if event_id is not None:
            event_id = f"{kind}:{event_id}"
            if event_id in self._ids[input]:
                self.fates[kind]["duplicate"] += 1
                return
        if at_ms < source.watermark or at_ms < self.frontier:
            self.fates[kind]["late"] += 1
            return
        if event_id is not None:
            self._remember(input, source.watermark, event_id, at_ms)
        step = step_of(input, serial, event, self.config.clock_skew_ms)
        believed_ms = source.watermark + self.config.max_ahead_ms
        if at_ms <= believed_ms or not source.watermark:
            heapq.heappush(self._steps, step)
        else:
            self._wait_ahead(self._ahead[input], at_ms, step, believed_ms)

    def _remember(self, input: int, watermark: int, event_id: str, at_ms: int) -> None:
        ids = self._ids[input]
        while ids and (len(ids) >= self.config.max_remembered_ids or ids.oldest.until_ms < watermark):
            ids.pop_oldest()
        ids.add(KnownId(event_id, at_ms + self.config.conversion_window_ms))

    def _wait_ahead(self, ahead: Ahead, at_ms: int, step: Step, believed_ms: int) -> None:
        ahead.add(at_ms, step)
        most = self.config.max_ahead_events
        for believed in ahead.believe(believed_ms) if len(ahead) > most else ():
            heapq.heappush(self._steps, believed)
        refused = ahead.refuse_oldest() if len(ahead) > most else None
        if refused is not None:
            self._refuse(refused)

    def _refuse(self, step: Step) -> None:
        self.fates[_KIND_OF[type(step.event)]]["invalid"] += 1
        self.rejected.append(Rejected.ahead(step, self.config.max_ahead_ms))

    def _advance(self) -> None:
        self.frontier = max(self.frontier, frontier_of(self._inputs))

    # ---------------------------------------------------------------- what goes out

    def drain(self) -> list[tuple[int, Record]]:
        """Return ``(shard, record)`` for all that is due below the frontier, in the order of the keys, exactly once."""
        out: list[tuple[int, Record]] = []
        steps, frontier = self._steps, self.frontier
        for ahead in self._ahead:
            for step in ahead.due(frontier):
                heapq.heappush(steps, step)
        open_slates, open_clicks = self._open.queue, self._clicks.queue
        click_window = self.config.click_window_ms
        maturity = self.config.conversion_window_ms + self.config.clock_skew_ms
        while True:
            close_due = open_slates[0].shown_ms + click_window if open_slates else _NEVER
            mature_due = open_clicks[0].due_ms + maturity if open_clicks else _NEVER
            ends = close_due if close_due < mature_due else mature_due
            step = steps[0] if steps else _NO_STEP
            due = step.due_ms
            if due < ends or (due == ends and step.kind != GIVE_UP):
                if due >= frontier:
                    return out
                self._take(heapq.heappop(steps), out)
            elif ends >= frontier:
                return out
            elif close_due == ends:
                self._close(ends, out)
            else:
                self._mature(ends, out)

    def finish(self) -> list[tuple[int, Record]]:
        """End of the log: move the frontier just past the newest event and drain.

        What is further ahead than ``max_ahead_ms`` is refused. Slates whose window has not ended stay open.
        """
        watermark = max(source.watermark for source in self._inputs)
        limit = watermark + self.config.max_ahead_ms if watermark else _NEVER
        steps = [*self._steps, *(step for ahead in self._ahead for step in ahead.due(_NEVER))]
        self._steps = []
        for step in sorted(steps):
            if step.event is None or step.event.at_ms <= limit:
                self._steps.append(step)  # sorted, so a heap
            else:
                self._refuse(step)
        newest = max((step.event.at_ms for step in self._steps if step.event is not None), default=0)
        self.frontier = max(self.frontier, newest + 1)
        return self.drain()

    def _take(self, step: Step, out: list[tuple[int, Record]]) -> None:
        event = step.event
        if type(event) is Action:
            self.fates["action"]["joined"] += 1
            self._sessions.add(event.user_id, event.at_ms, event.item_id, event.kind)
        elif type(event) is Slate:
            self._show(event, out)
        elif type(event) is Click:
            self._click(step, event, out)
        elif type(event) is Order:
            self._order(step.due_ms, event, out)
        elif self._early.give_up(step.id, step.input, step.serial):
            self.fates["click"]["orphan"] += 1

    def _show(self, slate: Slate, out: list[tuple[int, Record]]) -> None:
        request = slate.request_id
        if request in self._open or request in self._closed:
            self.fates["impression"]["duplicate"] += 1
            return
        early = self._early.pop(request)
        if slate.bot:
            self.fates["impression"]["bot"] += 1
            self._forget(request, slate.at_ms, "bot")
            for _, _, click in early:
                self.fates["click"]["bot"] += 1
                self._sessions.forget(click.user_id, request)
            return
        self.fates["impression"]["joined"] += 1
        if slate.session is None:
            session = self._sessions.before(slate)
        else:
            session = [act for act in slate.session if act.at_ms < slate.at_ms]
            slate = msgspec.structs.replace(slate, session=None)
        shard = self.config.shard_of(slate)
        self._open.add(OpenSlate.of(slate, shard))
        out.append((shard, Shown(slate.at_ms, slate, session)))
        for input, serial, click in early:
            step = Step(slate.at_ms, CLICKED, request, click.item_id, input, serial, click)
            heapq.heappush(self._steps, step)
        if len(self._open) > self.config.max_open_slates:
            oldest = self._open.pop_oldest()
            self.dropped["slates"] += 1
            self._forget(oldest.request_id, oldest.shown_ms, "evicted")

    def _click(self, step: Step, click: Click, out: list[tuple[int, Record]]) -> None:
        request, item = click.request_id, click.item_id
        slate = self._open.get(request)
        waited = step.due_ms > click.at_ms
        fate = self._click_fate(click, slate)
        # A second click that waits may be the one that joins, when the first was too early; the session has it once.
        again = fate == "waits" and self._early.has(request, item)
        if fate in ("joined", "after_window", "orphan", "waits") and not waited and not again:
            self._sessions.add(click.user_id, click.at_ms, item, "click", request)
        if fate == "waits":
            self._wait(step, click)
            return
        self.fates["click"][fate] += 1
        if fate != "joined" or slate is None:
            return
        self._open.click(request, item)
        out.append((slate.shard, Clicked(step.due_ms, request, item)))
        if self._clicks.add(OpenClick(request, item, step.due_ms, click.at_ms, slate.shard, click.user_id)):
            self.dropped["clicks"] += 1

    def _click_fate(self, click: Click, slate: OpenSlate | None) -> str:
        if click.bot:
            return "bot"
        if slate is None:
            closed = self._closed.get(click.request_id)
            if closed is not None:
                return LATER_CLICKS[closed.fate]
            return "waits"
        request, item = click.request_id, click.item_id
        if self._open.clicked(request, item) or (request, item) in self._clicks:
            return "duplicate"
        if not slate.has(item):
            return "orphan"
        return "joined" if click.at_ms < slate.shown_ms + self.config.click_window_ms else "after_window"

    def _wait(self, step: Step, click: Click) -> None:
        if self._early.add(click.request_id, (step.input, step.serial, click)):
            self.fates["click"]["evicted"] += 1
        due = click.at_ms + self.config.clock_skew_ms
        heapq.heappush(self._steps, step._replace(due_ms=due, kind=GIVE_UP, event=None))

    def _order(self, due_ms: int, order: Order, out: list[tuple[int, Record]]) -> None:
        key = (order.order_id, order.item_id)
        if key in self._orders:
            self.fates["order"]["duplicate"] += 1
            return
        orders, horizon = self._orders, due_ms - self.config.conversion_window_ms
        while orders and (len(orders) >= self.config.max_remembered_ids or orders.oldest.due_ms < horizon):
            orders.pop_oldest()
        orders.add(KnownOrder(order.order_id, order.item_id, due_ms))
        request = self._clicks.credited(order)
        if request is None:
            self.fates["order"]["orphan"] += 1
            return
        self.fates["order"]["joined"] += 1
        shard = self._clicks.convert(request, order)
        out.append((shard, Converted(due_ms, order.order_id, order.item_id, request, order.value)))

    def _close(self, due_ms: int, out: list[tuple[int, Record]]) -> None:
        slate = self._open.pop_oldest()
        out.append((slate.shard, Closed(due_ms, slate.request_id)))
        self._forget(slate.request_id, slate.shown_ms, "after_window")

    def _mature(self, due_ms: int, out: list[tuple[int, Record]]) -> None:
        click = self._clicks.pop_oldest()
        converted, value = click.value is not None, click.value or 0.0
        out.append((click.shard, Matured(due_ms, click.request_id, click.item_id, converted, value)))

    def _forget(self, request: str, shown_ms: int, fate: str) -> None:
        """Keep only the id of a slate, and what becomes of its later clicks."""
        closed, horizon = self._closed, shown_ms - self.config.conversion_window_ms
        while closed and (len(closed) >= self.config.max_remembered_ids or closed.oldest.shown_ms < horizon):
            closed.pop_oldest()
        closed.add(ClosedSlate(request, shown_ms, LATER_CLICKS.index(fate)))

    # ---------------------------------------------------------------- what is known

    @property
    def offsets(self) -> list[int]:
        """The next offset of each input."""
        return [source.offset for source in self._inputs]

    def seek(self, offsets: Sequence[int]) -> None:
        """Say where inputs start that begin above 0; only before the first `push`."""
        for source, offset in zip(self._inputs, offsets, strict=True):
            source.offset = offset

    @property
    def watermarks(self) -> list[int]:
        """The watermark of each input in milliseconds; 0 before its fifth user."""
        return [source.watermark for source in self._inputs]

    @property
    def idle(self) -> list[bool]:
        """Which inputs are idle."""
        return [source.idle for source in self._inputs]

    @property
    def awaited(self) -> list[bool]:
        """Which inputs have given nothing since a silence ended; such a one is dry after ``lateness_ms`` of it."""
        return [source.awaited for source in self._inputs]

    @property
    def pending(self) -> int:
        """Events that wait for the frontier, or for their impression, and have no fate yet."""
        ahead = sum(len(ahead.steps) for ahead in self._ahead)
        return sum(step.event is not None for step in self._steps) + ahead + len(self._early)

    @property
    def open_slates(self) -> int:
        """Slates whose click window has not ended."""
        return len(self._open)

    @property
    def open_clicks(self) -> int:
        """Clicks whose conversion window has not ended."""
        return len(self._clicks)

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on, for `stream.state.codec.encode`.

        The lists are copies and nothing in them ever changes, so it may be encoded later; the same state gives the same
        bytes.
        """
        steps = [*self._steps, *(step for ahead in self._ahead for step in ahead.steps)]
        awaited = [number for number, source in enumerate(self._inputs) if source.awaited]
        return ({"awaited": awaited} if awaited else {}) | {
            "inputs": [(*each.state(), ahead.state()) for each, ahead in zip(self._inputs, self._ahead, strict=True)],
            "ids": [ids.state() for ids in self._ids],
            "frontier": self.frontier,
            "steps": packed_steps(steps),
            "open": self._open.state(),
            "closed": self._closed.state(),
            "clicks": self._clicks.state(),
            "orders": self._orders.state(),
            "waiting": self._early.pairs(),
            "sessions": self._sessions.state(),
            "fates": {kind: dict(fates) for kind, fates in self.fates.items()},
            "dropped": dict(self.dropped),
        }

    @classmethod
    def restore(
        cls, config: JoinConfig, inputs: Sequence[str], state: dict[str, Any], decode: Decode = one_event
    ) -> Joiner:
        """Return a joiner that goes on where `state` was taken, from what `stream.state.codec.decode` returned."""
        saved = msgspec.convert(state, JoinState)
        joiner = cls(config, inputs, decode)
        if len(saved.inputs) != len(joiner.names):
            had, names = len(saved.inputs), ", ".join(joiner.names)
            msg = f"the snapshot has {had} inputs, the configuration names {len(joiner.names)}: {names}"
            raise ValueError(msg)
        joiner._inputs = [Input.of(each[:4], n in saved.awaited) for n, each in enumerate(saved.inputs)]
        for known, ids in zip(joiner._ids, saved.ids, strict=True):
            known.restore(ids)
        joiner.frontier = saved.frontier
        apart: list[list[Step]] = [[] for _ in saved.inputs]
        waiting = [set(entries) for *_, entries in saved.inputs]
        for step in map(unpacked_step, saved.steps):
            ahead = step.event is not None and (step.event.at_ms, step.serial) in waiting[step.input]
            (apart[step.input] if ahead else joiner._steps).append(step)  # sorted, so a heap
        joiner._ahead = [Ahead(entries, steps) for (*_, entries), steps in zip(saved.inputs, apart, strict=True)]
        joiner._open.restore(saved.open)
        joiner._closed.restore(saved.closed)
        joiner._clicks.restore(saved.clicks)
        joiner._orders.restore(saved.orders)
        joiner._early = EarlyClicks(config.max_waiting_clicks, saved.waiting)
        joiner._sessions.restore(saved.sessions["users"], saved.sessions["acts"])
        for kind, fates in saved.fates.items():
            joiner.fates[kind] = Counter(fates)
        joiner.dropped = Counter(saved.dropped)
        return joiner
