"""The same work by the usual parts: a join in plain Python, features as strings, Vowpal Wabbit or river.

Written as one would who knows these tools: one pass over the log, dictionaries for state, each row built once. A slate
is predicted when it is shown and learned when its click window closes, with the features it was shown with. The
features are those that heft uses by default, by the same definitions: each side pays for building its own.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

CLICK_WINDOW_MS = 600_000
SESSION_MS = 1_800_000
HALF_LIFE_MS = 7 * 86_400_000
_WORD = re.compile(r"\w+")
_decode = msgspec.json.Decoder().decode

Row = list[str]


class Model(Protocol):
    """What a peer does with rows of feature names; every value is 1."""

    def prepare(self, row: Row) -> Any:
        """Return a row as the model wants it, built once, when it is shown."""

    def predict(self, rows: list[Any]) -> list[float]:
        """Return a probability for each row."""

    def learn(self, rows: list[Any], labels: list[int]) -> None:
        """Learn rows in their order."""


class VowpalWabbit:
    """One `--ftrl` model through the Python API, two calls a row: predict when shown, learn when the window closes."""

    def __init__(self) -> None:
        import vowpalwabbit

        self.vw = vowpalwabbit.Workspace(
            "--ftrl --ftrl_alpha 0.05 --ftrl_beta 1 --loss_function logistic --link logistic -b 20 --quiet"
        )

    def prepare(self, row: Row) -> str:
        """Return the features in VW's text format."""
        return "| " + " ".join(row)

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
    """river's logistic regression with FTRL-Proximal, features as dictionaries."""

    def __init__(self) -> None:
        from river import linear_model, optim

        self.model = linear_model.LogisticRegression(
            optim.FTRLProximal(alpha=0.05, beta=1.0, l1=0.0, l2=0.0), l2=0.0, intercept_lr=0.05
        )

    def prepare(self, row: Row) -> dict[str, float]:
        """Return the features as a dictionary."""
        return dict.fromkeys(row, 1.0)

    def predict(self, rows: list[dict[str, float]]) -> list[float]:
        """Return a probability for each row."""
        predict = self.model.predict_proba_one
        return [predict(row)[True] for row in rows]

    def learn(self, rows: list[dict[str, float]], labels: list[int]) -> None:
        """Learn rows in their order."""
        learn = self.model.learn_one
        for row, label in zip(rows, labels, strict=True):
            learn(row, bool(label))


MODELS: dict[str, Callable[[], Model]] = {"vw": VowpalWabbit, "river": River}


def _bucket(value: float) -> str:
    if value == 0:
        return "0"
    octave = math.floor(4 * math.log2(abs(value)))
    return str(octave) if value > 0 else f"-{octave}"


def _octave(value: float) -> int:
    return int(math.log2(1 + value)) if value > 0 else 0


def _clean(text: str) -> str:
    """VW's text format has its own meaning for spaces, colons and bars."""
    return text.translate(_FORBIDDEN)


_FORBIDDEN = str.maketrans({" ": "_", ":": "_", "|": "_", "\n": "_", "\t": "_"})


