"""Metrics of order: NDCG, reciprocal rank, AUC within users. Ties count in expectation over random order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

DEPTH = 10


@njit(cache=True)
def ndcg_mrr(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float]:
    """Return NDCG@10 with gain 1 a positive, and the reciprocal rank of the first positive; needs a positive.

    Järvelin & Kekäläinen 2002 for NDCG. Of items with equal scores every order is equally likely, and both are the
    expected value over those orders.
    """
    n = scores.size
    order = np.argsort(-scores)
    positives = 0
    for row in range(n):
        positives += labels[row]
    dcg, ideal, reciprocal = 0.0, 0.0, -1.0
    for place in range(min(positives, DEPTH)):
        ideal += 1.0 / np.log2(place + 2.0)
    start = 0
    while start < n:
        end = start
        found = 0
        while end < n and scores[order[end]] == scores[order[start]]:
            found += labels[order[end]]
            end += 1
        size = end - start
        for place in range(start, min(end, DEPTH)):
            dcg += found / size / np.log2(place + 2.0)
        if found > 0 and reciprocal < 0.0:
            # The chance that the first positive of the group comes after j negatives.
            reciprocal, none_yet = 0.0, 1.0
            for j in range(size - found + 1):
                here = none_yet * found / (size - j)
                reciprocal += here / (start + j + 1.0)
                none_yet -= here
        start = end
    return dcg / ideal, reciprocal


def gauc(
    users: NDArray[np.uint64], labels: NDArray[np.uint8], scores: NDArray[np.float32]
) -> tuple[int, NDArray[np.float64]]:
    """Return the rows of users with both labels, and for each column of scores [n, columns] the sum of rows times AUC.

    The second divided by the first is GAUC (Zhu et al. 2017, section 4.1, weighted by impressions).
    """
    order = np.argsort(users, kind="stable")
    counted, sums = _gauc(users[order], labels[order], scores[order])
    return int(counted), np.asarray(sums)


@njit(cache=True)
def _gauc(users: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> tuple[int, NDArray[Any]]:
    n, columns = scores.shape
    sums = np.zeros(columns)
    counted = 0
    start = 0
    while start < n:
        end = start
        positives = 0
        while end < n and users[end] == users[start]:
            positives += labels[end]
            end += 1
        negatives = end - start - positives
        if positives > 0 and negatives > 0:
            counted += end - start
            for column in range(columns):
                won = 0.0
                for a in range(start, end):
                    if labels[a] == 1:
                        for b in range(start, end):
                            if labels[b] == 0:
                                if scores[a, column] > scores[b, column]:
                                    won += 1.0
                                elif scores[a, column] == scores[b, column]:
                                    won += 0.5
                sums[column] += (end - start) * won / (positives * negatives)
        start = end
    return counted, sums
