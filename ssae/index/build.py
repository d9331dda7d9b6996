"""Build an index: train on a sample, add block by block, tune, measure, write.

The queries that tune and measure are rows of the pool that are neither in the training sample nor
in the index yet: they are added last. So each query meets the index as a new document like those of
the pool would; a row that the index knows would find itself, and in a graph its neighbours, too
easily. One half tunes, recall is measured on the other. Seeds of a subdomain may be unlike the
pool, then their recall is another.

On a CPU the file is the same to the last bit for the same vectors, blocks, seed and number of
threads; of hnsw only with one (OMP_NUM_THREADS=1), more of them race for its links.
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssae.index.ann import Index, Vectors, num_lists
from ssae.index.backend import import_faiss
from ssae.index.lists import closest, k_means, to_table
from ssae.index.search import FILE, Effort, digest, nearest
from ssae.index.tune import Exact, recalls, smallest
from ssae.process.progress import progress_bar

log = logging.getLogger(__name__)

NUM_QUERIES = 200
"""To tune with, and as many to measure with."""
POINTS_PER_LIST = 64
"""Training vectors, of a list and of each of the 256 values of a byte of a code."""
LINKS, CANDIDATES = 32, 80
"""Of hnsw: links of a vector on each level (twice as many on the lowest), and efConstruction."""
MOST_OVERSAMPLING, MOST_STEPS = 16, 64
"""Candidates per result, of ivf_pq and of hnsw."""
MUCH = 0.1
"""Of the lists: where a search reads more, comparing all vectors is about as fast."""
WHOLE_BYTES = 2**33
"""Of a larger file only what comes before the lists gets a checksum that is compared at opening."""


def build_index(settings: Index, vectors: Vectors, folder: Path) -> dict[str, Any]:
    """Write `index.faiss` into a folder.

    Args:
        settings: of the index.
        vectors: to be indexed; all-zero rows are left out.
        folder: exists.

    Returns:
        For the manifest: kind, num_vectors, num_indexed, dim, nlist (0: none), steps (nprobe or
        efSearch), oversampling, recall, recall_at, bytes_per_vector, and what `open_index` checks.

    Raises:
        ValueError: FAISS is missing, or there are too few vectors to train on.
    """
    faiss, start, num = import_faiss(), time.perf_counter(), len(vectors)
    kind = settings.resolve(num)
    generator = np.random.default_rng(settings.seed)
    num_queries = 0 if kind == "flat" else min(2 * NUM_QUERIES, num // 4)
    nlist = num_lists(num) if kind.startswith("ivf") else 0
    num_drawn = min(num, num_queries + POINTS_PER_LIST * nlist)
    drawn = generator.choice(num, num_drawn, replace=False)
    queries, query_ids = _with_content(vectors, drawn[:num_queries])
    index = _train(settings, kind, vectors, drawn[num_queries:], nlist, generator)
    nlist = index.nlist if nlist else 0
    exact = Exact(queries, settings.recall_at)
    table = to_table(index.quantizer.reconstruct_n(0, nlist)) if nlist else None
    _add(index, table, vectors, query_ids, exact)
    effort, recall = _tune(settings, index, kind, vectors, exact)
    _add_rows(index, table, queries, query_ids)
    path = folder / FILE
    faiss.write_index(index, str(path))
    size = path.stat().st_size
    lists = index.ntotal * (index.code_size + 8) if nlist else 0
    checked = size if size <= WHOLE_BYTES else size - lists
    whole = digest(path, size)
    log.info(
        "index %s: nlist %d, steps %d, oversampling %d, recall@%d %.3f, %.0f s, %.0f MB",
        kind, nlist, *effort, settings.recall_at, recall, time.perf_counter() - start, size / 1e6,
    )  # fmt: skip
    return {
        "kind": kind,
        "num_vectors": num,
        "num_indexed": index.ntotal,
        "dim": vectors.dim,
        "nlist": nlist,
        "steps": effort.steps,
        "oversampling": effort.oversampling,
        "recall": recall,
        "recall_at": settings.recall_at,
        "bytes_per_vector": size / max(1, index.ntotal),
        "index_bytes": size,
        "checked_bytes": checked,
        "checked_xxh3_128": whole if checked == size else digest(path, checked),
        "digests": {FILE: {"xxh3_128": whole}},
    }


def _with_content(vectors: Vectors, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return those rows of the ids, in their order, that are not all zero, and their ids."""
    ids = np.sort(ids)
    rows = np.require(vectors.rows(ids), np.float32, ["C", "W"])
    known = rows.any(axis=1)
    return (rows, ids) if known.all() else (rows[known], ids[known])


