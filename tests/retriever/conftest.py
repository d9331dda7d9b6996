"""Retrievers over texts in memory, without files or artifacts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ssae.retriever.base import Retriever, Scores


class Texts:
    """As much of a Pool as a retriever asks for."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def texts(self):
        yield from self._texts

    def fetch(self, ids) -> list[str]:
        return [self._texts[i] for i in np.asarray(ids).tolist()]


@pytest.fixture(scope="session")
def score_texts() -> Callable[[Retriever, list[str], list[str]], Scores]:
    """Return a function that scores texts with a retriever that needs nothing made before."""

    def run(retriever: Retriever, pool: list[str], seeds: list[str]) -> Scores:
        study: Any = None
        documents: Any = Texts(pool)
        return retriever.score(study, documents, seeds, {})

    return run
