"""The fields of `models.features` in plain Python, as readable as they come: what a slate's features are.

Of the code under test it knows nothing but the names of fields; every count of the past is a sum over all
that happened.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from math import floor, log2
from typing import Any

from heft.models.records import Act, Item, Slate, Value

Named = tuple[tuple[str, ...], tuple[Any, ...]]
"""A feature as people read it: its fields, and a value of each."""

OF_POSITION = {"position", "position.log", "session.gap", "session.gap.log"}


def bucket(x: float) -> tuple[int, int]:
    return (0, 0) if x == 0 else (1 if x > 0 else -1, floor(4 * log2(abs(x))))


def octave(x: float) -> int:
    return floor(log2(1 + x))


class Reference:
    """The definitions of `models.features.config`, one after the other, over everything that ever happened."""

    def __init__(self, declared: Sequence[str], half_life_ms: int) -> None:
        self.half_life_ms = half_life_ms
        self.declared = declared
        self.names: list[str] = []  # context and item fields seen so far
        self.closed: list[tuple[int, dict[str, Any], float, int]] = []  # when, of whom, expected clicks, label
        self.clicks: list[tuple[int, dict[str, Any]]] = []
        self.places: list[tuple[int, int, int]] = []  # when, position, label

    def shown(self, slate: Slate, session: list[Act]) -> list[tuple[set[Named], set[Named], set[Named]]]:
        """The features of each row: without position, from the position shown, from position 0."""
        at = slate.at_ms
        query = slate.query.strip().lower()
        whole: dict[str, list[Any]] = {"user_id": [slate.user_id], "slate.size": [bucket(len(slate.items))]}
        whole["surface"] = [slate.surface] if slate.surface else []
        whole["query"] = [query] if query else []
        whole["query.words"] = self._words(query)
        self._put(whole, "context.", slate.context, numbers=(".log",))
        whole |= self._past("user", at, user=slate.user_id)

        ids = [item.item_id for item in slate.items]
        last = {act.item_id: number for number, act in enumerate(session)}
        here = sorted((item for item in ids if item in last), key=lambda item: -last[item])
        whole["session.size"] = [octave(len(session))]
        if session:
            whole["session.last"] = [(session[-1].kind, session[-1].item_id in ids)]
            whole["session.met"] = [min(len(here), 5)]
            whole["session.ago"] = [octave((at - session[-1].at_ms) / 1000)]

        positions = [row if item.position is None else item.position for row, item in enumerate(slate.items)]
        out = []
        for row, item in enumerate(slate.items):
            of_row = whole | {"item_id": [item.item_id], "text.words": self._words(item.text)}
            self._put(of_row, "item.", item.features, numbers=(".log", ".rank", ".ratio", ".step"))
            for name, value in item.features.items():
                if self._is_number(value):
                    self._compare(of_row, name, value, slate.items, here)
            self._match(of_row, query, item.text)
            mine = [act for act in session if act.item_id == item.item_id]
            if mine:
                kinds = Counter(act.kind for act in mine)
                of_row["session.kinds"] = [(kind, octave(n)) for kind, n in kinds.items()]
                of_row["session.since"] = [octave((at - mine[-1].at_ms) / 1000)]
                of_row["session.place"] = [(mine[-1].kind, min(here.index(item.item_id), 2))]
            elif session:
                of_row["session.place"] = ["other" if here else "none"]
            of_row |= self._past("item_past", at, item=item.item_id)
            shows = [self._left(when, at) for when, of, _, _ in self.closed if of["item"] == item.item_id]
            of_row["item_past.new"] = ["new"] if sum(shows) < 20 else []
            of_row |= self._past("query_item", at, query=query, item=item.item_id)
            of_row |= self._past("user_item", at, user=slate.user_id, item=item.item_id)
            place: dict[str, list[Any]] = {"position": [positions[row]], "position.log": [octave(2 * positions[row])]}
            if here:
                gap = positions[row] - positions[ids.index(here[0])]
                place |= {"session.gap": [gap], "session.gap.log": [(octave(2 * abs(gap)), gap < 0)]}
            at_zero: dict[str, list[Any]] = {"position": [0], "position.log": [0]}
            out.append(
                (
                    self._features(of_row, of_position=False),
                    self._features(of_row | place, of_position=True),
                    self._features(of_row | at_zero, of_position=True),
                )
            )
        return out

    def clicked(self, slate: Slate, row: int) -> None:
        whom = {"user": slate.user_id, "query": slate.query.strip().lower(), "item": slate.items[row].item_id}
        self.clicks.append((slate.at_ms, whom))

    def close(self, slate: Slate, labels: Sequence[int]) -> None:
        """Every impression counts against the click rate that its position had before this slate."""
        before = list(self.places)
        for row, (item, label) in enumerate(zip(slate.items, labels, strict=True)):
            position = row if item.position is None else item.position
            left = [(self._left(when, slate.at_ms), y) for when, place, y in before if place == position]
            expected = (sum(w * y for w, y in left) + 0.05 * 20) / (sum(w for w, _ in left) + 20)
            whom = {"user": slate.user_id, "query": slate.query.strip().lower(), "item": item.item_id}
            self.closed.append((slate.at_ms, whom, expected, label))
            self.places.append((slate.at_ms, position, label))

    def _past(self, name: str, at: int, **whom: str) -> dict[str, list[Any]]:
        past: dict[str, list[Any]] = {}
        mine = [(self._left(when, at), expected, label) for when, of, expected, label in self.closed if of | whom == of]
        if mine:
            clicks, expected = sum(w * y for w, _, y in mine), sum(w * e for w, e, _ in mine)
            past[f"{name}.rate"] = [floor(3 * log2((clicks + 1) / (expected + 1)))]
            past[f"{name}.count"] = [(octave(2 * clicks), octave(sum(w for w, _, _ in mine)))]
        clicked = [when for when, of in self.clicks if of | whom == of]
        if clicked:
            past[f"{name}.since"] = [octave((at - max(clicked)) / 1000)]
        return past

    def _left(self, when: int, at: int) -> float:
        return float(0.5 ** ((at - when) / self.half_life_ms))

    @staticmethod
    def _words(text: str) -> list[str]:
        return list(dict.fromkeys(re.findall(r"\w+", text.lower())))[:24]

    @staticmethod
    def _is_number(value: Value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def _put(self, into: dict[str, list[Any]], prefix: str, named: dict[str, Value], numbers: Sequence[str]) -> None:
        for name, value in named.items():
            full = prefix + name
            if full not in self.names:
                self.names += [full, *(full + suffix for suffix in numbers)]
            if isinstance(value, bool):
                into[full] = ["true" if value else "false"]
            elif isinstance(value, int | float):
                into[full + ".log"] = [bucket(value)]
            elif isinstance(value, str):
                into[full] = [value]
            elif value is not None:
                into[full] = value[:32]

    def _compare(self, into: dict[str, list[Any]], name: str, value: Any, items: list[Item], here: list[str]) -> None:
        of_slate: list[Any] = sorted(i.features[name] for i in items if self._is_number(i.features.get(name)))
        smaller = sum(other < value for other in of_slate)
        median = of_slate[len(of_slate) // 2]
        into[f"item.{name}.rank"] = [1 + 9 * smaller // len(of_slate) if smaller else 0]
        if value > 0 and median > 0:
            into[f"item.{name}.ratio"] = [bucket(value / median)]
        touched: Any = next((i.features.get(name) for i in items if here and i.item_id == here[0]), None)
        if value > 0 and self._is_number(touched) and touched > 0:
            into[f"item.{name}.step"] = [bucket(value / touched)]

    def _match(self, into: dict[str, list[Any]], query: str, text: str) -> None:
        asked, found = self._words(query), self._words(text)
        if asked and found:
            into["match"] = [(min(len(asked), 8), min(len({*asked} & {*found}), 8))]
            triples, others = ({f" {w} "[i : i + 3] for w in each for i in range(len(w))} for each in (asked, found))
            into["match.letters"] = [10 * len(triples & others) // len(triples)]

    def _features(self, values: dict[str, list[Any]], of_position: bool) -> set[Named]:
        found: set[Named] = set()
        for declared in self.declared:
            for chosen in product(*(self._meant(term) for term in declared.split(" * "))):
                feature = tuple(sorted(chosen))
                if len({*feature}) == len(feature) and bool(OF_POSITION & {*feature}) is of_position:
                    found |= {(feature, each) for each in product(*(values.get(field, []) for field in feature))}
        return found

    def _meant(self, term: str) -> list[str]:
        prefix, star, suffix = term.partition("*")
        if not star:
            return [term, term + ".log"] if term.startswith(("context.", "item.")) else [term]
        endings = (suffix,) if suffix else ("",)
        names = [name for name in self.names if name.startswith(prefix) and name.endswith(endings)]
        return names if suffix else [name for name in names if not name.endswith((".log", ".rank", ".ratio", ".step"))]
