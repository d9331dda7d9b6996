"""How many lists, or steps, a search has to take to reach a recall.

recall@k = share of the k found that are at least as similar as the truly k-th closest

counted by similarity, so that which of two equal documents comes back does not matter.
"""

import math
from collections.abc import Callable

import numpy as np

from ssae.index.backend import import_faiss

TIE = 1e-6
"""Rounding of a similarity of unit vectors: sums of float32 products in different orders."""
SATURATED = 0.005
"""Of recall: what is given up where more effort hardly gains, and the target is out of reach."""


class Exact:
    """The k largest similarities of queries to all vectors that were added.

    Args:
        queries: float32 (num_queries, dim).
        k: of each.
    """

    def __init__(self, queries: np.ndarray, k: int) -> None:
        self.queries = queries
        self.similarities = np.full((len(queries), k), -np.inf, dtype=np.float32)

    def add(self, block: np.ndarray) -> None:
        """Compare with float32 (n, dim)."""
        if not len(block) or not len(self.queries):
            return
        faiss, k = import_faiss(), self.similarities.shape[1]
        found, _ = faiss.knn(
            self.queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        both = np.concatenate([self.similarities, found], axis=1)
        self.similarities = np.partition(both, -k, axis=1)[:, -k:]


def recalls(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the recall of each query, float64 (num_queries,).

    Args:
        found: (num_queries, k) exact similarities of what a search returned, -inf for nothing.
        exact: (num_queries, k) of the truly closest, in any order.
    """
    return (found >= exact.min(axis=1, keepdims=True) - TIE).mean(axis=1)


def smallest(recall_of: Callable[[int], np.ndarray], target: float, first: int, last: int) -> int:
    """Return about the smallest effort, first to last, whose mean recall is the target or more.

    More by three standard errors of the mean over these queries, so that it holds for others. If
    even `last` has less, the smallest effort that is as good but for SATURATED.

    Args:
        recall_of: gives the recalls of the queries with an effort; more effort finds more.
        target: mean recall.
        first: effort to begin with.
        last: effort to end with.
    """

    def lower(effort: int) -> float:
        recall = recall_of(effort)
        return float(recall.mean() - 3 * recall.std() / math.sqrt(len(recall)))

    low, high, reached = first - 1, first, lower(first)
    while reached < target and high < last:
        low, high = high, min(2 * high, last)
        reached = lower(high)
    if reached < target:
        target, low = reached - SATURATED, first - 1
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        if lower(middle) >= target:
            high = middle
        else:
            low = middle
    return high
