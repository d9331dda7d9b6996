"""What a probe reads of documents: the mean of the activations over a document's tokens.

    pooled_i  = 1/N_i sum_t x_it                  over all N_i tokens of document i, added ones too
    latents_i = 1/N_i sum_t z_it                  over its tokens of text

A document that is longer than a row counts with all its rows. Padding does not count, on either
side. Since pooling is linear, an SAE where the probe reads is ablated by arithmetic alone; see
dictionary.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.activation.rows import Batch, Rows, batches_of
from ssae.language_model.frozen import LanguageModel
from ssae.process.progress import progress_bar, token_rate
from ssae.sae.base import SparseAutoencoder

Edit = Callable[[Tensor, Batch], Tensor]
"""Maps a module's output x (num_rows, longest, d_in) on a batch to what replaces it."""


class Site(NamedTuple):
    """An SAE and where it reads."""

    hookpoint: str
    sae: SparseAutoencoder


def pooled(lm: LanguageModel, input_ids: Tensor, attention_mask: Tensor, hookpoint: str) -> Tensor:
    """Return the mean (batch, d_in) of each row's activations, wherever its padding is.

    Rows are moved to the left first, so that models that count positions count them alike.

    Args:
        lm: the model.
        input_ids: (batch, length).
        attention_mask: (batch, length), 0 where padded.
        hookpoint: which module's output.

    Raises:
        ValueError: a row is padding only.
    """
    if not attention_mask.any(1).all():
        raise ValueError("every row must hold a token, got one of padding only; leave it out")
    order = attention_mask.ne(0).int().argsort(stable=True, dim=1, descending=True)
    mask = attention_mask.gather(1, order)
    x = lm.capture(input_ids.gather(1, order), hookpoint, mask)
    weights = mask.to(x)
    return torch.einsum("bld,bl->bd", x, weights) / weights.sum(1, keepdim=True)


class Pooled:
    """Sums over the tokens of documents, batch by batch.

    Args:
        num_documents: how many there are.
        d_in: width of the activations.
    """

    def __init__(self, num_documents: int, d_in: int) -> None:
        self.sums = torch.zeros(num_documents, d_in, dtype=torch.float64)
        self.counts = torch.zeros(num_documents, dtype=torch.float64)

    def add(self, x: Tensor, batch: Batch) -> None:
        """Add x (num_rows, longest, d_in) of a batch."""
        inside = batch.document_ids >= 0
        documents = batch.document_ids[inside].long()
        self.sums.index_add_(0, documents, x.detach()[inside.to(x.device)].cpu().double())
        self.counts += torch.bincount(documents, minlength=len(self.counts))

    def means(self) -> Tensor:
        """Return the means (num_documents, d_in), float32; zeros of a document without tokens."""
        return (self.sums / self.counts.clamp_min(1)[:, None]).float()


@torch.no_grad()
def represent(
    lm: LanguageModel,
    rows: Rows,
    hookpoint: str,
    batch_tokens: int,
    edits: Mapping[str, Edit] | None = None,
    name: str = "reading documents",
    documents: np.ndarray | None = None,
) -> Tensor:
    """Return the pooled activations (num_documents, d_in) of all rows, at one hookpoint.

    Args:
        lm: the model.
        rows: of the documents.
        hookpoint: where the probe reads.
        batch_tokens: of a forward pass.
        edits: {hookpoint: what is done to its output}.
        name: for the progress bar.
        documents: that are read, the others get zeros; null: all.
    """
    sums: Pooled | None = None
    row_ids = np.arange(rows.num_rows)
    if documents is not None:
        row_ids = row_ids[np.isin(rows.row_documents(), documents)]
    for batch in row_batches(rows, row_ids, batch_tokens, name):
        bound = {place: _on(edit, batch) for place, edit in (edits or {}).items()}
        x = lm.capture_spliced(batch.input_ids, hookpoint, bound, batch.attention_mask)
        sums = sums or Pooled(rows.num_documents, x.shape[2])
        sums.add(x, batch)
    assert sums is not None
    return sums.means()


def _on(edit: Edit, batch: Batch) -> Callable[[Tensor], Tensor]:
    return lambda x: edit(x, batch)


def row_batches(rows: Rows, row_ids: np.ndarray, batch_tokens: int, name: str) -> Iterator[Batch]:
    """Yield batches of rows of like length, with progress."""
    seen = 0
    with progress_bar(name, int(rows.text_tokens[row_ids].sum())) as progress:
        [task] = progress.tasks
        for chosen in batches_of(rows, row_ids, batch_tokens):
            batch = rows.batch(chosen)
            yield batch
            seen += int(batch.text.sum())
            progress.update(task.id, completed=seen, rate=token_rate(task, seen))
