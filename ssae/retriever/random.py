"""Random documents: the control, and the text a generalist learns from."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssae.artifact.store import Artifact
from ssae.pool.pool import Pool
from ssae.retriever.base import NO_SEED, Retriever, Scores

if TYPE_CHECKING:
    from ssae.study import Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Retriever):
    """Uniform scores that ignore the seeds.

    Args:
        seed: of the study.
        draw: what the documents are for; two draws of one seed are independent.
    """

    seed: int
    draw: str

    def score(
        self, study: "Study", pool: Pool, seeds: Sequence[str], made: Mapping[str, Artifact]
    ) -> Scores:
        """Return one uniform number a document."""
        digest = hashlib.sha256(self.draw.encode()).digest()
        generator = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "big")])
        values = generator.random(len(pool), dtype=np.float32)
        return Scores(values, np.full(len(pool), NO_SEED, np.int32))
