"""The pool of a corpus: a table of its documents, and their text from where it lies."""

import functools
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from ssae.artifact.store import Artifact
from ssae.corpus.base import Corpus, short_fingerprint
from ssae.corpus.part import Part
from ssae.pool.blocks import find_blocks


class Pool:
    """The documents of a corpus artifact's pool, numbered from 0; the table is memory-mapped.

    Args:
        artifact: made by `read_pool`.
        corpus: that it was made of: where the text lies.
    """

    def __init__(self, artifact: Artifact, corpus: Corpus) -> None:
        self.artifact, self.corpus = artifact, corpus
        with pyarrow.memory_map(str(artifact.path / "catalogue.arrow")) as file:
            self._table = pyarrow.ipc.open_file(file).read_all()
        self._parts: Sequence[Part] | None = None
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._table)

    def column(self, name: str) -> np.ndarray:
        """Return part, block, offset, row, fingerprint or num_characters of every document."""
        if name not in self._columns:  # joining its pieces copies it
            self._columns[name] = self._table[name].to_numpy()
        return self._columns[name]

    def sources(self, ids: np.ndarray | None = None) -> list[str]:
        """Return the sources of all documents, or of those with these numbers."""
        sources = self._table["source"]
        return (sources if ids is None else sources.take(pyarrow.array(ids))).to_pylist()

    def in_subdomain(self) -> np.ndarray | None:
        """Return which documents belong to the subdomain (num,) bool; None without labels."""
        if self.corpus.subdomain_source is None:
            return None
        unique = self._table["source"].unique()
        truth = self.corpus.in_subdomain(unique.to_pylist())
        assert truth is not None
        places: Any = pyarrow.compute.call_function(
            "index_in", [self._table["source"]], pyarrow.compute.SetLookupOptions(unique)
        )
        return truth[places.to_numpy()]

    @functools.cached_property
    def block_slices(self) -> list[tuple[tuple[int, int], slice]]:
        """Return ((part, block), its documents' numbers), in order."""
        part, block = self.column("part"), self.column("block")
        if not len(part):
            return []
        ends = np.flatnonzero((np.diff(part) != 0) | (np.diff(block) != 0)) + 1
        starts = [0, *ends.tolist()]
        stops = [*ends.tolist(), len(part)]
        return [
            ((int(part[a]), int(block[a])), slice(a, b)) for a, b in zip(starts, stops, strict=True)
        ]

    def texts(self) -> Iterator[str]:
        """Yield every document's text, in order: one pass over where it lies."""
        ids = np.arange(len(self))
        part = self.column("part")
        for number in np.unique(part).tolist():
            yield from self._texts_of(number, ids[part == number])

    def fetch(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the texts of the documents with these numbers, in their order.

        Raises:
            ValueError: a file is no longer what it was when the pool was read.
        """
        ids = np.asarray(ids, dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        parts = self.column("part")[ids[order]]
        found: list[str] = [""] * len(ids)
        for number in np.unique(parts).tolist():
            places = order[parts == number]
            for place, text in zip(places, self._texts_of(number, ids[places]), strict=True):
                found[place] = text
        return found

    def _texts_of(self, part: int, ids: np.ndarray) -> Iterator[str]:
        """Yield the texts of ascending numbers, all of one part."""
        if self.corpus.keeps_text:
            yield from self._stored(part, ids)
            return
        if self._parts is None:
            self._parts = list(self.corpus.parts())
        rows = self.column("row")[ids]
        # The same number twice is one row of the part, read once.
        unique = [int(row) for row, _ in groupby(rows)]
        counts = [len(list(same)) for _, same in groupby(rows)]
        prints = self.column("fingerprint")[ids]
        done = 0
        there = self._parts[part].pick(unique) if part < len(self._parts) else []
        for document, count in zip(there, counts, strict=False):
            text = document["text"]
            if short_fingerprint(text) != int(prints[done]):
                break
            done += count
            yield from [text] * count
        if done < len(ids):
            raise ValueError(
                f"part {part} of corpus.pool has changed since it was read (document "
                f"{rows[done]} is another or gone); put the old one back, or read the pool again: "
                f"rm -r {self.artifact.path}"
            )

    def _stored(self, part: int, ids: np.ndarray) -> Iterator[str]:
        files = self._files
        blocks, offsets = self.column("block")[ids], self.column("offset")[ids]
        for block in np.unique(blocks).tolist():
            table = pyarrow.parquet.read_table(files[part, block], columns=["text"])
            wanted = pyarrow.array(offsets[blocks == block])
            yield from table["text"].take(wanted).to_pylist()

    @functools.cached_property
    def _files(self) -> dict[tuple[int, int], Path]:
        return find_blocks(self.artifact.path / "blocks", ".parquet")
