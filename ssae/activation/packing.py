"""From documents to rows of token ids: tokenised, concatenated in order, cut to context_length.

    [bos] w w w w [bos] w w w | [bos] w w w w w w ...
    document 0 ...  document 1            (bos = "row")

Every document starts with the beginning-of-sequence token; with `bos="row"` every row does too, so
that models which put their attention sink on the first token find it there. `bos="none"` adds
nothing. A tokenizer without a bos token lends its eos token; one without either adds nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

POLICIES = ("row", "document", "none")


class Rows(NamedTuple):
    """Packed rows of equal length; the last batch may hold one shorter row."""

    input_ids: np.ndarray
    """(num_rows, length) int64 token ids."""
    document_ids: np.ndarray
    """(num_rows, length) int32: index of the document each token comes from."""


def separator_id(tokenizer: Any, bos: str) -> int | None:
    """Return the token that starts documents. Id 0 is a token: only None means there is none."""
    if bos not in POLICIES:
        raise ValueError(f"bos must be one of {', '.join(POLICIES)}, got {bos!r}; set bos=row")
    if bos == "none":
        return None
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    return tokenizer.eos_token_id


def pack(
    tokenizer: Any,
    texts: Sequence[str],
    context_length: int,
    bos: str,
    rows_per_batch: int,
    max_tokens: int | None = None,
) -> Iterator[Rows]:
    """Yield batches of packed rows until the texts, or `max_tokens` tokens of text, are used up.

    No token is lost: what is left at the end is one last, shorter row.

    Raises:
        ValueError: context_length cannot hold a separator and a token.
    """
    if context_length < 2:
        raise ValueError(
            f"context_length must be at least 2, got {context_length}; set context_length=128"
        )
    separator = separator_id(tokenizer, bos)
    ids: list[int] = []
    documents: list[int] = []
    used = 0
    capacity = rows_per_batch * context_length
    for start in range(0, len(texts), 256):
        encoded = tokenizer(texts[start : start + 256], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        for offset, tokens in enumerate(encoded):
            if max_tokens is not None:
                tokens = tokens[: max_tokens - used]
            used += len(tokens)
            document = start + offset
            if separator is not None and len(ids) % context_length:
                ids.append(separator)
                documents.append(document)
            _append(ids, documents, tokens, document, context_length, separator, bos)
            while len(ids) >= capacity:
                yield _rows(ids[:capacity], documents[:capacity], context_length)
                del ids[:capacity], documents[:capacity]
            if max_tokens is not None and used >= max_tokens:
                break
        if max_tokens is not None and used >= max_tokens:
            break
    full = len(ids) - len(ids) % context_length
    if full:
        yield _rows(ids[:full], documents[:full], context_length)
    if full < len(ids):
        yield _rows(ids[full:], documents[full:], len(ids) - full)


def _append(
    ids: list[int],
    documents: list[int],
    tokens: list[int],
    document: int,
    context_length: int,
    separator: int | None,
    bos: str,
) -> None:
    while tokens:
        at_row_start = len(ids) % context_length == 0
        new_document = not documents or documents[-1] != document
        if separator is not None and at_row_start and (bos == "row" or new_document):
            ids.append(separator)
            documents.append(document)
        room = context_length - len(ids) % context_length
        piece, tokens = tokens[:room], tokens[room:]
        ids += piece
        documents += [document] * len(piece)


def _rows(ids: list[int], documents: list[int], length: int) -> Rows:
    return Rows(
        np.asarray(ids, dtype=np.int64).reshape(-1, length),
        np.asarray(documents, dtype=np.int32).reshape(-1, length),
    )
