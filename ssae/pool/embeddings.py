"""Embeddings of the pool: float16 vectors in files of blocks, written in one pass, mapped after.

    00003_00007.npy    (num_documents of the block, dim) float16, rows as `offset` in the catalogue

float16 rounds a similarity by 1e-3 at most, and halves what a billion documents need.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssae.artifact.replace import replacing
from ssae.artifact.store import Artifact
from ssae.pool.blocks import Block, BlockWriter, find_blocks
from ssae.pool.pool import Pool

SUFFIX = ".npy"


class EmbeddingWriter(BlockWriter):
    """Makes embeddings.

    Args:
        folder: of the artifact, in the making.
        embed: maps texts to (num, dim) float32.
    """

    def __init__(self, folder: Path, embed: Callable[[Sequence[str]], np.ndarray]) -> None:
        self.folder, self.embed = folder, embed

    def done(self) -> dict[tuple[int, int], Path]:
        """Return the blocks that are there."""
        return find_blocks(self.folder, SUFFIX)

    def write(self, block: Block) -> None:
        """Embed one block and write its file.

        Raises:
            ValueError: a vector is not finite.
        """
        texts = [entry.text for entry in block.pool]
        vectors = unit_rows(self.embed(texts)) if texts else np.zeros((0, 0), np.float32)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(
                f"the embedding of document {block.pool[row].row} of part {block.part} is not "
                f"finite ({texts[row][:60]!r}); choose another embedder, e.g. "
                "retriever/embedder=tfidf"
            )
        with (
            replacing(self.folder / f"{block.name}{SUFFIX}") as path,
            path.open("wb") as file,
        ):
            np.save(file, vectors.astype(np.float16), allow_pickle=False)

    def seal(self) -> dict[str, Any]:
        """Return dim of the vectors; 0 if no block holds a document."""
        shapes = (
            np.load(file, mmap_mode="r", allow_pickle=False).shape for file in self.done().values()
        )
        return {"dim": next((dim for num, dim in shapes if num), 0)}


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return rows of norm 1; a row of zeros, a document without a known word, stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


class Embeddings:
    """The vectors of a pool's documents, unit or zero rows, in the pool's order.

    Args:
        artifact: the files.
        pool: whose documents they are.
    """

    def __init__(self, artifact: Artifact, pool: Pool) -> None:
        self.artifact, self.pool = artifact, pool
        self.dim: int = artifact.manifest["dim"]
        self._files = find_blocks(artifact.path, SUFFIX)
        self._offsets = pool.column("offset")
        self._starts = np.array([documents.start for _, documents in pool.block_slices])

    def __len__(self) -> int:
        return len(self.pool)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (num, dim) float32, all documents in order."""
        for key, documents in self.pool.block_slices:
            yield self._read(key)[self._offsets[documents]].astype(np.float32)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return (num, dim) float32 of the documents with these numbers."""
        ids = np.asarray(ids)
        found = np.empty((len(ids), self.dim), np.float32)
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        of_block = np.searchsorted(self._starts, ascending, side="right") - 1
        for block in np.unique(of_block).tolist():
            key, _ = self.pool.block_slices[block]
            first, last = np.searchsorted(of_block, [block, block + 1])
            found[order[first:last]] = self._read(key)[self._offsets[ascending[first:last]]]
        return found

    def _read(self, key: tuple[int, int]) -> np.ndarray:
        return np.load(self._files[key], mmap_mode="r", allow_pickle=False)
