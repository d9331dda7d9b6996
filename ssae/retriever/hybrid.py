"""Reciprocal-rank fusion: several rankings made one (Cormack, Clarke and Buettcher 2009)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssae.artifact.store import Artifact
from ssae.pool.pool import Pool
from ssae.retriever.base import NO_SEED, UNSEEN, Retriever, Scores
from ssae.score import read_scores, score
from ssae.settings import check_types

if TYPE_CHECKING:
    from ssae.study import Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hybrid(Retriever):
    """score(document) = sum over retrievers r of 1 / (rank_constant + rank_r(document)).

    Ranks count from 1 and need no common unit. A document that a retriever did not look at gets
    nothing from it. Its seed is that of the retriever that ranks it best.

    Args:
        retrievers: {name: retriever}, at least two.
        rank_constant: how little the first ranks stand out; 60 in the paper.
    """

    retrievers: dict[str, Retriever]
    rank_constant: float

    def __post_init__(self) -> None:
        check_types(self, "retriever.")
        object.__setattr__(self, "retrievers", {k: v for k, v in self.retrievers.items() if v})
        if len(self.retrievers) < 2:
            raise ValueError(
                f"hybrid needs at least two retrievers, got {', '.join(self.retrievers) or 'none'};"
                " set retriever=hybrid"
            )
        if self.rank_constant < 0:
            raise ValueError(
                f"rank_constant must not be negative, got {self.rank_constant}; "
                "set retriever.rank_constant=60"
            )

    def stages(self) -> list[Retriever]:
        """Return the retrievers that are joined."""
        return list(self.retrievers.values())

    def prepare(self, study: "Study") -> dict[str, Artifact]:
        """Return the scores of each retriever."""
        return {name: score(study, retriever) for name, retriever in self.retrievers.items()}

    def score(
        self, study: "Study", pool: Pool, seeds: Sequence[str], made: Mapping[str, Artifact]
    ) -> Scores:
        """Return the sums of reciprocal ranks."""
        values = np.zeros(len(pool))
        nearest = np.full(len(pool), NO_SEED, np.int32)
        best = np.full(len(pool), np.inf)
        for name in self.retrievers:
            own = read_scores(made[name])
            order = np.argsort(-own.values, kind="stable")
            ranks = np.empty(len(pool))
            ranks[order] = np.arange(1, len(pool) + 1)
            ranks[own.values == UNSEEN] = np.inf
            values += 1 / (self.rank_constant + ranks)
            closer = ranks < best
            nearest[closer], best[closer] = own.seeds[closer], ranks[closer]
        values[np.isinf(best)] = UNSEEN
        return Scores(values.astype(np.float32), nearest)
