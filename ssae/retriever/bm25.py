"""BM25: closeness in words, the lexical baseline (Robertson and Zaragoza 2009)."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bm25s
import numpy as np
from rich.progress import MofNCompleteColumn, track

from ssae.artifact.store import Artifact
from ssae.pool.pool import Pool
from ssae.process.progress import progress_bar
from ssae.retriever.base import NO_SEED, NearestSeeds, Scores

if TYPE_CHECKING:
    from ssae.study import Study


logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import makes it verbose


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

    def score(
        self, study: "Study", pool: Pool, seeds: Sequence[str], made: Mapping[str, Artifact]
    ) -> Scores:
        """Return the mean similarity to the nearest seeds."""
        index = self._index(pool)
        if index is None:
            raise _nothing_shared(len(seeds))
        num_pool = len(pool)
        df = np.diff(index.scores["indptr"])
        idf = np.log1p((num_pool - df + 0.5) / (df + 0.5))
        # One seed at a time beside the largest so far: (nearest_seeds, num_pool) is all it needs.
        nearest = np.zeros((min(self.nearest_seeds, len(seeds)), num_pool), dtype=np.float32)
        closest, largest = np.full(num_pool, NO_SEED, np.int32), np.zeros(num_pool, np.float32)
        for seed, words in enumerate(track(self._words(seeds), "BM25, a query a seed")):
            ids = index.get_tokens_ids(words)
            if not ids:
                continue
            similarity = index.get_scores_from_ids(ids) / idf[ids].sum()
            closer = similarity > largest
            closest[closer], largest[closer] = seed, similarity[closer]
            lowest = nearest.argmin(axis=0), np.arange(num_pool)
            nearest[lowest] = np.maximum(nearest[lowest], similarity)
        if not largest.any():
            raise _nothing_shared(len(seeds))
        return Scores(nearest.mean(axis=0), closest)

    def _index(self, pool: Pool) -> bm25s.BM25 | None:
        """Return the index of the pool; None if it has no word.

        In memory: some 8 bytes for each word of each document.
        """
        tokenizer = bm25s.tokenization.Tokenizer(lower=True, stopwords=self.stop_words or [])
        ids = []
        with progress_bar("BM25, counting words", len(pool), MofNCompleteColumn()) as progress:
            [task] = progress.tasks
            for text in pool.texts():
                [words] = tokenizer.streaming_tokenize([text], allow_empty=False)
                ids.append(np.asarray(words, dtype=np.int32))
                if len(ids) % 256 == 0:
                    rate = f"{task.speed:,.0f} documents/s" if task.speed else ""
                    progress.update(task.id, completed=len(ids), rate=rate)
            progress.update(task.id, completed=len(ids))
        if not any(map(len, ids)):
            return None
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", backend="auto")
        index.index((ids, tokenizer.get_vocab_dict()), show_progress=False)
        return index

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        words: Any = bm25s.tokenize(
            list(texts), stopwords=self.stop_words or [], return_ids=False, show_progress=False
        )
        return words


def _nothing_shared(num_seeds: int) -> ValueError:
    return ValueError(
        f"none of the {num_seeds} seeds shares a word with the pool; check corpus.seeds or set "
        "retriever=dense"
    )
