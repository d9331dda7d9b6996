"""Latent semantic analysis: TF-IDF and a truncated SVD, fitted on the pool. No download, no GPU."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.progress import track
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from ssae.artifact.replace import write_text
from ssae.embedder.base import Embed, Embedder
from ssae.settings import check_least, check_types


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

    is_fitted: ClassVar[bool] = True

    dim: int
    max_features: int
    min_df: int
    max_df: float
    sample_documents: int
    seed: int

    def __post_init__(self) -> None:
        check_types(self, "retriever.embedder.")
        bounds = {
            "dim": (1, 256),
            "max_features": (1, 50_000),
            "min_df": (1, 2),
            "sample_documents": (1, 100_000),
        }
        check_least(self, bounds, "retriever.embedder.")
        if not 0 < self.max_df <= 1:
            raise ValueError(
                f"max_df is a share of the documents in (0, 1], got {self.max_df}; "
                "set retriever.embedder.max_df=0.5"
            )

    def sample(self, num_pool: int) -> np.ndarray:
        """Return `sample_documents` random ones, or all."""
        if num_pool <= self.sample_documents:
            return np.arange(num_pool)
        generator = np.random.default_rng(self.seed)
        return np.sort(generator.choice(num_pool, self.sample_documents, replace=False))

    def fit(self, texts: Sequence[str], folder: Path) -> None:
        """Count words, decompose, and write vocabulary.json and fitted.npz.

        Raises:
            ValueError: the texts share too few words.
        """
        tfidf = self._vectorizer()
        try:
            counts = tfidf.fit_transform(track(texts, "counting words"))
        except ValueError as error:
            raise ValueError(
                f"no word is left in {len(texts)} documents of the pool with "
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
        vocabulary = {word: int(column) for word, column in tfidf.vocabulary_.items()}
        write_text(folder / "vocabulary.json", json.dumps(vocabulary, ensure_ascii=False))
        assert svd.components_ is not None
        np.savez(folder / "fitted.npz", idf=tfidf.idf_, V=svd.components_.T)

    def open(self, folder: Path | None) -> Embed:
        """Return what `fit` made."""
        assert folder is not None
        text = (folder / "vocabulary.json").read_text(encoding="utf-8")
        tfidf = self._vectorizer(vocabulary=json.loads(text))
        with np.load(folder / "fitted.npz", allow_pickle=False) as fitted:
            tfidf.idf_ = fitted["idf"].astype(np.float32)
            V = fitted["V"].astype(np.float32)

        def embed(texts: Sequence[str]) -> np.ndarray:
            with threadpool_limits(1):
                return np.asarray(tfidf.transform(texts) @ V)

        return embed

    def _vectorizer(self, **options: Any) -> TfidfVectorizer:
        return TfidfVectorizer(
            max_features=self.max_features,
            min_df=self.min_df,
            max_df=float(self.max_df),
            sublinear_tf=True,
            dtype=np.float32,  # pyright: ignore[reportArgumentType]
            **options,
        )
