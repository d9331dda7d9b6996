"""An embedder turns documents into vectors whose cosine is closeness in meaning."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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


def check_batch(max_length: int, batch_size_tokens: int) -> None:
    """Check the settings of an embedder that is a neural network.

    Raises:
        ValueError: a batch cannot hold one text.
    """
    if not 1 <= max_length <= batch_size_tokens:
        raise ValueError(
            "max_length must be at least 1 and a batch must hold one text of that length, got "
            f"max_length={max_length}, batch_size_tokens={batch_size_tokens}; "
            "set retriever.embedder.max_length=256 retriever.embedder.batch_size_tokens=16384"
        )


def batches_by_length(ids: Sequence[Sequence[int]], batch_size_tokens: int) -> Iterator[list[int]]:
    """Yield the rows of token ids in batches of similar length, the longest first.

    The longest first, so that a batch that does not fit the device fails in the first second.
    """
    rows = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    while rows:
        count = max(1, batch_size_tokens // max(1, len(ids[rows[0]])))
        batch, rows = rows[:count], rows[count:]
        yield batch
