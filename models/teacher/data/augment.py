"""More texts than the log has: copies of the training pairs with words left out or replaced.

A copy takes half of the labels of its original, so that the rates of the log stay as they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from heft.models.teacher.data.examples import Examples, Pairs, examples_of

_MOST_QUERIES = 50  # queries of one item that are compared with each other
_FEWEST_ITEMS = 2  # two words are synonyms if they replaced each other on so many items: one may be chance

Synonyms = dict[str, list[str]]


def augment(
    examples: Examples, word_dropout: float, synonyms: float, seed: int, reworded: Mapping[str, str] | None = None
) -> Examples:
    """Return the examples, followed by the copies that differ from their originals.

    Parameters
    ----------
    examples
        The training part.
    word_dropout
        Probability in [0, 1) of each word to be left out; at least one word of a text stays.
    synonyms
        Probability in [0, 1] of a query's word to be replaced by one that leads to the same products.
    seed
        Of the random choices.
    reworded
        From a text to the same in other words, as translating it and back gives; a copy begins with these.
    """
    if not word_dropout and not synonyms and not reworded:
        return examples
    rng = np.random.default_rng((seed, 1))
    known = learn_synonyms(examples) if synonyms else {}
    copies: Pairs = []
    reworded = reworded or {}
    for query, item in ((reworded.get(q, q), reworded.get(t, t)) for q, t in examples.pairs):
        words = [_other(word, known, synonyms, rng) for word in query.split()]
        copies.append((_thinned(words, word_dropout, rng), _thinned(item.split(), word_dropout, rng)))
    rows = np.array([n for n, pair in enumerate(copies) if pair != examples.pairs[n]], np.int64)
    share = np.ones((len(examples), 1))
    share[rows] = 0.5
    return examples_of(
        examples.pairs + [copies[n] for n in rows],
        np.concatenate([examples.trials * share, 0.5 * examples.trials[rows]]),
        np.concatenate([examples.positives * share, 0.5 * examples.positives[rows]]),
        np.concatenate([examples.offset, examples.offset[rows]]),
    )


def learn_synonyms(examples: Examples) -> Synonyms:
    """Return words that replace each other in queries: queries that differ in one word led to clicks on one item."""
    queries: defaultdict[str, list[str]] = defaultdict(list)
    for (query, item), clicks in zip(examples.pairs, examples.positives[:, 0], strict=True):
        if clicks and query:
            queries[item].append(query)
    counts: Counter[tuple[str, str]] = Counter()
    for of_item in queries.values():
        found = set()
        for one, two in combinations(dict.fromkeys(of_item[:_MOST_QUERIES]), 2):
            a, b = one.split(), two.split()
            differing = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
            if len(a) == len(b) and len(differing) == 1:
                found.add(tuple(sorted(differing[0])))
        counts.update(found)  # type: ignore[arg-type]
    synonyms: Synonyms = {}
    for (x, y), items in sorted(counts.items()):
        if items >= _FEWEST_ITEMS:
            synonyms.setdefault(x, []).append(y)
            synonyms.setdefault(y, []).append(x)
    return synonyms


def _other(word: str, known: Synonyms, probability: float, rng: np.random.Generator) -> str:
    if word not in known or rng.random() >= probability:
        return word
    return known[word][int(rng.integers(len(known[word])))]


def _thinned(words: list[str], probability: float, rng: np.random.Generator) -> str:
    if not words or not probability:
        return " ".join(words)
    draws = rng.random(len(words))
    draws[int(rng.integers(len(words)))] = 1.0
    return " ".join(word for word, draw in zip(words, draws, strict=True) if draw >= probability)
