"""What fine-tuning knows of human judgements, beside what is cheaper: crowdflower_train, folds over queries.

Every row is predicted by a model that saw none of its query's rows. Intervals are bootstrapped over queries: the rows
of one are not independent of each other, and one split proves little.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heft.models.teacher.data.examples import Examples, Split, examples_of, take
from heft.models.teacher.settings import OF_FROZEN
from heft.models.teacher.train import measure
from heft.stream.config.settings import environment

FOLDS = 5
EPOCHS = 2
SOURCE = "crowdflower_train.csv.gz"
_RELEVANT = 4.0
_BUCKETS = 2**18
_RESAMPLES = 2_000

Floats = NDArray[np.float64]
Way = Callable[[Examples, Examples], Floats]
"""From the examples to train on, and those to predict, to their logits."""


def compare(folds: int = FOLDS, epochs: int = EPOCHS) -> dict[str, dict[str, Any]]:
    """Predict every judgement by every way, print AUC and NE with their intervals, and return them."""
    data = environment("HEFT_TEST_DATA")
    if data is None or not (Path(data) / SOURCE).exists():
        print(f"  HEFT_TEST_DATA names no folder with {SOURCE}")
        return {}
    examples = judgements(Path(data) / SOURCE)
    of_fold = np.array([int(md5(q.encode(), usedforsecurity=False).hexdigest(), 16) % folds for q, _ in examples.pairs])
    ways: dict[str, Way] = {
        "TF-IDF": tf_idf,
        "hashed logistic regression": hashed,
        "MiniLM, cosine": cosine,
        "its words' vectors (--static)": lambda train, test: fine_tuned(train, test, static=True, **OF_FROZEN),
        "MiniLM, --frozen": lambda train, test: fine_tuned(train, test, frozen=True, **OF_FROZEN),
        "MiniLM, fine-tuned": lambda train, test: fine_tuned(train, test, epochs=epochs),
    }
    found: dict[str, Floats] = {}
    for name, way in ways.items():
        found[name] = np.zeros(len(examples))
        started = perf_counter()
        for fold in range(folds):
            train, test = np.flatnonzero(of_fold != fold), np.flatnonzero(of_fold == fold)
            found[name][test] = way(take(examples, train), take(examples, test))
        print(f"  {name}: {perf_counter() - started:,.0f} s", flush=True)
    return report(examples, found)


def judgements(source: Path) -> Examples:
    """Return titles and whether people found them wholly relevant."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = [(row["query"], row["product_title"]) for row in rows]
    trials, positives = np.zeros((len(rows), 3)), np.zeros((len(rows), 3))
    trials[:, 2] = 1.0
    positives[:, 2] = [float(row["median_relevance"]) == _RELEVANT for row in rows]
    return examples_of(pairs, trials, positives, np.zeros(len(rows)))


def tf_idf(train: Examples, test: Examples) -> Floats:
    """The cosine of the words, rare ones counting more, scaled to a logit."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True).fit([title for _, title in train.pairs])

    def similarity(part: Examples) -> Floats:
        query, title = (words.transform([pair[side] for pair in part.pairs]) for side in range(2))
        return np.asarray(query.multiply(title).sum(1)).ravel()

    return _scaled(similarity(train), train, similarity(test))


def hashed(train: Examples, test: Examples) -> Floats:
    """A linear model of the title's words and of how many of the query's it has."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    columns = HashingVectorizer(analyzer=_features, n_features=_BUCKETS, alternate_sign=False)
    model = LogisticRegression(C=1.0, max_iter=1_000)
    model.fit(columns.transform(train.pairs), train.positives[:, 2])
    return np.asarray(model.decision_function(columns.transform(test.pairs)))


def _features(pair: tuple[str, str]) -> list[str]:
    query, title = (re.findall(r"[a-z0-9]+", text.lower()) for text in pair)
    share = round(4 * sum(word in title for word in query) / max(1, len(query)))
    return [
        f"share {share}",
        f"share {share} of {len(query)}",
        f"first {bool(query) and query[0] in title}",
        f"last {bool(query) and query[-1] in title}",
        f"whole {' '.join(query) in ' '.join(title)}",
        f"long {len(title) // 3}",
        *(f"title {word}" for word in title),
    ]


