"""Human judgements: a file of grades becomes examples, which are split by query."""

from __future__ import annotations

import csv
import gzip
import io
import math
from hashlib import md5
from pathlib import Path

import numpy as np

from heft.models.teacher.data.examples import FEWEST_QUERIES, HEADS, DataError, Examples, Split, examples_of, take


def read_relevance(path: Path, low: float | None = None, high: float | None = None) -> tuple[Examples, float, float]:
    """Read a file of human judgements.

    Parameters
    ----------
    path
        CSV, plain or ``.gz``, with the columns ``query``, ``text`` and ``grade``; further columns are ignored.
    low, high
        Grades that mean a probability of 0 and 1; what lies between is mapped linearly, what lies beyond is clipped.
        By default the lowest and the highest grade of the file.

    Returns
    -------
    Examples, and the grades that mean 0 and 1. Judgements of the same pair are one example.

    Raises
    ------
    DataError
        If a column is missing, a grade is no number, or all grades are the same.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw:
        reader = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
        missing = {"query", "text", "grade"} - set(reader.fieldnames or ())
        if missing:
            msg = f"{path}: no column {', '.join(sorted(missing))}; expected query, text and grade"
            raise DataError(msg)
        at: dict[tuple[str, str], int] = {}
        rows: list[tuple[int, float]] = []
        for row in reader:
            try:
                grade = float(row["grade"])
            except (TypeError, ValueError):
                grade = math.nan
            if not math.isfinite(grade):
                msg = f"{path}, line {reader.line_num}: the grade {row['grade']!r} is no number"
                raise DataError(msg)
            pair = (" ".join(row["query"].split()), " ".join((row["text"] or "").split()))
            rows.append((at.setdefault(pair, len(at)), grade))
    grades = [grade for _, grade in rows] or [0.0]
    low, high = min(grades) if low is None else low, max(grades) if high is None else high
    if not low < high:
        msg = f"{path}: grades from {low:g} to {high:g} cannot be mapped to probabilities from 0 to 1"
        raise DataError(msg)
    trials, positives = np.zeros((len(at), len(HEADS))), np.zeros((len(at), len(HEADS)))
    for n, grade in rows:
        trials[n, 2] += 1.0
        positives[n, 2] += min(max((grade - low) / (high - low), 0.0), 1.0)
    return examples_of(list(at), trials, positives, np.zeros(len(at))), low, high


def split_by_query(examples: Examples) -> Split:
    """Split judgements by query: those with ``md5(query) % 5 == 0`` to measure with, an eighth of the rest to validate.

    A teacher has to generalise to new queries: on queries that it was trained on, it would look too good. With fewer
    than `FEWEST_QUERIES` to validate on, chance would decide when to stop: then these are trained on too.

    Raises
    ------
    DataError
        If all queries are kept to measure with.
    """
    numbers = np.array([_md5(query) % 40 for query, _ in examples.pairs], np.int64)
    test = numbers % 5 == 0
    validation = ~test & (numbers // 5 == 0)
    if len(np.unique(examples.groups[validation])) < FEWEST_QUERIES:
        validation[:] = False
    train = ~test & ~validation
    if not train.any():
        msg = "no judgement is left to train on: every query has md5(query) % 5 == 0, which is kept to measure with"
        raise DataError(msg)
    parts = [take(examples, np.flatnonzero(rows)) for rows in (train, validation, test)]
    return Split(parts[0], parts[1], parts[2], None, None, None)


def _md5(text: str) -> int:
    return int(md5(text.encode(), usedforsecurity=False).hexdigest(), 16)
