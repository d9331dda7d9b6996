"""A retriever scores every document of the pool by its closeness to the seeds."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retriever:
    """What `ssae retrieve` ranks the pool with; a retriever overrides `score`."""

    def score(self, pool: Sequence[str], seeds: Sequence[str]) -> np.ndarray:
        """Return float32 (num_pool,), higher is closer to the subdomain that the seeds stand for.

        Only the order counts: scores of different retrievers have different units.
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
        if self.nearest_seeds < 1:
            raise ValueError(
                f"nearest_seeds must be at least 1, got {self.nearest_seeds}; "
                "set retriever.nearest_seeds=5"
            )
