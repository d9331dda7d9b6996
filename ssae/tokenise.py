"""Tokenise documents once and cut them into rows: what harvest, stream and evaluate read.

Text is read in slices and token ids are appended to files, so that memory does not grow with the
corpus. The files are described in activation/rows.py.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ssae.activation.rows import cut, separator_id
from ssae.artifact.store import Artifact, build
from ssae.language_model.frozen import LanguageModel
from ssae.process.progress import progress_bar, token_rate
from ssae.study import Study

log = logging.getLogger(__name__)

SLICE_DOCUMENTS, SLICE_CHARACTERS = 256, 2**20
"""What the tokenizer gets at a time, at most; a longer document is a slice of its own."""
WRITTEN_TOKENS = 2**18
"""Tokens that are collected before they go to the files."""


def tokenise(
    study: Study, documents: Artifact, split: str = "documents", max_tokens: int | None = None
) -> Artifact:
    """Return the rows of the documents; see `ssae.activation.rows.Rows`.

    Args:
        study: names model, context length, bos policy and packing.
        documents: an artifact of `retrieve`, or of a corpus.
        split: the folder of the documents inside the artifact.
        max_tokens: of text, first documents first; null takes all of it.

    Raises:
        ValueError: the documents hold no token of text, or one the model does not know.
    """
    lm = study.language_model
    inputs = {
        "documents": documents,
        "split": split,
        "max_tokens": max_tokens,
        "tokenizer": lm.tokenizer_identity(),
        "special_ids": lm.special_ids.tolist(),
        "vocab_size": lm.vocab_size,
        "context_length": study.context_length,
        "bos": study.bos,
        "packing": study.packing,
        "format": 1,
    }

    def make(folder: Path) -> dict[str, Any]:
        if study.packing == "packed" and not lm.is_causal:
            log.warning(
                "%s is an encoder: in packed rows it reads across documents; "
                "set packing=documents to keep them apart",
                lm.name,
            )
        texts = datasets.Dataset.load_from_disk(documents.path / split).select_columns("text")
        return write_rows(study, texts, folder, max_tokens)

    return build(study.artifacts, "tokenise", inputs, make)


def write_rows(
    study: Study, texts: datasets.Dataset, folder: Path, max_tokens: int | None
) -> dict[str, Any]:
    """Write the rows of `texts`, a dataset with the column text; return the manifest's entries."""
    lm = study.language_model
    separator = separator_id(lm.tokenizer, study.bos)
    writer = _Writer(folder, lm)
    with progress_bar("tokenising", total=1.0) as progress:
        [task] = progress.tasks
        documents = encode(lm.tokenizer, texts, max_tokens)
        for ids, row_documents in cut(
            documents, study.context_length, separator, study.bos, study.packing
        ):
            if writer.add(ids, row_documents):
                share = (row_documents[-1] + 1) / len(texts)
                if max_tokens is not None:
                    share = max(share, writer.num_tokens / max_tokens)
                rate = token_rate(task, writer.num_tokens)
                progress.update(task.id, completed=share, rate=rate)
        progress.update(task.id, completed=1.0)
    return writer.close() | {"num_documents": len(texts), "language_model": lm.name}


def encode(
    tokenizer: Any, texts: Any, max_tokens: int | None = None
) -> Iterator[tuple[int, list[int]]]:
    """Yield (document, token ids) until the texts, or `max_tokens` tokens, are used up.

    Args:
        tokenizer: of transformers; adds nothing to the text.
        texts: a dataset with the column text.
        max_tokens: cuts inside a document.
    """
    document, left = 0, max_tokens
    for slice_ in _slices(texts):
        encoded = tokenizer(
            slice_, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        for tokens in encoded:
            if left is not None:
                tokens = tokens[:left]
                left -= len(tokens)
            yield document, tokens
            document += 1
            if left == 0:
                return


def _slices(texts: Any) -> Iterator[list[str]]:
    for start in range(0, len(texts), SLICE_DOCUMENTS):
        pending: list[str] = []
        for text in texts[start : start + SLICE_DOCUMENTS]["text"]:
            if pending and sum(map(len, pending)) + len(text) > SLICE_CHARACTERS:
                yield pending
                pending = []
            pending.append(text)
        yield pending


class _Writer:
    """Appends rows to the files of activation/rows.py and counts what the manifest tells."""

    def __init__(self, folder: Path, lm: LanguageModel) -> None:
        self.lm = lm
        self.special = np.isin(np.arange(lm.vocab_size), lm.special_ids.numpy())
        self.token_counts = np.zeros(lm.vocab_size, dtype=np.int64)
        self.num_rows = self.num_row_tokens = self.num_tokens = self.longest = 0
        self.input_ids = _Column(folder / "input_ids.npy", np.int32)
        self.document_ids = _Column(folder / "document_ids.npy", np.int32)
        self.row_starts = _Column(folder / "row_starts.npy", np.int64)
        self.lengths = _Column(folder / "lengths.npy", np.int32)
        self.text_tokens = _Column(folder / "text_tokens.npy", np.int32)
        self._clear()

    def add(self, ids: list[int], documents: list[int]) -> bool:
        """Add a row; return whether it made the rows collected so far go to the files."""
        self.pending_ids += ids
        self.pending_documents += documents
        self.pending_lengths.append(len(ids))
        full = len(self.pending_ids) >= WRITTEN_TOKENS
        if full:
            self._write()
        return full

    def close(self) -> dict[str, Any]:
        """Finish the files and return the manifest's entries."""
        if self.pending_ids:
            self._write()
        for column in (
            self.input_ids, self.document_ids, self.row_starts, self.lengths, self.text_tokens
        ):  # fmt: skip
            column.close()
        if self.num_tokens == 0:
            raise ValueError("nothing to harvest: the documents hold no token of text")
        np.save(self.input_ids.path.with_name("token_counts.npy"), self.token_counts)
        return {
            "num_rows": self.num_rows,
            "num_tokens": self.num_tokens,
            "num_special": self.num_row_tokens - self.num_tokens,
            "longest": self.longest,
            "special_ids": self.special.nonzero()[0].tolist(),
        }

    def _write(self) -> None:
        ids = np.asarray(self.pending_ids, dtype=np.int32)
        lengths = np.asarray(self.pending_lengths, dtype=np.int32)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        if ids.max() >= len(self.special):
            raise ValueError(
                f"the tokenizer gives id {ids.max()} and {self.lm.name} knows {len(self.special)} "
                "token types; set language_model.name=<a model with its own tokenizer>"
            )
        text = ~self.special[ids]
        self.input_ids.append(ids)
        self.document_ids.append(self.pending_documents)
        self.row_starts.append(self.num_row_tokens + starts)
        self.lengths.append(lengths)
        self.text_tokens.append(np.add.reduceat(text, starts, dtype=np.int32))
        self.token_counts += np.bincount(ids[text], minlength=len(self.special))
        self.num_rows += len(lengths)
        self.num_row_tokens += len(ids)
        self.num_tokens += int(text.sum())
        self.longest = max(self.longest, int(lengths.max()))
        self._clear()

    def _clear(self) -> None:
        self.pending_ids: list[int] = []
        self.pending_documents: list[int] = []
        self.pending_lengths: list[int] = []


class _Column:
    """A .npy file of one dimension that grows; numpy leaves room in the header for its length."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.path, self.dtype, self.size = path, np.dtype(dtype), 0
        self.file = path.open("wb")
        self._write_header()

    def append(self, values: Any) -> None:
        values = np.asarray(values, dtype=self.dtype)
        self.file.write(values.data)
        self.size += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self.file, header)
