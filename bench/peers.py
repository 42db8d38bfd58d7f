"""The same work by the usual parts: a join in plain Python, features as strings, Vowpal Wabbit or river.

Written as one would who knows these tools: one pass over the log, dictionaries for state, each row built once. A slate
is predicted when it is shown and learned when its click window closes, with the features it was shown with. The
features are heft's own list by the same definitions (`bench.fields`), crossed as suits each tool: by Vowpal Wabbit
itself between namespaces, by string for river.
"""

from __future__ import annotations

import string
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from math import log
from typing import Any, Protocol

import msgspec

from bench.fields import Act, Fields, Terms, terms_of

CLICK_WINDOW_MS = 600_000
SESSION_MS = 1_800_000
SESSION_ACTS = 200
MAX_AHEAD_MS = 3_600_000
_decode = msgspec.json.Decoder().decode


class Model(Protocol):
    """What a peer does with the rows of a slate."""

    def prepare(self, whole: Terms, rows: list[Terms]) -> list[Any]:
        """Return rows as the model wants them, built once, when they are shown."""

    def predict(self, rows: list[Any]) -> list[float]:
        """Return a probability for each row."""

    def learn(self, rows: list[Any], labels: list[int]) -> None:
        """Learn rows in their order."""


class VowpalWabbit:
    """One `--ftrl` model through the Python API: a namespace for each term, crosses as interactions of namespaces.

    Lines of text: keeping parsed examples until the window closes takes ten times as long (a million examples of VW
    are allocated and freed). ``alpha`` lies between what gave the best NE on trivago_day1 (.1) and on the shop (.05).
    """

    alpha, beta = 0.07, 1.0

    def __init__(self, features: Sequence[str]) -> None:
        import vowpalwabbit

        terms = terms_of(features)
        self.letters = dict(zip(terms, string.ascii_letters + string.digits, strict=False))
        crosses = [feature.split(" * ") for feature in features if " * " in feature]
        options = [f"--interactions {''.join(self.letters[term] for term in cross)}" for cross in crosses]
        options += [f"--ignore_linear {self.letters[term]}" for term in terms if term not in features]
        self.vw = vowpalwabbit.Workspace(
            f"--ftrl --ftrl_alpha {self.alpha} --ftrl_beta {self.beta} --loss_function logistic --link logistic "
            f"-b 20 --quiet {' '.join(options)}"
        )

    def prepare(self, whole: Terms, rows: list[Terms]) -> list[str]:
        """Return rows in VW's text format."""
        letters = self.letters
        start = "".join([f"|{letters[term]} {' '.join(values)} " for term, values in whole.items() if term in letters])
        return [
            start
            + "".join([f"|{letters[term]} {' '.join(values)} " for term, values in row.items() if term in letters])
            for row in rows
        ]

    def predict(self, rows: list[str]) -> list[float]:
        """Return a probability for each row."""
        predict = self.vw.predict
        return [predict(row) for row in rows]

    def learn(self, rows: list[str], labels: list[int]) -> None:
        """Learn rows in their order."""
        learn = self.vw.learn
        for row, label in zip(rows, labels, strict=True):
            learn(("1 " if label else "-1 ") + row)


class River:
    """river's logistic regression with FTRL-Proximal, features as dictionaries; learning rates as for VW."""

    alpha, beta = 0.07, 1.0

    def __init__(self, features: Sequence[str]) -> None:
        from river import linear_model, optim

        self.crosses = [(f"{number}:", feature.split(" * ")) for number, feature in enumerate(features)]
        self.model = linear_model.LogisticRegression(
            optim.FTRLProximal(alpha=self.alpha, beta=self.beta, l1=0.0, l2=0.0), l2=0.0, intercept_lr=0.05
        )

    def prepare(self, whole: Terms, rows: list[Terms]) -> list[dict[str, float]]:
        """Return rows as dictionaries of features; those of the slate alone are made once."""
        start = {name: 1.0 for cross in self.crosses for name in _crossed(cross, whole)}
        rest = [cross for cross in self.crosses if not all(term in whole for term in cross[1])]
        prepared = []
        for row in rows:
            known = {**whole, **row}
            prepared.append(start | {name: 1.0 for cross in rest for name in _crossed(cross, known)})
        return prepared

    def predict(self, rows: list[dict[str, float]]) -> list[float]:
        """Return a probability for each row."""
        predict: Callable[..., Any] = self.model.predict_proba_one
        return [predict(row)[True] for row in rows]

    def learn(self, rows: list[dict[str, float]], labels: list[int]) -> None:
        """Learn rows in their order."""
        learn: Callable[..., Any] = self.model.learn_one
        for row, label in zip(rows, labels, strict=True):
            learn(row, bool(label))


def _crossed(cross: tuple[str, list[str]], known: Terms) -> list[str]:
    """Return the names of a feature's values, one for each combination of the values of its terms."""
    name, terms = cross
    crossed = [name]
    for term in terms:
        values = known.get(term)
        if values is None:
            return []
        crossed = (
            [before + values[0] for before in crossed] if len(values) == 1 else
            [f"{before}{value}" for before in crossed for value in values]
        )  # fmt: skip
    return crossed


MODELS: dict[str, Callable[[Sequence[str]], Model]] = {"vw": VowpalWabbit, "river": River}


