"""Rows of token ids: what the language model reads, cut from the documents' text.

    packing=packed      [bos] w w w w [bos] w w w | [bos] w w w w w w ...    document 0, 1, 1 ...
    packing=documents   [bos] w w w w | [bos] w w w w w w w | [bos] w w      document 0 | 1 | 1

Every document starts with the beginning-of-sequence token; with bos=row every row does too, so that
models which put their attention sink on the first token find it there. bos=none adds nothing. A
tokenizer without a bos token lends its cls token (encoders) or its eos token; one without any of
them adds nothing.

The artifact of `tokenise`, whose arrays are mapped, not read:

    input_ids.npy      (num_row_tokens,) int32, the rows one after the other
    document_ids.npy   (num_row_tokens,) int32, the document of each token
    row_starts.npy     (num_rows,) int64, where each row begins
    lengths.npy        (num_rows,) int32, tokens of each row, added ones included
    text_tokens.npy    (num_rows,) int32, tokens of text of each row
    token_counts.npy   (vocab_size,) int64, how often each token type is text
    manifest.json      num_rows, num_tokens, num_special, longest, num_documents, special_ids
"""

import mmap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.artifact.store import Artifact

POLICIES = ("row", "document", "none")
COUNTED_TOKENS = 2**22
"""Of a pass over all tokens at a time."""
PACKINGS = ("packed", "documents")
NO_DOCUMENT = -1
"""The document of padding."""


class Batch(NamedTuple):
    """Rows side by side, padded on the right to the longest of them."""

    input_ids: Tensor
    """(num_rows, longest) int64; 0 where padded."""
    attention_mask: Tensor | None
    """(num_rows, longest) int64, 0 where padded; None when nothing is."""
    document_ids: Tensor
    """(num_rows, longest) int32: index of the document each token comes from; -1 where padded."""
    text: Tensor
    """(num_rows, longest) bool: the tokens that are harvested, neither special nor padding."""


class Rows:
    """The rows of a `tokenise` artifact, memory-mapped.

    Opening costs no more for a large one; `forget` gives the pages that were read back.
    """

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self.num_rows: int = manifest["num_rows"]
        self.num_tokens: int = manifest["num_tokens"]
        """Tokens of text: those that are harvested."""
        self.num_documents: int = manifest["num_documents"]
        self._input_ids = self._open("input_ids")
        self._document_ids = self._open("document_ids")
        self._starts = self._open("row_starts")
        self.lengths = self._open("lengths")
        """(num_rows,) int32, added tokens included."""
        self.text_tokens = self._open("text_tokens")
        """(num_rows,) int32, tokens of text."""
        self.token_counts = torch.from_numpy(np.array(self._open("token_counts")))
        """(vocab_size,) int64, of tokens of text."""
        self._special = np.zeros(len(self.token_counts), dtype=bool)
        self._special[manifest["special_ids"]] = True

    def __len__(self) -> int:
        return self.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.artifact,)  # a process that is sent rows maps them itself

    def batch(self, row_ids: np.ndarray | Tensor) -> Batch:
        """Return the rows at `row_ids` (num_rows,), in that order."""
        chosen = np.asarray(row_ids)
        lengths = self.lengths[chosen]
        inside = np.arange(lengths.max()) < lengths[:, None]
        # Padding reads some token of the row, so that every index is there.
        where = self._starts[chosen][:, None] + np.where(inside, np.arange(lengths.max()), 0)
        ids = np.where(inside, self._input_ids[where], 0)
        documents = np.where(inside, self._document_ids[where], np.int32(NO_DOCUMENT))
        full = bool(inside.all())
        return Batch(
            torch.from_numpy(ids.astype(np.int64)),
            None if full else torch.from_numpy(inside.astype(np.int64)),
            torch.from_numpy(documents),
            torch.from_numpy(inside & ~self._special[ids]),
        )

    def row_documents(self) -> np.ndarray:
        """Return the document of each row (num_rows,), the first of a packed one."""
        return np.asarray(self._document_ids[self._starts])

    def document_counts(self) -> Tensor:
        """Return how many tokens of text each document has, (num_documents,) int64."""
        counts = np.zeros(self.num_documents, dtype=np.int64)
        for start in range(0, len(self._input_ids), COUNTED_TOKENS):
            some = slice(start, start + COUNTED_TOKENS)
            documents = self._document_ids[some][~self._special[self._input_ids[some]]]
            counts += np.bincount(documents, minlength=self.num_documents)
        return torch.from_numpy(counts)

    def forget(self) -> None:
        """Give the pages read so far back to the system: memory stays bounded in a long pass."""
        for array in (self._input_ids, self._document_ids):
            array.base.madvise(mmap.MADV_DONTNEED)

    def _open(self, name: str) -> Any:
        return np.load(self.artifact.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def batches_of(rows: Rows, row_ids: np.ndarray | Tensor, batch_tokens: int) -> list[np.ndarray]:
    """Return `row_ids` in groups whose padded size, num_rows * longest, fits `batch_tokens`.

    Rows of like length share a group, shortest first; rows of equal length stay in order. A row
    that is longer than `batch_tokens` is a group of its own.
    """
    chosen = np.asarray(row_ids)
    lengths = rows.lengths[chosen]
    order = np.argsort(lengths, kind="stable")
    chosen, sizes = chosen[order], lengths[order].tolist()
    groups, start = [], 0
    for stop in range(1, len(sizes) + 1):
        if stop == len(sizes) or (stop + 1 - start) * sizes[stop] > batch_tokens:
            groups.append(chosen[start:stop])
            start = stop
    return groups


def separator_id(tokenizer: Any, bos: str) -> int | None:
    """Return the token that starts documents. Id 0 is a token: only None means there is none."""
    if bos not in POLICIES:
        raise ValueError(f"bos must be one of {', '.join(POLICIES)}, got {bos!r}; set bos=row")
    if bos == "none":
        return None
    candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None), None)


def cut(
    encoded: Iterable[tuple[int, list[int]]],
    context_length: int,
    separator: int | None,
    bos: str,
    packing: str,
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield rows (token ids, documents of those tokens); no token is lost or moved.

    Args:
        encoded: (document, its token ids), in order.
        context_length: tokens of a row at most; packed rows all have it but the last.
        separator: what starts documents and rows; see `separator_id`.
        bos: row, document or none.
        packing: packed or documents.

    Raises:
        ValueError: context_length cannot hold a separator and a token.
    """
    if context_length < 2:
        raise ValueError(
            f"context_length must be at least 2, got {context_length}; set context_length=128"
        )
    ids: list[int] = []
    documents: list[int] = []
    for document, tokens in encoded:
        begun = False
        if ids and separator is not None:
            ids.append(separator)
            documents.append(document)
            begun = True
        start = 0
        while True:
            if len(ids) == context_length:
                yield ids, documents
                ids, documents = [], []
            if start == len(tokens):
                break
            if not ids and separator is not None and (bos == "row" or not begun):
                ids.append(separator)
                documents.append(document)
            begun = True
            piece = tokens[start : start + context_length - len(ids)]
            ids += piece
            documents += [document] * len(piece)
            start += len(piece)
        if packing == "documents" and ids:
            yield ids, documents
            ids, documents = [], []
    if ids:
        yield ids, documents
