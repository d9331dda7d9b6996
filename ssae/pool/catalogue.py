"""The catalogue of a corpus: what its pool holds and where, and seeds and tests in full.

Made of the blocks of one pass:

    blocks/00003_00007.parquet      row, source, fingerprint, num_characters (and text, where the
                                    corpus keeps it)
    held_out/00003_00007.parquet    split, text, source
    sampled/00003_00007.parquet     fingerprint, text, source of few (not where text is kept)

Sealed as the corpus artifact:

    catalogue.arrow     a row for each document of the pool, in order: part, block, offset (its row
                        in what is made of the block), row, source, fingerprint, num_characters
    blocks/, held_out/  only where the corpus keeps text
    sample/             SAMPLE documents of the pool at random, to look at: those of the lowest
                        fingerprints (a datasets folder: text, source)
    seeds/, subdomain_test/, general_test/      likewise
    manifest.json       counts, of what was left out too
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet

from ssae.artifact.replace import replacing
from ssae.corpus.base import FEATURES, Corpus, fingerprint
from ssae.corpus.part import Document
from ssae.pool.blocks import Block, BlockWriter, find_blocks
from ssae.pool.splits import Split, no_document, own_splits, small_splits

BLOCK = pyarrow.schema(
    {
        "row": pyarrow.int64(),
        "source": pyarrow.string(),
        "fingerprint": pyarrow.uint64(),
        "num_characters": pyarrow.int32(),
    }
)
HELD_OUT = pyarrow.schema(dict.fromkeys(("split", "text", "source"), pyarrow.string()))
SAMPLED = pyarrow.schema(
    {"fingerprint": pyarrow.uint64(), "text": pyarrow.string(), "source": pyarrow.string()}
)
SAMPLE = 1000
KINDS = ("blocks", "held_out", "sampled")
PLACE = dict.fromkeys(("part", "block", "offset"), pyarrow.int32())
CATALOGUE = pyarrow.unify_schemas([pyarrow.schema(PLACE), BLOCK])


class CatalogueWriter(BlockWriter):
    """Makes a corpus.

    Args:
        folder: of the artifact, in the making.
        corpus: says what is kept.
    """

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.folder, self.corpus = folder, corpus
        self._own: dict[str, Split] = {}
        self._num_documents = 0
        self._kinds = ("blocks", "held_out") if corpus.keeps_text else KINDS
        for kind in self._kinds:
            (folder / kind).mkdir(exist_ok=True)

    def check(self) -> None:
        """Read seeds and tests that have text of their own.

        Raises:
            ValueError: one is empty, or a seed is also in a test.
        """
        self._own = own_splits(self.corpus)

    def done(self) -> dict[tuple[int, int], Path]:
        """Return the blocks that are there."""
        return find_blocks(self.folder / "blocks", ".parquet")

    def write(self, block: Block) -> None:
        """Write the files of one block."""
        columns: dict[str, Any] = {
            "row": [entry.row for entry in block.pool],
            "source": [entry.source for entry in block.pool],
            "fingerprint": [entry.fingerprint for entry in block.pool],
            "num_characters": [len(entry.text) for entry in block.pool],
        }
        schema = BLOCK
        if self.corpus.keeps_text:
            columns["text"] = [entry.text for entry in block.pool]
            schema = schema.append(pyarrow.field("text", pyarrow.string()))
        # How many were read says how many were too short or too long.
        schema = schema.with_metadata({"num_read": str(block.num_read - len(block.held_out))})
        held_out = [
            {"split": split, "text": entry.text, "source": entry.source}
            for split, entry in block.held_out
        ]
        # The blocks last: they say that the block is done.
        if held_out:
            self._write("held_out", block, pyarrow.Table.from_pylist(held_out, schema=HELD_OUT))
        sample = self._sampled(block)
        if sample:
            self._write("sampled", block, pyarrow.Table.from_pylist(sample, schema=SAMPLED))
        self._write("blocks", block, pyarrow.table(columns, schema=schema))

    def seal(self) -> dict[str, Any]:
        """Make the corpus of its blocks; return the manifest's entries.

        Left out of the pool: exact repeats (up to case and white space), seeds and test documents.

        Raises:
            ValueError: a split is empty, or a seed is also in a test.
        """
        folder, corpus = self.folder, self.corpus
        blocks = find_blocks(folder / "blocks", ".parquet")
        splits = small_splits(self._own, _held_out(folder), corpus)
        taken = {fingerprint(d["text"]) for documents in splits.values() for d in documents}
        held_back = np.array(sorted(int(key[:16], 16) for key in taken), dtype=np.uint64)
        fingerprints = [_fingerprints(file) for file in blocks.values()]
        counts: dict[str, Any]
        kept, counts = _kept(np.concatenate([*fingerprints, np.empty(0, np.uint64)]), held_back)
        num_read = sum(
            int(pyarrow.parquet.read_schema(file).metadata[b"num_read"]) for file in blocks.values()
        )
        counts["num_short_or_long"] = num_read - len(kept)
        if not len(kept):
            raise no_document("pool", corpus)
        if not kept.any():
            raise ValueError("every document of corpus.pool is also a seed or a test document")
        with_text = folder / ("blocks" if corpus.keeps_text else "sampled")
        splits["sample"] = _sample(with_text, np.concatenate(fingerprints)[kept])
        num_characters = start = 0
        path = str(folder / "catalogue.arrow")
        with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_file(file, CATALOGUE) as writer:
            for ((part, number), block), own in zip(blocks.items(), fingerprints, strict=True):
                chosen = np.flatnonzero(kept[start : start + len(own)])
                start += len(own)
                rows = pyarrow.parquet.read_table(block, columns=BLOCK.names).take(chosen)
                place = [np.full(len(chosen), part), np.full(len(chosen), number), chosen]
                columns = [pyarrow.array(values, pyarrow.int32()) for values in place]
                writer.write_table(pyarrow.table([*columns, *rows.columns], schema=CATALOGUE))
                num_characters += int(rows["num_characters"].to_numpy().sum())
        counts["pool"] = {"num_documents": int(kept.sum()), "num_characters": num_characters}
        for name, documents in splits.items():
            datasets.Dataset.from_list(documents, features=FEATURES).save_to_disk(folder / name)
            characters = sum(len(document["text"]) for document in documents)
            counts[name] = {"num_documents": len(documents), "num_characters": characters}
        if not corpus.keeps_text:
            # Blocks first: whatever else is missing of one that is gone is made again with it.
            for kind in self._kinds:
                shutil.rmtree(folder / kind)
        return counts

    def _sampled(self, block: Block) -> list[dict[str, Any]]:
        """Return what may be of the sample; nothing where all text is kept.

        None of the SAMPLE lowest fingerprints of the whole pool is above the bound (of a pool of
        repeats some are), and what is kept grows with the pool's logarithm only.
        """
        if "sampled" not in self._kinds:
            return []
        self._num_documents += len(block.pool)
        bound = 2**64 * min(1, 2 * SAMPLE / max(1, self._num_documents))
        return [entry._asdict() for entry in block.pool if entry.fingerprint < bound]

    def _write(self, kind: str, block: Block, table: pyarrow.Table) -> None:
        with replacing(self.folder / kind / f"{block.name}.parquet") as path:
            pyarrow.parquet.write_table(table, path)


def _sample(folder: Path, fingerprints: np.ndarray) -> list[Document]:
    """Return the documents of the SAMPLE lowest fingerprints, lowest first.

    Args:
        folder: of files with fingerprint, text and source.
        fingerprints: of the pool.
    """
    num = min(SAMPLE, len(fingerprints))
    lowest = np.sort(np.partition(fingerprints, num - 1)[:num])
    found: dict[int, Document] = {}
    for file in find_blocks(folder, ".parquet").values():
        table = pyarrow.parquet.read_table(file, columns=SAMPLED.names)
        rows = np.flatnonzero(np.isin(table["fingerprint"].to_numpy(), lowest))
        for row in table.take(rows).to_pylist():
            key = row.pop("fingerprint")
            found.setdefault(key, row)
    return [found[key] for key in lowest.tolist() if key in found]


def _kept(fingerprints: np.ndarray, held_back: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Return which documents stay (num,) bool, the first of equal ones, and what does not."""
    places = np.searchsorted(held_back, fingerprints).clip(max=max(0, len(held_back) - 1))
    is_held_back = (
        held_back[places] == fingerprints if len(held_back) else np.zeros(len(fingerprints), bool)
    )
    is_first = np.zeros(len(fingerprints), bool)
    is_first[np.unique(fingerprints, return_index=True)[1]] = True
    kept = is_first & ~is_held_back
    counts = {
        "num_held_back": int(is_held_back.sum()),
        "num_repeats": int((~is_first & ~is_held_back).sum()),
    }
    return kept, counts


def _fingerprints(file: Path) -> np.ndarray:
    return pyarrow.parquet.read_table(file, columns=["fingerprint"])["fingerprint"].to_numpy()


def _held_out(folder: Path) -> Iterator[tuple[str, Document]]:
    for file in find_blocks(folder / "held_out", ".parquet").values():
        for row in pyarrow.parquet.read_table(file).to_pylist():
            yield row["split"], {"text": row["text"], "source": row["source"]}
