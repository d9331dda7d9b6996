"""An embedder turns documents into vectors whose cosine is closeness in meaning."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Embed = Callable[[Sequence[str]], np.ndarray]
"""Maps texts to their vectors, (num, dim) float32; each depends on its own text alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder:
    """What the dense retriever compares documents with; an embedder overrides `open`.

    One that learns from the pool (TF-IDF) is fitted first, on a sample, by one process.
    """

    is_fitted: ClassVar[bool] = False
    """Whether `fit` has to come before `open`."""

    def identity(self) -> Any:
        """Return what the vectors depend on beside the constructor's arguments."""
        return None

    def sample(self, num_pool: int) -> np.ndarray:
        """Return the numbers of the documents, of `num_pool`, that `fit` sees; ascending."""
        raise NotImplementedError

    def fit(self, texts: Sequence[str], folder: Path) -> None:
        """Learn from texts, and write what was learnt into the folder."""
        raise NotImplementedError

    def open(self, folder: Path | None) -> Embed:
        """Return what embeds texts.

        Args:
            folder: that `fit` wrote into; null where nothing is fitted.

        Raises:
            ValueError: it cannot be loaded.
        """
        raise NotImplementedError
