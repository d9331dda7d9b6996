"""Dense retrieval: closeness in an embedding space."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssae.embedder.base import Embedder
from ssae.retriever.base import NearestSeeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(NearestSeeds):
    """Cosine between embeddings, by default after taking out what all documents share.

    unit(v)             = v / ||v||
    centre              = mean of unit(v) over the pool
    similarity(seed, d) = unit(unit(d) - centre) . unit(unit(seed) - centre)

    Embeddings of text point largely the same way, and that common direction says "ordinary text",
    not what the text is about (Mu and Viswanath 2018, arXiv 1702.01417).

    Args:
        embedder: makes the vectors.
        subtract_centre: false is the plain cosine.
    """

    embedder: Embedder
    subtract_centre: bool

    def score(self, pool: Sequence[str], seeds: Sequence[str]) -> np.ndarray:
        """Return the mean similarity to the nearest seeds."""
        faiss = _faiss()
        vectors, queries = map(np.ascontiguousarray, self.embedder.embed(pool, seeds))
        known = np.any(vectors, axis=1)  # a document without a known word keeps the neutral score 0
        if not known.any() or not queries.any():
            raise ValueError(
                f"{type(self.embedder).__name__} finds nothing it knows in "
                f"{'the seeds' if known.any() else 'the pool'}; check corpus.seeds and corpus.pool "
                "or choose another embedder, e.g. retriever/embedder=hf"
            )
        faiss.normalize_L2(vectors)
        faiss.normalize_L2(queries)
        if self.subtract_centre:
            centre = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
            np.subtract(vectors, centre, out=vectors, where=known[:, None])
            queries -= centre
            faiss.normalize_L2(vectors)
            faiss.normalize_L2(queries)
        # The index holds the seeds and the pool asks, which is exact and costs
        # num_pool * num_seeds * dim products. The usual way round (an index over the pool, the
        # best documents of each seed) leaves most of the pool without a score.
        index = faiss.IndexFlatIP(queries.shape[1])
        index.add(queries)
        similarity, _ = index.search(vectors, min(self.nearest_seeds, len(seeds)))
        return similarity.mean(axis=1)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError(
            'dense retrieval needs FAISS: pip install "ssae[cpu]" (faiss-cpu) or "ssae[gpu]" '
            "(faiss-gpu), or set retriever=bm25"
        ) from None
    return faiss
