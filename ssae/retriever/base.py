"""A retriever scores every document of the pool by its closeness to the seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssae.artifact.store import Artifact
from ssae.embedder.base import Embedder
from ssae.pool.pool import Pool
from ssae.settings import check_least, check_types

if TYPE_CHECKING:
    from ssae.study import Study

UNSEEN = -np.inf
"""The score of a document that a retriever did not look at: the last, and never selected."""
NO_SEED = -1


class Scores(NamedTuple):
    """What a retriever says of every document of the pool."""

    values: np.ndarray
    """float32 (num_pool,), higher is closer. Only the order counts: units differ."""
    seeds: np.ndarray
    """int32 (num_pool,), the seed that a document is closest to; NO_SEED where none is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retriever:
    """What `ssae retrieve` ranks the pool with; a retriever overrides `score`."""

    @property
    def name(self) -> str:
        """What tables and documents call it."""
        return type(self).__name__.lower()

    def stages(self) -> list["Retriever"]:
        """Return the retrievers that it is made of."""
        return []

    def embedders(self) -> list[Embedder]:
        """Return what it embeds the pool with, so that the pass that reads the pool does it."""
        return [embedder for stage in self.stages() for embedder in stage.embedders()]

    def prepare(self, study: "Study") -> dict[str, Artifact]:
        """Return what scoring reads, made by all ranks together; part of the scores' hash."""
        return {}

    def score(
        self, study: "Study", pool: Pool, seeds: Sequence[str], made: Mapping[str, Artifact]
    ) -> Scores:
        """Return the scores; one process calls it.

        Args:
            study: names models and sizes.
            pool: the documents.
            seeds: texts of the subdomain.
            made: what `prepare` returned.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestSeeds(Retriever):
    """A retriever that compares each document with each seed.

    score(document) = mean of its nearest_seeds largest similarities to a seed

    One seed alone (the maximum) trusts every seed, also the one that says nothing about the
    subdomain; all of them (the mean) miss a subdomain with more than one topic.

    Args:
        nearest_seeds: how many seeds a score averages; 1 is the closest alone, and any number from
            that of the seeds upwards is all of them.
    """

    nearest_seeds: int

    def __post_init__(self) -> None:
        check_types(self, "retriever.")
        check_least(self, {"nearest_seeds": (1, 5)}, "retriever.")
