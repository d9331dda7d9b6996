"""BM25: closeness in words, the lexical baseline (Robertson and Zaragoza 2009)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
from rich.progress import track

from ssae.retriever.base import NearestSeeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class BM25(NearestSeeds):
    """Each seed is a query of its own; a similarity is a share of the best score it could give.

    idf(w)              = log(1 + (num_pool - df(w) + 0.5) / (df(w) + 0.5))
    weight(w, d)        = tf(w, d) / (tf(w, d) + k1 * (1 - b + b * length(d) / mean length))
    similarity(seed, d) = sum over words w of seed, idf(w) * weight(w, d)  /  sum, idf(w)

    A sum over the words of a seed grows with the seed, so the longest seeds would decide every
    score. weight < 1, which makes the denominator the supremum of the numerator: similarities lie
    in [0, 1) and seeds of any length are comparable. Dividing by the largest score found in the
    pool instead would give every seed a document at 1, also a seed that resembles none.

    Args:
        k1: how many repeats of a word it takes to saturate its weight.
        b: how much a long document is discounted, 0 to 1.
        stop_words: list of frequent words to ignore, by bm25s' name for it ("english"); null keeps
            every word.
    """

    k1: float
    b: float
    stop_words: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise ValueError(
                f"BM25 needs k1 >= 0 and b in [0, 1], got k1={self.k1} and b={self.b}; "
                "set retriever.k1=1.2 retriever.b=0.75"
            )

    def score(self, pool: Sequence[str], seeds: Sequence[str]) -> np.ndarray:
        """Return the mean similarity to the nearest seeds."""
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
        index.index(self._tokenize(pool), show_progress=False)
        num_pool = len(pool)
        df = np.diff(index.scores["indptr"])
        idf = np.log1p((num_pool - df + 0.5) / (df + 0.5))
        # One seed at a time beside the largest so far: (nearest_seeds, num_pool) is all it needs.
        nearest = np.zeros((min(self.nearest_seeds, len(seeds)), num_pool), dtype=np.float32)
        found = False
        for words in track(self._tokenize(seeds, return_ids=False), "BM25, a query a seed"):
            ids = index.get_tokens_ids(words)
            if not ids:
                continue
            found = True
            similarity = index.get_scores_from_ids(ids) / idf[ids].sum()
            lowest = nearest.argmin(axis=0), np.arange(num_pool)
            nearest[lowest] = np.maximum(nearest[lowest], similarity)
        if not found:
            raise ValueError(
                f"none of the {len(seeds)} seeds shares a word with the pool; check corpus.seeds "
                "or set retriever=dense"
            )
        return nearest.mean(axis=0)

    def _tokenize(self, texts: Any, return_ids: bool = True) -> Any:
        stop_words = self.stop_words or []
        return bm25s.tokenize(
            texts, stopwords=stop_words, return_ids=return_ids, show_progress=False
        )
