"""What an index of many embeddings costs and finds, beside exact search, on synthetic vectors.

    python -m ssae.bench index
    python -m ssae.bench index --vectors 100_000 --kinds ivf_flat ivf_pq hnsw --structureless

build     seconds, also of CPU time on all cores, and the peak of resident memory of a process of
          its own; what it mapped of the vectors' file counts as well
recall    of the --recall-at closest documents, by 200 queries that were neither trained on nor
          indexed while it was measured
search    median time of 50 queries in one batch, for as many documents each, and of one query
          alone, in turns with flat, and with a product of numpy and a partial sort: FAISS compares
          few queries with many vectors more slowly than that

The vectors are like embeddings of text in what matters here, topics and few directions in each:

    x = unit(centre[t] + 0.8 * basis[t] z / sqrt(16) + 0.3 * noise),  z ~ N(0, 1) of 16 dimensions

with 2,000 topics t of Zipf-distributed sizes, centres and noise of norm about 1. --structureless
draws from N(0, 1) of all dimensions instead: no index can do much there, and no text is like that.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from ssae.index.ann import KINDS, Index
from ssae.index.backend import import_faiss
from ssae.index.build import build_index
from ssae.index.search import FILE, OpenIndex, open_index

BLOCK = 2**14
NUM_TOPICS, RANK, WITHIN, NOISE = 2000, 16, 0.8, 0.3
NUM_QUERIES = 50
SETTINGS = Index(
    kind="auto", exact_below=1_000_000, compress_above=10_000_000, min_recall=0.95, recall_at=100,
    pq_bytes=64, seed=0,
)  # fmt: skip


class HalfFile:
    """Vectors in a float16 file, which is mapped: (N, dim) numbers without a header."""

    def __init__(self, path: Path, dim: int) -> None:
        self.dim = dim
        self._rows = np.memmap(path, np.float16, "r").reshape(-1, dim)

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield them in order."""
        for start in range(0, len(self), BLOCK):
            yield _unit(self._rows[start : start + BLOCK].astype(np.float32))

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return some."""
        return _unit(self._rows[ids].astype(np.float32))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--vectors", type=int, default=1_000_000, help="how many")
    parser.add_argument("--dim", type=int, default=384, help="of each")
    kinds = [kind for kind in KINDS if kind not in ("auto", "flat")]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=["ivf_flat"])
    parser.add_argument("--recall-at", type=int, default=SETTINGS.recall_at, help="documents")
    parser.add_argument("--structureless", action="store_true", help="Gaussian, the worst case")
    parser.add_argument("--rounds", type=int, default=11, help="measurements of each search")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of everything")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for name, least in (("vectors", 1000), ("dim", 8), ("recall_at", 1), ("rounds", 1)):
        if getattr(arguments, name) < least:
            sys.exit(f"--{name.replace('_', '-')} must be at least {least}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f16"
        queries = _write(path, arguments.vectors, arguments.dim, arguments.structureless)
        found = [
            _build(path, arguments.dim, Path(folder) / kind, kind, arguments)
            for kind in ("flat", *arguments.kinds)
        ]
        _use(arguments.threads)
        vectors = HalfFile(path, arguments.dim)
        flat = open_index(Path(folder) / "flat", found[0], vectors)
        for row in found[1:]:
            other = open_index(Path(folder) / row["kind"], row, vectors)
            row |= _search_times(flat, other, queries, arguments.recall_at, arguments.rounds)
    Console(width=None if sys.stdout.isatty() else 110).print(_table(found, arguments))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def _write(path: Path, num: int, dim: int, structureless: bool) -> np.ndarray:
    """Write vectors; return NUM_QUERIES more, float32."""
    draw = _gaussian(dim) if structureless else _topics(dim)
    with path.open("wb") as file:
        for start in range(0, num, BLOCK):
            draw(min(BLOCK, num - start)).astype(np.float16).tofile(file)
    return draw(NUM_QUERIES)


def _gaussian(dim: int) -> Callable[[int], np.ndarray]:
    generator = np.random.default_rng(0)
    return lambda num: _unit(generator.standard_normal((num, dim), np.float32))


def _topics(dim: int) -> Callable[[int], np.ndarray]:
    """Return a function that draws vectors, as the equation above says."""
    generator = np.random.default_rng(0)
    centres = _unit(generator.standard_normal((NUM_TOPICS, dim), np.float32))
    bases = generator.standard_normal((NUM_TOPICS, RANK, dim), np.float32) / np.sqrt(dim)
    shares = 1 / np.arange(1, NUM_TOPICS + 1)
    shares /= shares.sum()

    def draw(num: int) -> np.ndarray:
        topics = generator.choice(NUM_TOPICS, num, p=shares)
        noise = generator.standard_normal((num, dim), np.float32) / np.sqrt(dim)
        x = centres[topics] + np.float32(NOISE) * noise
        z = generator.standard_normal((num, RANK), np.float32) / np.sqrt(RANK)
        for topic in np.unique(topics):
            rows = topics == topic
            x[rows] += np.float32(WITHIN) * (z[rows] @ bases[topic])
        return _unit(x)

    return draw


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _build(
    path: Path, dim: int, folder: Path, kind: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Build in a process of its own, whose memory is then that of building."""
    settings = dataclasses.replace(SETTINGS, kind=kind, recall_at=arguments.recall_at)
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        work = process.submit(_build_here, path, dim, folder, settings, arguments.threads)
        return work.result()


