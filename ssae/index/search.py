"""Search in an index that was built, without reading more of its file than a search needs."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from ssae.index.ann import Vectors
from ssae.index.backend import GPU_MOST, import_faiss, on_gpu

log = logging.getLogger(__name__)

FILE = "index.faiss"
CHUNK_BYTES = 2**23


class Found(NamedTuple):
    """What a search returns; where there are fewer than k documents, -inf and -1 fill the rows."""

    similarities: np.ndarray
    """float32 (num_queries, k), falling"""
    ids: np.ndarray
    """int64 (num_queries, k)"""


class Effort(NamedTuple):
    """What a search takes."""

    steps: int
    """nprobe of ivf_flat and ivf_pq: lists; efSearch of hnsw: candidates; 0 of flat."""
    oversampling: int
    """Of ivf_pq: candidates per result, compared again by their embeddings; 0 of the others."""


def nearest(
    index: Any, kind: str, vectors: Vectors, effort: Effort, queries: np.ndarray, k: int
) -> Found:
    """Search in a FAISS index of that kind.

    Args:
        index: of inner products.
        kind: a resolved one.
        vectors: that were indexed.
        effort: to take.
        queries: float32 (num_queries, dim), contiguous.
        k: results of each.
    """
    faiss = import_faiss()
    parameters = None
    if kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort.steps, k))
    elif kind != "flat":
        parameters = faiss.SearchParametersIVF(nprobe=effort.steps)
    candidates = k * max(1, effort.oversampling)
    similarities, ids = index.search(queries, candidates, params=parameters)
    if ids.size and not -1 <= ids.min() <= ids.max() < len(vectors):
        raise ValueError(f"{FILE} is damaged: it names documents that the pool does not have")
    if kind == "ivf_pq":
        similarities, ids = _again(vectors, queries, ids, k)
    similarities[ids < 0] = -np.inf
    return Found(similarities, ids)


def _again(vectors: Vectors, queries: np.ndarray, ids: np.ndarray, k: int) -> Found:
    """Return the k best of the candidates `ids` by their embeddings; one query's at a time."""
    found = Found(np.full((len(ids), k), -np.inf, np.float32), np.full((len(ids), k), -1))
    for row, (query, candidates) in enumerate(zip(queries, ids, strict=True)):
        known = np.sort(candidates[candidates >= 0])  # on disk, neighbours are cheaper
        similarities = vectors.rows(known) @ query
        best = np.argsort(-similarities, kind="stable")[:k]
        found.similarities[row, : len(best)] = similarities[best]
        found.ids[row, : len(best)] = known[best]
    return found


class OpenIndex:
    """An index to search in; `open_index` makes it.

    Args:
        index: FAISS', mapped from its file.
        manifest: what `build_index` returned.
        vectors: that were indexed.
    """

    def __init__(self, index: Any, manifest: Mapping[str, Any], vectors: Vectors) -> None:
        self.kind, self.dim = manifest["kind"], manifest["dim"]
        self.recall_at = manifest["recall_at"]
        self.effort = Effort(manifest["steps"], manifest["oversampling"])
        self.vectors, self._index = vectors, index
        self._on_gpu = on_gpu(index) if self.kind != "hnsw" else None

    def search(self, queries: np.ndarray, k: int) -> Found:
        """Return the k documents closest to each query.

        Args:
            queries: (num_queries, dim) of norm 1.
            k: at least 1.

        Raises:
            ValueError: the queries have another dimension, or k is not positive.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(
                f"queries must be (num_queries, {self.dim}) as the indexed vectors are, got "
                f"{queries.shape}: embed both with one retriever.embedder"
            )
        if k < 1:
            raise ValueError(f"a search returns at least 1 document, got k={k}")
        if self.kind != "flat" and k > self.recall_at:
            log.warning(
                "searching for %d documents in an index whose recall was measured at %d: more "
                "may be missed; set retriever.index.recall_at=%d", k, self.recall_at, k,
            )  # fmt: skip
        most = max(self.effort.steps, k * max(1, self.effort.oversampling))
        index = self._index if self._on_gpu is None or most > GPU_MOST else self._on_gpu
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        return nearest(index, self.kind, self.vectors, self.effort, queries, k)


def open_index(folder: Path, manifest: Mapping[str, Any], vectors: Vectors) -> OpenIndex:
    """Map the index of a folder into memory.

    FAISS trusts what it reads, and damaged sizes or links of a graph could end the process. So the
    bytes that it follows are compared with their checksum first: all of them, or, of lists beyond
    `build.WHOLE_BYTES`, all but the lists. A damaged list can hide a document or misjudge it.

    Args:
        folder: where `build_index` wrote.
        manifest: what it returned.
        vectors: that were indexed.

    Raises:
        ValueError: the file is missing or damaged, or belongs to other vectors.
    """
    faiss, path = import_faiss(), folder / FILE
    for name, mine, theirs in (
        ("dimension", manifest["dim"], vectors.dim),
        ("number", manifest["num_vectors"], len(vectors)),
    ):
        if mine != theirs:
            raise ValueError(
                f"{path} indexes vectors of {name} {mine}, the embeddings have {theirs}: it "
                f"belongs to another retriever.embedder or pool; remove it and run again: "
                f"rm -r {folder}"
            )
    size, checked = manifest["index_bytes"], manifest["checked_bytes"]
    if not path.is_file():
        raise _damaged(folder, "it is missing")
    if path.stat().st_size != size:
        raise _damaged(folder, f"{path.stat().st_size} bytes instead of {size}")
    if digest(path, checked) != manifest["checked_xxh3_128"]:
        raise _damaged(folder, "its checksum is another")
    try:
        # Added in FAISS 1.11; before, only lists could be mapped.
        index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP))
    except RuntimeError as error:
        raise _damaged(folder, str(error).strip().splitlines()[-1]) from error
    if index.d != vectors.dim:
        raise _damaged(folder, f"its vectors have dimension {index.d} instead of {vectors.dim}")
    return OpenIndex(index, manifest, vectors)


def digest(path: Path, num_bytes: int) -> str:
    """Return the xxh3_128 of the first bytes of a file, in hex."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(min(CHUNK_BYTES, num_bytes)):
            hasher.update(chunk)
            num_bytes -= len(chunk)
    return hasher.hexdigest()


def _damaged(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"{folder / FILE} is damaged ({what}); remove it and run again: rm -r {folder}"
    )
