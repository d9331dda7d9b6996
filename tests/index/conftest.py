import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ssae.index.ann import Index

SETTINGS = Index(
    kind="auto", exact_below=1000, compress_above=100_000, min_recall=0.95, recall_at=10,
    pq_bytes=8, seed=0,
)  # fmt: skip


class Array:
    """Vectors in memory, in blocks of uneven size."""

    def __init__(self, rows: np.ndarray) -> None:
        self.array, self.dim = rows.astype(np.float32), rows.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def blocks(self) -> Iterator[np.ndarray]:
        start, size = 0, 900
        while start < len(self):
            yield self.array[start : start + size]
            start, size = start + size, size + 100

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return self.array[ids]


@pytest.fixture(scope="session")
def array() -> type[Array]:
    """Return the class of vectors in memory."""
    return Array


@pytest.fixture(scope="session")
def settings() -> Callable[..., Index]:
    """Return a function that changes the settings of these tests."""
    return lambda **changes: dataclasses.replace(SETTINGS, **changes)


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    """Return a function that draws unit rows around 40 centres, one in `zero_every` all zero."""

    def rows(num: int, dim: int = 16, seed: int = 0, zero_every: int = 11) -> np.ndarray:
        centres = np.random.default_rng(99).normal(size=(40, dim))
        generator = np.random.default_rng(seed)
        x = centres[generator.integers(40, size=num)] + 0.5 * generator.normal(size=(num, dim))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        x[zero_every - 1 :: zero_every] = 0
        return x.astype(np.float32)

    return rows