def _build_here(
    path: Path, dim: int, folder: Path, settings: Index, threads: int
) -> dict[str, Any]:
    _use(threads)
    start = time.perf_counter(), time.process_time()
    manifest = build_index(settings, HalfFile(path, dim), folder)
    seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    size = (folder / FILE).stat().st_size
    costs = {"build_s": seconds, "build_cpu_s": cpu, "peak_rss_gb": int(peak) / 1e6}
    return manifest | costs | {"file_gb": size / 1e9}


def _use(threads: int) -> None:
    threadpool_limits(threads)  # numpy's
    torch.set_num_threads(threads)
    import_faiss().omp_set_num_threads(threads)


def _search_times(
    flat: OpenIndex, other: OpenIndex, queries: np.ndarray, k: int, rounds: int
) -> dict[str, Any]:
    """Return the medians of all, in ms, and of how many times faster the other is."""
    rows, found = np.concatenate(list(flat.vectors.blocks())), {}
    searches = {
        "flat": lambda batch: flat.search(batch, k),
        "numpy": lambda batch: np.argpartition(batch @ rows.T, -k, axis=1)[:, -k:],
        "index": lambda batch: other.search(batch, k),
    }
    for name, batch in (("batch", queries), ("one", queries[:1])):
        taken: dict[str, list[float]] = {who: [] for who in searches}
        for turn in range(-1, rounds):  # one to warm up
            for who, search in searches.items():
                start = time.perf_counter()
                search(batch)
                if turn >= 0:
                    taken[who].append(1e3 * (time.perf_counter() - start))
        found |= {f"{name}_{who}_ms": statistics.median(ms) for who, ms in taken.items()}
        for who in ("flat", "numpy"):
            pairs = zip(taken[who], taken["index"], strict=True)
            found[f"{name}_times_{who}"] = [a / b for a, b in pairs]
    return found


def _table(found: list[dict[str, Any]], arguments: argparse.Namespace) -> Table:
    what = "structureless" if arguments.structureless else "topics"
    title = f"{arguments.vectors:,} x {arguments.dim}, {what}, {arguments.threads} threads"
    drawn = Table("", *(row["kind"] for row in found), title=title, title_justify="left")
    others = found[1:]
    for name, text in (
        ("lists", "{nlist:,}"),
        ("nprobe or efSearch", "{steps:,}"),
        ("candidates per result", "{oversampling}"),
        (f"recall@{arguments.recall_at}", "{recall:.3f}"),
        ("bytes per vector", "{bytes_per_vector:,.0f}"),
        ("build", "{build_s:,.0f} s"),
        ("  of all cores", "{build_cpu_s:,.0f} s"),
        ("peak RSS of building", "{peak_rss_gb:.1f} GB"),
    ):
        drawn.add_row(name, *(text.format(**row) for row in found))
    for batch, name in (("batch", f"{NUM_QUERIES} queries"), ("one", "1 query")):
        times = (f"{row[f'{batch}_index_ms']:,.1f} ms" for row in others)
        drawn.add_row(name, f"{others[0][f'{batch}_flat_ms']:,.1f} ms", *times)
        for who in ("flat", "numpy"):
            ratios = (_range(row[f"{batch}_times_{who}"]) for row in others)
            drawn.add_row(f"  times {who}", "", *ratios)
    return drawn


def _range(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"