class Pipeline:
    """Join, features, history and one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.rows = 0
        self.positives = 0
        self.loss = 0.0
        # request -> [at, query, user, items, rows, predictions, labels]
        self.open: OrderedDict[str, list[Any]] = OrderedDict()
        self.acts: dict[str, deque[tuple[int, str, str]]] = defaultdict(deque)
        self.last_seen: OrderedDict[str, int] = OrderedDict()
        self.history: dict[Any, list[float]] = {}  # key -> time, shows, clicks

    def run(self, lines: Iterable[bytes]) -> None:
        """Take the lines of a log in order of arrival."""
        for line in lines:
            self.push(_decode(line))

    def push(self, event: dict[str, Any]) -> None:
        """Take one event."""
        at = event["at_ms"]
        while self.open:
            slate = next(iter(self.open.values()))
            if slate[0] + CLICK_WINDOW_MS > at:
                break
            self.open.popitem(last=False)
            self._close(slate)
        kind = event["type"]
        if kind == "impression":
            self._show(event, at)
        elif kind == "click":
            slate_or_none = self.open.get(event["request_id"])
            if slate_or_none is not None:
                place = slate_or_none[3].get(event["item_id"])
                if place is not None:
                    slate_or_none[6][place] = 1
            self._act(event["user_id"], event["item_id"], "click", at)
        elif kind == "action":
            self._act(event["user_id"], event["item_id"], event.get("kind", "action"), at)

    def _act(self, user: str, item: str, kind: str, at: int) -> None:
        self.acts[user].append((at, item, kind))
        self.last_seen[user] = at
        self.last_seen.move_to_end(user)
        while self.last_seen:
            oldest, seen = next(iter(self.last_seen.items()))
            if seen >= at - SESSION_MS:
                break
            del self.last_seen[oldest], self.acts[oldest]

    def _show(self, event: dict[str, Any], at: int) -> None:
        request = event["request_id"]
        if request in self.open:
            return
        rows = [self.model.prepare(row) for row in self._features(event, at)]
        items = {item["item_id"]: place for place, item in enumerate(event["items"])}
        self.open[request] = [
            at, event.get("query", "").lower(), event["user_id"], items, rows, self.model.predict(rows), [0] * len(rows)
        ]  # fmt: skip

    def _close(self, slate: list[Any]) -> None:
        at, query, user, items, rows, said, labels = slate
        self.model.learn(rows, labels)
        for item, place in items.items():
            label = labels[place]
            for key in (item, (query, item), (user, item), ("user", user)):
                past = self._past(key, at)
                past[1] += 1
                past[2] += label
            p = min(max(said[place], 1e-7), 1 - 1e-7)
            self.loss -= math.log(p if label else 1 - p)
        self.rows += len(rows)
        self.positives += sum(labels)

    def _past(self, key: Any, at: int) -> list[float]:
        past = self.history.get(key)
        if past is None:
            past = self.history[key] = [at, 0.0, 0.0]
            if len(self.history) > 400_000:
                del self.history[next(iter(self.history))]
        elif at > past[0]:
            keep = 0.5 ** ((at - past[0]) / HALF_LIFE_MS)
            past[0], past[1], past[2] = at, past[1] * keep, past[2] * keep
        return past

    def _rate(self, name: str, key: Any) -> str:
        past = self.history.get(key)
        return f"{name}=" if past is None else f"{name}={_bucket((past[2] + 0.4) / (past[1] + 10.0))}"

    def _features(self, event: dict[str, Any], at: int) -> list[Row]:
        user, query, items = event["user_id"], event.get("query", "").lower(), event["items"]
        given = event.get("session")
        if given is not None:
            acts = [(act["at_ms"], act["item_id"], act["kind"]) for act in given]
        else:
            acts = [act for act in self.acts.get(user, ()) if at - SESSION_MS <= act[0] < at]
        common = [
            f"surface={event.get('surface', '')}",
            f"session.size={_octave(len(acts))}",
            self._rate("user", ("user", user)),
        ]
        query_words = list(dict.fromkeys(_WORD.findall(query)))[:24]
        if query:
            common.append("query=" + _clean(query))
            common += ["q:" + word for word in query_words]
        for name, value in event.get("context", {}).items():
            common += _values("c." + name, value)
        if acts:
            common.append("session.last=" + _clean(acts[-1][2]))
        last_of: dict[str, tuple[int, str]] = {}
        kinds_of: dict[str, dict[str, int]] = {}
        order_of: dict[str, int] = {}
        for number, (when, item_id, kind) in enumerate(acts):
            last_of[item_id] = (when, kind)
            order_of[item_id] = number
            of_item = kinds_of.setdefault(item_id, {})
            of_item[kind] = of_item.get(kind, 0) + 1
        places = [item.get("position", place) for place, item in enumerate(items)]
        touched = max((place for place, item in enumerate(items) if item["item_id"] in order_of),
                      key=lambda place: order_of[items[place]["item_id"]], default=-1)  # fmt: skip
        ranks = _ranks(items)
        letters = _letters(query_words)
        rows = []
        for place, item in enumerate(items):
            item_id = item["item_id"]
            row = [*common, "item=" + _clean(item_id)]
            for name, value in item.get("features", {}).items():
                row += _values("i." + name, value)
            row += ranks[place]
            text = item.get("text", "")
            if text:
                text_words = list(dict.fromkeys(_WORD.findall(text.lower())))[:24]
                row += ["t_" + word for word in text_words]
                if query_words:
                    met = sum(word in text_words for word in query_words)
                    row.append(f"match={min(len(query_words), 8)}_{min(met, 8)}")
                    row.append(f"letters={10 * len(letters & _letters(text_words)) // len(letters)}")
            for kind, count in kinds_of.get(item_id, {}).items():
                row.append(f"kinds={_clean(kind)}_{_octave(count)}")
            if item_id in last_of:
                when, kind = last_of[item_id]
                row.append(f"since={_octave((at - when) / 1000)}")
                row.append(f"place={_clean(kind)}_{place == touched}")
            elif touched >= 0:
                row.append("place=other")
            elif acts:
                row.append("place=none")
            past = self.history.get(item_id)
            row.append(self._rate("item_past", item_id))
            row.append(f"shows={_octave(past[1]) if past else ''}")
            row.append(self._rate("query_item", (query, item_id)))
            row.append(self._rate("user_item", (user, item_id)))
            row.append(f"position={places[place]}")
            if touched >= 0:
                row.append(f"gap={places[place] - places[touched]}")
            rows.append(row)
        return rows


def _values(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"{name}={value}"]
    if isinstance(value, int | float):
        return [f"{name}={_bucket(value)}"]
    if isinstance(value, str):
        return [f"{name}={_clean(value)}"]
    if isinstance(value, list):
        return [f"{name}={_clean(each)}" for each in value]
    return []


def _ranks(items: list[dict[str, Any]]) -> list[list[str]]:
    """Of each number, the tenth of the slate's numbers of its name that are smaller."""
    numbers: dict[str, list[tuple[float, int]]] = {}
    for place, item in enumerate(items):
        for name, value in item.get("features", {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name, []).append((value, place))
    ranks: list[list[str]] = [[] for _ in items]
    for name, pairs in numbers.items():
        pairs.sort()
        smaller = 0
        for i, (value, place) in enumerate(pairs):
            if i and value > pairs[i - 1][0]:
                smaller = i
            ranks[place].append(f"r.{name}={0 if not smaller else 1 + 9 * smaller // len(pairs)}")
    return ranks


def _letters(words: list[str]) -> set[str]:
    return {f" {word} "[i : i + 3] for word in words for i in range(len(word))}