def cosine(train: Examples, test: Examples) -> Floats:
    """The cosine of the two texts' vectors as the base has them, scaled to a logit."""
    from heft.models.teacher.network.bases import load_base, pooling_of, resolve_base
    from heft.models.teacher.network.model import Model
    from heft.models.teacher.train.starting_point import cosines

    encoder, tokenizer = load_base(resolve_base("minilm"), list, 128, 0.0)
    model = Model(encoder, ["relevance"], pooling_of(encoder))
    return _scaled(cosines(model, tokenizer, train, 128), train, cosines(model, tokenizer, test, 128))


def fine_tuned(train: Examples, test: Examples, **how: Any) -> Floats:
    """What `heft teacher finetune --base minilm` learns; no query is held out to stop early or to calibrate."""
    from heft.models.teacher.network.encoded import encode
    from heft.models.teacher.network.model import predict
    from heft.models.teacher.network.teacher_folder import load_teacher
    from heft.models.teacher.settings import FinetuneSettings
    from heft.models.teacher.train.finetune import finetune, learning_rate_of

    nothing = take(train, np.zeros(0, np.int64))
    rate = learning_rate_of("minilm", 0, "static" in how or "frozen" in how)
    settings = FinetuneSettings(learning_rate=rate, device="cpu", **how)
    with TemporaryDirectory() as folder:
        finetune(Split(train, nothing, test, None, None, None), Path(folder), settings, [])
        model, tokenizer, state = load_teacher(Path(folder), "cpu")
    return predict(model, encode(tokenizer, test.pairs, state.max_tokens, state.pooling))[:, 0].astype(np.float64)


def _scaled(known: Floats, train: Examples, wanted: Floats) -> Floats:
    scale, shift = measure.fit_platt(known, np.zeros(len(train)), train.trials[:, 2], train.positives[:, 2])
    return scale * wanted + shift


def report(examples: Examples, found: dict[str, Floats]) -> dict[str, dict[str, Any]]:
    """Print and return AUC and NE of each way, and by how much the last is better, with 95 % intervals."""
    rng = np.random.default_rng(0)
    rows_of = [np.flatnonzero(examples.groups == group) for group in range(int(examples.groups.max()) + 1)]
    draws = [np.concatenate([rows_of[n] for n in rng.integers(0, len(rows_of), len(rows_of))])
             for _ in range(_RESAMPLES)]  # fmt: skip
    all_rows = np.arange(len(examples))
    measured = {name: [_quality(z, examples, rows) for rows in (all_rows, *draws)] for name, z in found.items()}
    out: dict[str, dict[str, Any]] = {}
    last = np.array(measured[list(found)[-1]])
    print(f"  {len(examples):,} judgements of {len(rows_of)} queries; [95 % over queries]; the last less each")
    for name, values in measured.items():
        each = np.array(values)
        out[name] = {}
        line = f"  {name:28}"
        for column, metric in enumerate(("auc", "ne")):
            low, high = np.quantile(each[1:, column], (0.025, 0.975))
            difference = last[:, column] - each[:, column]
            least, most = np.quantile(difference[1:], (0.025, 0.975))
            out[name][metric] = [float(x) for x in (each[0, column], low, high, difference[0], least, most)]
            line += f"  {metric} {each[0, column]:.4f} [{low:.4f}, {high:.4f}]"
            if name != list(found)[-1]:
                line += f" {difference[0]:+.4f} [{least:+.4f}, {most:+.4f}]"
        print(line, flush=True)
    return out


def _quality(z: Floats, examples: Examples, rows: NDArray[np.int64]) -> tuple[float, float]:
    values = measure.metrics(z[rows], examples.trials[rows, 2], examples.positives[rows, 2])
    return values["auc"], values["ne"]
