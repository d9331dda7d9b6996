"""Dense retrieval: closeness in an embedding space."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssae.artifact.store import Artifact, build
from ssae.embedder.base import Embedder
from ssae.index.ann import Index
from ssae.index.build import build_index
from ssae.index.library import import_faiss
from ssae.index.search import open_index
from ssae.pool.embeddings import Embeddings, unit_rows
from ssae.pool.pool import Pool
from ssae.read_pool import embed, fit, open_pool
from ssae.retriever.base import NO_SEED, UNSEEN, NearestSeeds, Scores

if TYPE_CHECKING:
    from ssae.study import Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(NearestSeeds):
    """Cosine between embeddings, by default after taking out what all documents share.

    unit(v)             = v / ||v||
    centre              = mean of unit(v) over the pool
    similarity(seed, d) = unit(unit(d) - centre) . unit(unit(seed) - centre)

    Embeddings of text point largely the same way, and that common direction says "ordinary text",
    not what the text is about (Mu and Viswanath 2018, arXiv 1702.01417).

    A pool below `index.exact_below` documents is compared with every seed. Above, each seed finds
    `candidates_per_seed` documents in an index, which alone are compared, exactly.

    Args:
        embedder: makes the vectors.
        subtract_centre: false is the plain cosine.
        index: how large pools are searched.
        candidates_per_seed: documents that a seed finds in an index.
    """

    embedder: Embedder
    subtract_centre: bool
    index: Index
    candidates_per_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates_per_seed < 1:
            raise ValueError(
                f"candidates_per_seed must be at least 1, got {self.candidates_per_seed}; "
                "set retriever.candidates_per_seed=1000"
            )

    def embedders(self) -> list[Embedder]:
        """Return the one."""
        return [self.embedder]

    def prepare(self, study: "Study") -> dict[str, Artifact]:
        """Return the embeddings of the pool, and their index if the pool is large."""
        import_faiss()
        embeddings = embed(study, self.embedder)
        pool = open_pool(study)
        made = {"embeddings": embeddings}
        if self.embedder.is_fitted:
            made["fitted"] = fit(study, self.embedder)
        if self.index.resolve(len(pool)) == "flat":
            return made
        inputs = {
            "embeddings": embeddings,
            "subtract_centre": self.subtract_centre,
            "index": self.index,
            "format": 1,
        }

        def make(folder: Path) -> dict[str, Any]:
            vectors = Centred(Embeddings(embeddings, pool), self.subtract_centre)
            return build_index(self.index, vectors, folder)

        return made | {"index": build(study.artifacts, "index", inputs, make)}

    def score(
        self, study: "Study", pool: Pool, seeds: Sequence[str], made: Mapping[str, Artifact]
    ) -> Scores:
        """Return the mean similarity to the nearest seeds."""
        vectors = Centred(Embeddings(made["embeddings"], pool), self.subtract_centre)
        fitted = made["fitted"].path if "fitted" in made else None
        queries = vectors.place(self.embedder.open(fitted)(seeds))
        if not vectors.num_known or not queries.any():
            raise ValueError(
                f"{type(self.embedder).__name__} finds nothing it knows in "
                f"{'the seeds' if vectors.num_known else 'the pool'}; check corpus.seeds and "
                "corpus.pool or choose another embedder, e.g. retriever/embedder=hf"
            )
        # The seeds are indexed and the documents ask, which is exact and costs num_documents *
        # num_seeds * dim products.
        ours = import_faiss().IndexFlatIP(queries.shape[1])
        ours.add(queries)
        nearest = min(self.nearest_seeds, len(seeds))
        scores = Scores(
            np.full(len(pool), UNSEEN, np.float32), np.full(len(pool), NO_SEED, np.int32)
        )
        for ids, rows in self._candidates(vectors, queries, made):
            similarity, seed = ours.search(rows, nearest)
            scores.values[ids] = similarity.mean(axis=1)
            scores.seeds[ids] = np.where(rows.any(axis=1), seed[:, 0], NO_SEED)
        return scores

    def _candidates(
        self, vectors: "Centred", queries: np.ndarray, made: Mapping[str, Artifact]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (numbers, vectors) of the documents to compare."""
        if "index" not in made:
            start = 0
            for rows in vectors.blocks():
                yield np.arange(start, start + len(rows)), rows
                start += len(rows)
            return
        index = open_index(made["index"].path, made["index"].manifest, vectors)
        _, found = index.search(queries, min(self.candidates_per_seed, len(vectors)))
        ids = np.unique(found[found >= 0])
        for start in range(0, len(ids), 65_536):
            chosen = ids[start : start + 65_536]
            yield chosen, vectors.rows(chosen)


class Centred:
    """The vectors of a pool after the centre is taken out: unit or zero rows.

    Args:
        embeddings: of the pool.
        subtract_centre: whether there is one.
    """

    def __init__(self, embeddings: Embeddings, subtract_centre: bool) -> None:
        self.embeddings, self.dim = embeddings, embeddings.dim
        total, self.num_known = np.zeros(self.dim), 0
        for rows in embeddings.blocks():
            total += rows.sum(axis=0, dtype=np.float64)
            self.num_known += int(rows.any(axis=1).sum())
        # Of all rows: a document without a known word is no direction, but counts.
        centre = total / max(1, len(embeddings))
        self.centre = (centre if subtract_centre else 0 * centre).astype(np.float32)

    def __len__(self) -> int:
        return len(self.embeddings)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (num, dim) float32, all documents in order."""
        for rows in self.embeddings.blocks():
            yield self.place(rows)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return (num, dim) float32 of the documents with these numbers."""
        return self.place(self.embeddings.rows(ids))

    def place(self, vectors: np.ndarray) -> np.ndarray:
        """Return unit(unit(v) - centre) of vectors (num, dim); zero rows stay zero."""
        rows = unit_rows(np.asarray(vectors, dtype=np.float32))
        known = rows.any(axis=1, keepdims=True)
        return np.ascontiguousarray(unit_rows(np.where(known, rows - self.centre, 0)))
