"""Dense retrieval: closeness in an embedding space."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssae.artifact.store import Artifact, build
from ssae.embedder.base import Embedder
from ssae.index.ann import Index
from ssae.index.backend import import_faiss
from ssae.index.build import build_index
from ssae.index.search import open_index
from ssae.pool.embeddings import Embeddings, unit_rows
from ssae.pool.pool import Pool
from ssae.read_pool import embed, fit, open_pool
from ssae.retriever.base import NO_SEED, UNSEEN, NearestSeeds, Scores
from ssae.settings import check_least

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
        check_least(self, {"candidates_per_seed": (1, 1000)}, "retriever.")

    def embedders(self) -> list[Embedder]:
        """Return the one."""
        return [self.embedder]

    def prepare(self, study: "Study") -> dict[str, Artifact]:
        """Return the embeddings of the pool, their centre, and an index if the pool is large."""
        import_faiss()
        made = {"embeddings": embed(study, self.embedder)}
        if self.embedder.is_fitted:
            made["fitted"] = fit(study, self.embedder)
        pool = open_pool(study)
        # Other seeds may hold other documents back, and what is left is numbered anew.
        documents = pool.artifact.manifest["files"]["catalogue.arrow"]["sha256"]
        inputs = {"embeddings": made["embeddings"], "documents": documents, "format": 2}

        def make_centre(folder: Path) -> dict[str, Any]:
            return write_centre(Embeddings(made["embeddings"], pool), folder)

        made["centre"] = build(study.artifacts, "centre", inputs, make_centre)
        if self.index.resolve(len(pool)) == "flat":
            return made
        inputs |= {"subtract_centre": self.subtract_centre, "index": self.index}

        def make_index(folder: Path) -> dict[str, Any]:
            return build_index(self.index, self._vectors(pool, made), folder)

        return made | {"index": build(study.artifacts, "index", inputs, make_index)}

    def _vectors(self, pool: Pool, made: Mapping[str, Artifact]) -> "Centred":
        embeddings, centre = Embeddings(made["embeddings"], pool), made["centre"]
        mean = np.load(centre.path / CENTRE, allow_pickle=False)
        return Centred(embeddings, mean if self.subtract_centre else np.zeros_like(mean))

    def score(
        self, study: "Study", pool: Pool, seeds: Sequence[str], made: Mapping[str, Artifact]
    ) -> Scores:
        """Return the mean similarity to the nearest seeds."""
        vectors, num_known = self._vectors(pool, made), made["centre"].manifest["num_known"]
        fitted = made["fitted"].path if "fitted" in made else None
        queries = vectors.place(self.embedder.open(fitted)(seeds))
        if not num_known or not queries.any():
            raise ValueError(
                f"{type(self.embedder).__name__} finds nothing it knows in "
                f"{'the seeds' if num_known else 'the pool'}; check corpus.seeds and "
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


CENTRE = "centre.npy"


def write_centre(embeddings: Embeddings, folder: Path) -> dict[str, Any]:
    """Write the mean of all rows, float32 (dim,), and return how many are not zero.

    One pass over them, which every other search in the same documents is spared.
    """
    total, num_known = np.zeros(embeddings.dim), 0
    for rows in embeddings.blocks():
        total += rows.sum(axis=0, dtype=np.float64)
        num_known += int(rows.any(axis=1).sum())
    # Of all rows: a document without a known word is no direction, but counts.
    mean = (total / max(1, len(embeddings))).astype(np.float32)
    np.save(folder / CENTRE, mean, allow_pickle=False)
    return {"num_known": num_known}


class Centred:
    """The vectors of a pool after the centre is taken out: unit or zero rows.

    Args:
        embeddings: of the pool.
        centre: float32 (dim,); zeros where none is taken out.
    """

    def __init__(self, embeddings: Embeddings, centre: np.ndarray) -> None:
        self.embeddings, self.dim, self.centre = embeddings, embeddings.dim, centre

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
