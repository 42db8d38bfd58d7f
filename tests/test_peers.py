"""The peers of the benchmark see of a slate exactly what heft sees."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from bench.fields import Act, Fields
from bench.peers import River, auc
from heft.models.evaluate import formulas
from heft.models.features.config import DEFAULT_FEATURES, FeatureConfig
from heft.models.features.featurizer import Featurizer
from heft.models.records import Act as SessionAct
from heft.models.records import Slate
from heft.stream.events import wire
from heft.stream.shop.traffic import Shop


def slates(many: int) -> Iterator[tuple[Slate, list[Act]]]:
    """Slates of the simulated shop, each with what its visitor did before."""
    acts: dict[str, list[Act]] = {}
    for arrival in Shop(seed=3).arrivals(many):
        event = arrival.event
        if isinstance(event, Slate):
            yield event, sorted(act for act in acts.get(event.user_id, ()) if act[0] < event.at_ms)
        elif isinstance(event, wire.Click):
            acts.setdefault(event.user_id, []).append((event.at_ms, event.item_id, "click"))
        elif isinstance(event, wire.Action):
            acts.setdefault(event.user_id, []).append((event.at_ms, event.item_id, event.kind))


def test_each_row_has_as_many_features_as_slots_and_equal_ones_are_equal_in_both() -> None:
    ours, theirs, names_of = Featurizer(FeatureConfig()), Fields(DEFAULT_FEATURES), River(DEFAULT_FEATURES)
    label = np.random.default_rng(5)
    slots: set[int] = set()
    names: set[str] = set()
    for slate, acts in slates(300):
        vectors = ours.shown(slate, [SessionAct(item, kind, at) for at, item, kind in acts])
        plain = msgspec.json.decode(msgspec.json.encode(slate))
        rows = names_of.prepare(*theirs.shown(plain, acts))
        for row, known in enumerate(rows):
            of_row = vectors.slots[vectors.indptr[3 * row] : vectors.indptr[3 * row + 2]]
            assert len(of_row) == len(known), (slate.request_id, row, sorted(known))
            slots.update(of_row.tolist())
            names.update(known)
        labels = (label.random(len(rows)) < 0.2).astype(np.uint8)
        ours.closed(vectors, labels)
        query = slate.query.strip().lower()
        for row in labels.nonzero()[0].tolist():
            ours.clicked(vectors, row)
            theirs.history.clicked(slate.at_ms, slate.user_id, query, slate.items[row].item_id)
        shown = [(item.item_id, item.position or 0, int(labels[row])) for row, item in enumerate(slate.items)]
        theirs.history.closed(slate.at_ms, slate.user_id, query, shown)
    # Slots have 32 bits: of this many, one pair in a thousand runs of this test would meet by chance.
    assert len(names) == len(slots) > 10_000


def test_a_field_that_the_peers_lack_is_named() -> None:
    with pytest.raises(ValueError, match=r"no field 'item_past.ever'"):
        Fields(["item_past.ever"])


def test_the_peers_auc_is_the_exact_one() -> None:
    chance = np.random.default_rng(1)
    labels, said = chance.integers(0, 2, 500).astype(np.uint8), chance.integers(0, 50, 500) / 50
    assert auc(labels.tolist(), said.tolist()) == pytest.approx(formulas.auc(labels, said), abs=1e-12)
