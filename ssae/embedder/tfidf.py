"""Latent semantic analysis: TF-IDF and a truncated SVD, fitted on the pool. No download, no GPU."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from rich.progress import track
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from ssae.embedder.base import Embedder, Embeddings

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfidfSVD(Embedder):
    """embedding(d) = tfidf(d) V, with V the leading right singular vectors of the pool's TF-IDF.

    tf is 1 + log(count), rows of tfidf have unit length (Deerwester et al. 1990).

    Args:
        dim: of the embedding.
        max_features: size of the vocabulary, the most frequent words.
        min_df: a word in fewer documents is left out; it relates no two of them.
        max_df: a word in a larger share of the documents is left out, whatever the language.
        sample_documents: the fit sees at most so many documents of the pool, drawn with `seed`.
        seed: of the sample and of the randomised SVD.
    """

    dim: int
    max_features: int
    min_df: int
    max_df: float
    sample_documents: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("dim", "max_features", "min_df", "sample_documents"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}; "
                    f"raise retriever.embedder.{name}"
                )
        if not 0 < self.max_df <= 1:
            raise ValueError(
                f"max_df is a share of the documents in (0, 1], got {self.max_df}; "
                "set retriever.embedder.max_df=0.5"
            )

    def embed(self, pool: Sequence[str], seeds: Sequence[str]) -> Embeddings:
        """Fit on the pool, then embed both."""
        tfidf = TfidfVectorizer(
            max_features=self.max_features,
            min_df=self.min_df,
            max_df=float(self.max_df),
            sublinear_tf=True,
            dtype=np.float32,  # pyright: ignore[reportArgumentType]
        )
        sample = self._sample(pool)
        log.info("TF-IDF and SVD: fitting on %d of %d documents", len(sample), len(pool))
        try:
            counts = tfidf.fit_transform(track(sample, "counting words"))
        except ValueError as error:
            raise ValueError(
                f"no word is left in {len(sample)} documents of the pool with "
                f"min_df={self.min_df} and max_df={self.max_df}; set retriever.embedder.min_df=1 "
                "or take a larger corpus.pool"
            ) from error
        if self.dim >= min(counts.shape):
            raise ValueError(
                f"dim must be below the number of documents and of words, got dim={self.dim} for "
                f"{counts.shape[0]} documents and {counts.shape[1]} words; "
                f"set retriever.embedder.dim={max(1, min(counts.shape) // 2)}"
            )
        svd = TruncatedSVD(self.dim, random_state=self.seed)
        # One thread: scipy's sparse products use no more, and LU and QR of these thin matrices took
        # 31 s on two threads of a busy machine against 4 s on one. It also makes the vectors
        # independent of the number of cores.
        with threadpool_limits(1):
            svd.fit(counts)
            del counts
            blocks = range(0, len(pool), 4096)
            vectors = np.empty((len(pool), self.dim), dtype=np.float32)
            for start in track(blocks, "embedding the pool"):
                rows = tfidf.transform(pool[start : start + 4096])
                vectors[start : start + 4096] = svd.transform(rows)
            return Embeddings(vectors, svd.transform(tfidf.transform(seeds)))

    def _sample(self, pool: Sequence[str]) -> Sequence[str]:
        if len(pool) <= self.sample_documents:
            return pool
        generator = np.random.default_rng(self.seed)
        chosen = generator.choice(len(pool), self.sample_documents, replace=False)
        return [pool[int(i)] for i in np.sort(chosen)]
