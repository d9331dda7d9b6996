"""A random sample of rows: a stream harvests it to know scale and statistics before it starts."""

from pathlib import Path
from typing import Any

import numpy as np

from ssae.activation.lanes import sample_rows
from ssae.activation.rows import Rows
from ssae.artifact.store import Artifact, build
from ssae.study import Study


def sample(study: Study, tokenised: Artifact, num_tokens: int) -> Artifact:
    """Return random rows of an artifact of `tokenise`, in the same format and order.

    Args:
        study: names the seed.
        tokenised: the rows to draw from.
        num_tokens: of text, at least; where there are no more, all rows are the sample.
    """
    rows = Rows(tokenised)
    if rows.num_tokens <= num_tokens:
        return tokenised
    inputs = {"rows": tokenised, "num_tokens": num_tokens, "seed": study.seed, "format": 1}

    def make(folder: Path) -> dict[str, Any]:
        return write_sample(rows, sample_rows(rows, num_tokens, study.seed), folder)

    return build(study.artifacts, "sample", inputs, make)


def write_sample(rows: Rows, row_ids: np.ndarray, folder: Path) -> dict[str, Any]:
    """Write the rows at `row_ids` as activation/rows.py says; return the manifest's entries."""
    batches = [rows.batch(row_ids[[i]]) for i in range(len(row_ids))]
    input_ids, document_ids, text = (
        np.concatenate([np.asarray(column[0]) for column in columns])
        for columns in zip(*((b.input_ids, b.document_ids, b.text) for b in batches), strict=True)
    )
    lengths, text_tokens = rows.lengths[row_ids], rows.text_tokens[row_ids]
    ends = np.cumsum(lengths, dtype=np.int64)
    arrays = {
        "input_ids": input_ids.astype(np.int32),
        "document_ids": document_ids,
        "row_starts": ends - lengths,
        "lengths": lengths,
        "text_tokens": text_tokens,
        "token_counts": np.bincount(input_ids[text], minlength=len(rows.token_counts)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {
        "num_rows": len(row_ids),
        "num_tokens": int(text_tokens.sum()),
        "num_special": int(lengths.sum() - text_tokens.sum()),
        "longest": int(lengths.max()),
        "num_documents": rows.num_documents,
        "special_ids": rows.artifact.manifest["special_ids"],
    }
