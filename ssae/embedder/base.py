"""An embedder turns documents into vectors whose cosine is closeness in meaning."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Embeddings(NamedTuple):
    """Vectors of the two sets of documents, in one space."""

    pool: np.ndarray
    """float32 (num_pool, dim)"""
    seeds: np.ndarray
    """float32 (num_seeds, dim)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder:
    """What the dense retriever compares documents with; an embedder overrides `embed`."""

    def embed(self, pool: Sequence[str], seeds: Sequence[str]) -> Embeddings:
        """Return the vectors of pool and seeds, of any length; the caller may overwrite them.

        Both at once, so that an embedder with something to fit (TF-IDF) fits it on the pool, and
        one without (a pretrained encoder) does not have to pretend.
        """
        raise NotImplementedError
