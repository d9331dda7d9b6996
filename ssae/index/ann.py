"""Which index a pool gets: settings, and what an index is made of."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ssae.settings import check_least, check_types

KINDS = ("auto", "flat", "ivf_flat", "ivf_pq", "hnsw")
MOST_LISTS = 2**16


class Vectors(Protocol):
    """The embeddings of N documents, with the ids 0 to N - 1; they need not fit into memory.

    Rows have norm 1, or are all zero: a document without content, which no search finds.
    """

    dim: int

    def __len__(self) -> int:
        """Return N."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 (n, dim), all rows in the order of their ids."""
        ...

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return float32 (len(ids), dim) of int64 ids."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """How the documents that are closest to a query are found.

    flat      every vector is compared: exact; 4 * dim + 8 bytes per vector
    ivf_flat  k-means makes lists, the `nprobe` lists closest to the query are compared: as many
              bytes, of which a search reads a few per cent
    ivf_pq    the same lists of vectors compressed to `pq_bytes` (Jegou et al. 2011, product
              quantisation); the best of them are compared again by their embeddings;
              pq_bytes + 8 bytes per vector
    hnsw      a graph of near neighbours is walked (Malkov and Yashunin, arXiv 1603.09320);
              4 * dim + 270 bytes per vector, in memory

    How many lists or steps a search takes is tuned when the index is built, see build.py.

    Args:
        kind: one of those, or "auto": flat below `exact_below` vectors, ivf_flat up to
            `compress_above`, ivf_pq beyond.
        exact_below: vectors.
        compress_above: vectors; building ivf_flat takes up to twice their float32 bytes of memory.
        min_recall: share of the truly closest documents that a search must find, on average.
        recall_at: how many of the closest count; that of the largest search is the right one.
        pq_bytes: of a compressed vector, at most: as many as divide its dimension.
        seed: of samples and k-means.
    """

    kind: str
    exact_below: int
    compress_above: int
    min_recall: float
    recall_at: int
    pq_bytes: int
    seed: int

    def __post_init__(self) -> None:
        check_types(self, "retriever.index.")
        if self.kind not in KINDS:
            raise ValueError(
                f"retriever.index.kind must be one of {', '.join(KINDS)}, got {self.kind!r}; "
                "set retriever.index.kind=auto"
            )
        bounds = {"exact_below": (0, 1_000_000), "recall_at": (1, 100), "pq_bytes": (1, 64)}
        check_least(self, bounds, "retriever.index.")
        if self.compress_above < self.exact_below:
            raise ValueError(
                "retriever.index.compress_above must be at least exact_below "
                f"({self.exact_below}), got {self.compress_above}; "
                f"set retriever.index.compress_above={10 * max(1, self.exact_below)}"
            )
        if not 0 < self.min_recall <= 1:
            raise ValueError(
                "retriever.index.min_recall must lie above 0 and be at most 1, got "
                f"{self.min_recall}; set retriever.index.min_recall=0.95"
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(
                "retriever.index.seed must lie between 0 and 2147483647, FAISS has no larger "
                f"ones, got {self.seed}; set retriever.index.seed=0"
            )

    def resolve(self, num_vectors: int) -> str:
        """Return the kind that an index of so many vectors is, never "auto"."""
        if self.kind != "auto":
            return self.kind
        if num_vectors < self.exact_below:
            return "flat"
        return "ivf_flat" if num_vectors <= self.compress_above else "ivf_pq"

    def code_bytes(self, dim: int) -> int:
        """Return the bytes of a compressed vector: the largest divisor of dim up to pq_bytes."""
        return max(size for size in range(1, self.pq_bytes + 1) if dim % size == 0)


def num_lists(num_vectors: int) -> int:
    """Return the power of two nearest to 4 sqrt(N), so that centroids cost as much as a few lists.

    At most MOST_LISTS: beyond, finding the centroid of every vector would dominate a build.
    """
    return min(MOST_LISTS, 2 ** round(math.log2(4 * math.sqrt(max(1, num_vectors)))))
