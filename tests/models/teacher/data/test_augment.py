"""Copies of training pairs in other words: they say the same of the labels."""

from __future__ import annotations

import numpy as np
import pytest

from heft.models.teacher.data.augment import augment, learn_synonyms
from heft.models.teacher.data.examples import Examples, examples_of

PAIRS = [
    ("red couch", "Sofa A"),
    ("red sofa", "Sofa A"),
    ("blue couch", "Sofa B"),
    ("blue sofa", "Sofa B"),
    ("green couch", "Sofa C"),
    ("green lamp", "Sofa C"),
    ("wooden chair", "Chair D"),
    ("", "Chair D"),
]


def examples(clicks: int = 1) -> Examples:
    trials = np.tile([10.0, clicks, 0.0], (len(PAIRS), 1))
    positives = np.tile([float(clicks), 0.0, 0.0], (len(PAIRS), 1))
    return examples_of(PAIRS, trials, positives, np.linspace(-1, 1, len(PAIRS)))


def test_words_that_lead_to_the_same_products_stand_for_each_other() -> None:
    # Couch and sofa on two products; couch and lamp on one, which may be chance.
    assert learn_synonyms(examples()) == {"couch": ["sofa"], "sofa": ["couch"]}
    assert learn_synonyms(examples(clicks=0)) == {}


def test_a_copy_shares_the_labels_of_its_pair() -> None:
    whole = examples()
    more = augment(whole, 0.0, 1.0, seed=3)
    copies = more.pairs[len(whole) :]
    assert ("red sofa", "Sofa A") in copies
    assert ("green sofa", "Sofa C") in copies
    assert len(copies) == 5  # of the queries with a word that another stands for
    assert more.trials.sum(0) == pytest.approx(whole.trials.sum(0))
    assert more.positives.sum(0) == pytest.approx(whole.positives.sum(0))
    assert more.trials[0].tolist() == [5.0, 0.5, 0.0]
    assert more.trials[6].tolist() == [10.0, 1.0, 0.0]
    assert more.offset[len(whole)] == whole.offset[0]


def test_words_are_left_out_and_one_always_stays() -> None:
    more = augment(examples(), 0.99, 0.0, seed=3)
    copies = more.pairs[len(PAIRS) :]
    assert len(copies) == len(PAIRS)
    assert all(len(item.split()) == 1 for _, item in copies)
    assert {query for query, _ in copies} <= {"", *(word for query, _ in PAIRS for word in query.split())}


def test_nothing_is_added_unless_asked_and_a_seed_gives_the_same_copies() -> None:
    assert augment(examples(), 0.0, 0.0, seed=3).digest() == examples().digest()
    assert augment(examples(), 0.3, 0.5, seed=3).digest() == augment(examples(), 0.3, 0.5, seed=3).digest()
    assert augment(examples(), 0.3, 0.5, seed=3).digest() != augment(examples(), 0.3, 0.5, seed=4).digest()


def test_a_copy_begins_with_its_texts_in_other_words() -> None:
    more = augment(examples(), 0.0, 0.0, seed=3, reworded={"red couch": "settee of red", "Sofa A": "A sofa"})
    assert more.pairs[len(PAIRS) :] == [("settee of red", "A sofa"), ("red sofa", "A sofa")]