class _Slate:
    """A slate whose window has not ended, with what was said of its rows."""

    __slots__ = ("at", "items", "labels", "positions", "query", "rows", "said", "seen", "user")

    def __init__(self, event: dict[str, Any], rows: list[Any], said: list[float]) -> None:
        items = event["items"]
        self.at, self.user = event["at_ms"], event["user_id"]
        self.query = event.get("query", "").strip().lower()
        self.items = [item["item_id"] for item in items]
        self.positions = [item.get("position", place) for place, item in enumerate(items)]
        self.seen = [item.get("seen", True) for item in items]
        self.rows, self.said = rows, said
        self.labels = [0] * len(rows)


class Pipeline:
    """Join, features, history and one model."""

    def __init__(self, model: Model, features: Sequence[str]) -> None:
        self.model = model
        self.fields = Fields(features)
        self.rows = 0
        self.labels: list[int] = []
        self.said: list[float] = []
        self._now = 0
        self._open: OrderedDict[str, _Slate] = OrderedDict()
        self._acts: dict[str, deque[Act]] = defaultdict(lambda: deque(maxlen=SESSION_ACTS))
        self._last_seen: OrderedDict[str, int] = OrderedDict()

    def run(self, lines: Iterable[bytes]) -> None:
        """Take the lines of a log in order of arrival."""
        for line in lines:
            self.take(line)

    def take(self, line: bytes) -> None:
        """Take one event as it is on the wire."""
        self.push(_decode(line))

    def push(self, event: dict[str, Any]) -> None:
        """Take one event."""
        at = event["at_ms"]
        if self._now and at > self._now + MAX_AHEAD_MS:
            return
        self._now = max(self._now, at)
        while self._open:
            slate = next(iter(self._open.values()))
            if slate.at + CLICK_WINDOW_MS > self._now:
                break
            self._open.popitem(last=False)
            self._close(slate)
        if event.get("bot"):
            return
        kind = event["type"]
        if kind == "impression":
            self._show(event)
        elif kind == "click":
            shown = self._open.get(event["request_id"])
            if shown is not None and event["item_id"] in shown.items:
                shown.labels[shown.items.index(event["item_id"])] = 1
                self.fields.history.clicked(shown.at, shown.user, shown.query, event["item_id"])
            self._act(event["user_id"], event["item_id"], "click", at)
        elif kind == "action":
            self._act(event["user_id"], event["item_id"], event.get("kind", "action"), at)

    def _act(self, user: str, item: str, kind: str, at: int) -> None:
        self._acts[user].append((at, item, kind))
        self._last_seen[user] = at
        self._last_seen.move_to_end(user)
        while self._last_seen:
            oldest, seen = next(iter(self._last_seen.items()))
            if seen >= at - SESSION_MS:
                break
            del self._last_seen[oldest], self._acts[oldest]

    def _show(self, event: dict[str, Any]) -> None:
        request = event["request_id"]
        if request in self._open:
            return
        rows = self.model.prepare(*self.fields.shown(event, self.session(event)))
        self._open[request] = _Slate(event, rows, self.model.predict(rows))

    def session(self, event: dict[str, Any]) -> list[Act]:
        """Return what the visitor did before a slate."""
        given = event.get("session")
        if given is not None:
            return [(act["at_ms"], act["item_id"], act["kind"]) for act in given]
        at = event["at_ms"]
        return [act for act in self._acts.get(event["user_id"], ()) if at - SESSION_MS <= act[0] < at]

    def _close(self, slate: _Slate) -> None:
        rows = [row for row, seen in enumerate(slate.seen) if seen or slate.labels[row]]
        labels = [slate.labels[row] for row in rows]
        self.model.learn([slate.rows[row] for row in rows], labels)
        shown = [(slate.items[row], slate.positions[row], slate.labels[row]) for row in rows]
        self.fields.history.closed(slate.at, slate.user, slate.query, shown)
        self.rows += len(rows)
        self.labels += labels
        self.said += [slate.said[row] for row in rows]

    def quality(self) -> dict[str, float]:
        """Return AUC and normalised entropy over the second half of the rows, as they were predicted when shown."""
        half = len(self.labels) // 2
        labels, said = self.labels[half:], self.said[half:]
        rate = sum(labels) / len(labels)
        loss = -sum(log(max(p if label else 1.0 - p, 1e-7)) for label, p in zip(labels, said, strict=True)) / len(
            labels
        )
        entropy = -(rate * log(rate) + (1.0 - rate) * log(1.0 - rate))
        return {"auc": auc(labels, said), "ne": loss / entropy}


def auc(labels: Sequence[int], said: Sequence[float]) -> float:
    """Return the probability that a clicked row was ranked above one that was not; ties count half.

    Examples
    --------
    >>> auc([1, 0, 0, 1], [0.9, 0.1, 0.9, 0.8])
    0.625
    """
    order = sorted(range(len(said)), key=said.__getitem__)
    ranks, place = 0.0, 0
    while place < len(order):
        end = place
        while end < len(order) and said[order[end]] == said[order[place]]:
            end += 1
        ranks += sum(labels[order[i]] for i in range(place, end)) * (place + 1 + end) / 2
        place = end
    positives = sum(labels)
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