def _train(
    settings: Index,
    kind: str,
    vectors: Vectors,
    ids: np.ndarray,
    nlist: int,
    generator: np.random.Generator,
) -> Any:
    """Return an empty index, trained on rows of the vectors."""
    faiss, dim = import_faiss(), vectors.dim
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexIDMap(faiss.IndexFlatIP(dim))
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, LINKS, metric)
        graph.hnsw.efConstruction = CANDIDATES
        return faiss.IndexIDMap(graph)
    sample, _ = _with_content(vectors, ids)
    least = 256 if kind == "ivf_pq" else 1  # what a byte of a code can be
    if len(sample) < least:
        raise ValueError(
            f"retriever.index.kind={kind} needs at least {least} documents with content to train "
            f"on, got {len(sample)}; set retriever.index.kind=flat"
        )
    nlist = min(nlist, len(sample))
    log.info("index %s: training %d lists on %d vectors", kind, nlist, len(sample))
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(k_means(sample, nlist, generator))
    if kind == "ivf_flat":
        index = faiss.IndexIVFFlat(quantizer, dim, nlist, metric)
    else:
        index = faiss.IndexIVFPQ(quantizer, dim, nlist, settings.code_bytes(dim), 8, metric)
        index.pq.cp.seed, index.pq.cp.max_points_per_centroid = settings.seed, POINTS_PER_LIST
        index.pq.cp.min_points_per_centroid = 1  # without complaints
    index.train(sample)  # of the codes; the lists are there
    return index


def _add(
    index: Any, table: Tensor | None, vectors: Vectors, held_out: np.ndarray, exact: Exact
) -> None:
    """Add all rows that have content and are not held out, and compare them with the queries."""
    first = 0
    with progress_bar("indexing", len(vectors)) as progress:
        [task] = progress.tasks
        for block in vectors.blocks():
            ids = np.arange(first, first + len(block))
            kept = block.any(axis=1) & ~np.isin(ids, held_out)
            rows = np.ascontiguousarray(block[kept], dtype=np.float32)
            _add_rows(index, table, rows, ids[kept])
            exact.add(rows)
            first += len(block)
            rate = f"{first / max(task.elapsed or 0, 1e-3):,.0f} vectors/s"
            progress.update(task.id, completed=first, rate=rate)
    assert first == len(vectors)


def _add_rows(index: Any, table: Tensor | None, rows: np.ndarray, ids: np.ndarray) -> None:
    """Add rows; of an inverted file, whose centroids the table holds, to lists found by torch."""
    if table is None:
        index.add_with_ids(rows, ids)
    elif len(rows):
        swig_ptr = import_faiss().swig_ptr
        lists = closest(rows, table)
        index.add_core(len(rows), swig_ptr(rows), swig_ptr(ids), swig_ptr(lists))


def _tune(
    settings: Index, index: Any, kind: str, vectors: Vectors, exact: Exact
) -> tuple[Effort, float]:
    """Return the effort that reaches the recall, and the recall that was measured with it."""
    k = min(settings.recall_at, index.ntotal)
    half = len(exact.queries) // 2
    if kind == "flat":
        return Effort(0, 0), 1.0
    if half == 0 or k == 0:
        raise ValueError(
            f"retriever.index.kind={kind} needs at least 8 documents with content to measure its "
            f"recall, the pool has {index.ntotal}; set retriever.index.kind=flat"
        )
    nearest_exact = np.partition(exact.similarities, -k, axis=1)[:, -k:]

    def recalls_of(effort: Effort, part: slice) -> np.ndarray:
        found = nearest(index, kind, vectors, effort, exact.queries[part], k)
        return recalls(found.similarities, nearest_exact[part])

    tuning, measuring, target = slice(0, half), slice(half, None), settings.min_recall
    if kind == "hnsw":
        last = min(index.ntotal, MOST_STEPS * k)
        effort = Effort(
            smallest(lambda n: recalls_of(Effort(n, 0), tuning), target, min(k, last), last), 0
        )
    elif kind == "ivf_flat":
        effort = Effort(
            smallest(lambda n: recalls_of(Effort(n, 0), tuning), target, 1, index.nlist), 0
        )
    else:  # a quarter of what may be missed is for compression: candidates cost less than lists
        most = MOST_OVERSAMPLING
        nprobe = smallest(
            lambda n: recalls_of(Effort(n, most), tuning), (1 + 3 * target) / 4, 1, index.nlist
        )
        effort = Effort(
            nprobe, smallest(lambda n: recalls_of(Effort(nprobe, n), tuning), target, 1, most)
        )
    recall = float(recalls_of(effort, measuring).mean())
    _warn(settings, index, kind, effort, recall)
    return effort, recall


def _warn(settings: Index, index: Any, kind: str, effort: Effort, recall: float) -> None:
    if recall < settings.min_recall:
        remedy = (
            f"retriever.index.pq_bytes={2 * settings.pq_bytes} or retriever.index.kind=ivf_flat"
            if kind == "ivf_pq"
            else "retriever.index.kind=ivf_flat or flat"
        )
        log.warning(
            "index %s reaches recall@%d %.3f, less than retriever.index.min_recall=%s; set %s",
            kind, settings.recall_at, recall, settings.min_recall, remedy,
        )  # fmt: skip
    if kind.startswith("ivf") and effort.steps > max(1, MUCH * index.nlist):
        log.warning(
            "a search reads %.0f %% of the lists to reach its recall: these vectors hardly form "
            "clusters, and retriever.index.kind=flat may be as fast",
            100 * effort.steps / index.nlist,
        )
