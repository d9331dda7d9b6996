"""The catalogue of a corpus: what its pool holds and where, and seeds and tests in full.

Made of the blocks of one pass:

    blocks/00003_00007.parquet      row, source, fingerprint, num_characters (and text, where the
                                    corpus keeps it)
    held_out/00003_00007.parquet    split, text, source
    sample/00003_00007.parquet      fingerprint, text, source of few

Sealed as the corpus artifact:

    catalogue.arrow     a row for each document of the pool, in order: part, block, offset (its row
                        in what is made of the block), row, source, fingerprint, num_characters
    blocks/             only where the corpus keeps text
    sample/             SAMPLE documents of the pool at random, to look at: those of the lowest
                        fingerprints (a datasets folder: text, source)
    seeds/, subdomain_test/, general_test/      likewise
    manifest.json       counts, of what was left out too
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet

from ssae.corpus.base import FEATURES, SPLITS, TESTS, Corpus, fingerprint, share_of_hash
from ssae.corpus.part import Document
from ssae.pool.blocks import Block, find_blocks, replacing

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
PLACE = dict.fromkeys(("part", "block", "offset"), pyarrow.int32())
CATALOGUE = pyarrow.unify_schemas([pyarrow.schema(PLACE), BLOCK])


class CatalogueWriter:
    """Writes the files of blocks.

    Args:
        folder: of the corpus artifact, in the making.
        keeps_text: whether the text is stored too.
    """

    def __init__(self, folder: Path, keeps_text: bool) -> None:
        self.folder, self.keeps_text = folder, keeps_text
        self._num_documents = 0
        for name in ("blocks", "held_out", "sample"):
            (folder / name).mkdir(exist_ok=True)

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
        if self.keeps_text:
            columns["text"] = [entry.text for entry in block.pool]
            schema = schema.append(pyarrow.field("text", pyarrow.string()))
        # How many were read says how many were too short or too long.
        schema = schema.with_metadata({"num_read": str(block.num_read - len(block.held_out))})
        held_out = [
            {"split": split, "text": entry.text, "source": entry.source}
            for split, entry in block.held_out
        ]
        self._num_documents += len(block.pool)
        # None of the SAMPLE lowest of the whole pool is above this (of a pool of repeats some are),
        # and what is kept grows with the pool's logarithm only.
        highest = 2**64 * min(1, 2 * SAMPLE / max(1, self._num_documents))
        sample = [entry._asdict() for entry in block.pool if entry.fingerprint < highest]
        # The blocks last: they say that the block is done.
        if held_out:
            self._write("held_out", block, pyarrow.Table.from_pylist(held_out, schema=HELD_OUT))
        if sample:
            self._write("sample", block, pyarrow.Table.from_pylist(sample, schema=SAMPLED))
        self._write("blocks", block, pyarrow.table(columns, schema=schema))

    def _write(self, kind: str, block: Block, table: pyarrow.Table) -> None:
        with replacing(self.folder / kind / f"{block.name}.parquet") as path:
            pyarrow.parquet.write_table(table, path)


def seal_catalogue(folder: Path, corpus: Corpus) -> dict[str, Any]:
    """Make a corpus of the blocks in its folder; return the manifest's entries.

    Left out of the pool: exact repeats (up to case and white space), seeds and test documents.

    Raises:
        ValueError: a split is empty, or a seed is also in a test.
    """
    blocks = find_blocks(folder / "blocks", ".parquet")
    splits = _small_splits(folder, corpus)
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
        raise _empty("pool", corpus)
    if not kept.any():
        raise ValueError("every document of corpus.pool is also a seed or a test document")
    splits["sample"] = _sample(folder, np.concatenate(fingerprints)[kept])
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
        shutil.rmtree(folder / "blocks")
    shutil.rmtree(folder / "held_out")
    return counts


def _sample(folder: Path, fingerprints: np.ndarray) -> list[Document]:
    """Return the documents of the SAMPLE lowest of the pool's fingerprints, lowest first."""
    found: dict[int, Document] = {}
    for file in find_blocks(folder / "sample", ".parquet").values():
        for row in pyarrow.parquet.read_table(file).to_pylist():
            document = {"text": row["text"], "source": row["source"]}
            found.setdefault(row["fingerprint"], document)
    shutil.rmtree(folder / "sample")
    num = min(SAMPLE, len(fingerprints))
    lowest = np.sort(np.partition(fingerprints, num - 1)[:num])
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


def check_own(corpus: Corpus) -> None:
    """Look at seeds and tests that have text of their own, before the hours that a pool may take.

    Raises:
        ValueError: one is empty, or a seed is also in a test.
    """
    _check_splits(_own_splits(corpus), corpus)


def _own_splits(corpus: Corpus) -> dict[str, dict[str, Document]]:
    """Return {split: {fingerprint: document}} of the splits that have text of their own."""
    found: dict[str, dict[str, Document]] = {}
    for name, documents in corpus.own_documents().items():
        own = found[name] = {}
        for document in documents:
            if len(document["text"]) >= corpus.min_characters:
                own.setdefault(fingerprint(document["text"]), document)
    return found


def _check_splits(found: Mapping[str, Mapping[str, Document]], corpus: Corpus) -> None:
    for name, documents in found.items():
        if not documents:
            raise _empty(name, corpus)
    for name in found.keys() & set(TESTS):
        shared = found.get("seeds", {}).keys() & found[name].keys()
        if shared:
            first = found["seeds"][min(shared)]["text"]
            raise ValueError(
                f"{len(shared)} seeds are also in {name} (first: {first[:60]!r}); a test on its "
                f"own seeds measures nothing: remove them from corpus.seeds or from corpus.{name}"
            )


def _small_splits(folder: Path, corpus: Corpus) -> dict[str, list[Document]]:
    """Return seeds and tests, each document once."""
    own = _own_splits(corpus)
    taken = {key for documents in own.values() for key in documents}
    found = {name: own.get(name, {}) for name in SPLITS[1:]}
    for split, document in _held_out(folder):
        key = fingerprint(document["text"])
        if key not in taken:  # a document of a file's own is held back from the pool already
            found[split].setdefault(key, document)
    _check_splits(found, corpus)
    splits = {name: list(documents.values()) for name, documents in found.items()}
    for name in TESTS:
        # By hash, so that the first documents of a test split are a fair sample of it.
        splits[name].sort(key=lambda document: share_of_hash(document["text"]))
    return splits


def _held_out(folder: Path) -> Iterator[tuple[str, Document]]:
    for file in find_blocks(folder / "held_out", ".parquet").values():
        for row in pyarrow.parquet.read_table(file).to_pylist():
            yield row["split"], {"text": row["text"], "source": row["source"]}


def _empty(split: str, corpus: Corpus) -> ValueError:
    longest = corpus.max_characters
    limit = "" if split != "pool" or longest is None else f" and at most {longest}"
    return ValueError(
        f"corpus split {split!r} has no document of at least {corpus.min_characters}{limit} "
        f"characters; check corpus.{split} or lower corpus.min_characters"
    )
