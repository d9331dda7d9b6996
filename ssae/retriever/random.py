"""Random documents: the control, and the text a generalist learns from."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from ssae.retriever.base import Retriever


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Retriever):
    """Uniform scores that ignore the seeds.

    Args:
        seed: of the study.
        draw: what the documents are for; two draws of one seed are independent.
    """

    seed: int
    draw: str

    def score(self, pool: Sequence[str], seeds: Sequence[str]) -> np.ndarray:
        """Return one uniform number a document."""
        digest = hashlib.sha256(self.draw.encode()).digest()
        generator = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "big")])
        return generator.random(len(pool), dtype=np.float32)
