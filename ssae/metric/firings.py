"""Every firing of a set of tokens, kept sparsely: what the measures of concepts are computed from.

A subclass overrides `measure` alone. Several of them measure one table: the firings of an SAE are
stored and sorted once.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ssae.sae.sparse import SparseLatents


class FiringTable(NamedTuple):
    """Firings sorted by latent, and within a latent by document."""

    offsets: np.ndarray
    """(d_sae + 1,); latent j owns the firings offsets[j] .. offsets[j + 1] - 1."""
    tokens: np.ndarray
    """(nnz,) row of each firing in token_ids and document_ids."""
    values: np.ndarray
    """(nnz,) float32 activations, > 0."""
    token_ids: np.ndarray
    """(n,) token type of every token."""
    document_ids: np.ndarray
    """(n,) document of every token, never decreasing."""

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.offsets) - 1

    @property
    def latents(self) -> np.ndarray:
        """(nnz,) latent of each firing."""
        return np.repeat(np.arange(self.d_sae), np.diff(self.offsets))


class Firings(Metric):
    """The entries z_ij > 0 of latents (n, d_sae), with the type and the document of each token.

    Keeps 8 bytes a firing and 12 a token, on the CPU; nothing is ever of size (n, d_sae).

    Args:
        d_sae: number of latents.

    Example:
        >>> import torch
        >>> from ssae.sae.sparse import ActiveSet
        >>> active = ActiveSet.of_rows(torch.tensor([[0, 2], [2, 1]]), d_sae=3)
        >>> firings = Firings(d_sae=3)
        >>> firings.update(
        ...     SparseLatents(active, torch.tensor([1.0, 2.0, 3.0, 0.0])),
        ...     token_ids=torch.tensor([7, 8]),
        ...     document_ids=torch.tensor([0, 0]),
        ... )
        >>> firings.compute().offsets
        array([0, 1, 1, 3], dtype=int32)
        >>> firings.compute().values
        array([1., 2., 3.], dtype=float32)
    """

    full_state_update = False
    active: list[Tensor]
    latents: list[Tensor]
    values: list[Tensor]
    token_ids: list[Tensor]
    document_ids: list[Tensor]

    def __init__(self, d_sae: int) -> None:
        # Evaluation runs on one rank while others wait; who shares out a set calls sync().
        super().__init__(sync_on_compute=False)
        self.d_sae = d_sae
        for name in ("active", "latents", "values", "token_ids", "document_ids"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, latents: SparseLatents, token_ids: Tensor, document_ids: Tensor) -> None:
        """Add the latents (n, d_sae) of tokens of types token_ids (n,) in document_ids (n,)."""
        active, values = latents
        fires = values > 0
        if active.indices is None:
            indices = fires.view(-1, active.d_sae).nonzero()[:, 1]
        else:
            indices = active.indices[fires]
        self.active.append(active.count_per_token(fires).int().cpu())
        self.latents.append(indices.int().cpu())
        self.values.append(values[fires].float().cpu())
        self.token_ids.append(token_ids.int().cpu())
        self.document_ids.append(document_ids.int().cpu())

    def table(self) -> FiringTable:
        """Return the firings sorted by latent and document: two passes of counting, O(nnz)."""
        active, latents, values, token_ids, document_ids = (
            dim_zero_cat(state).numpy()
            for state in (
                self.active, self.latents, self.values, self.token_ids, self.document_ids,
            )
        )  # fmt: skip
        offsets = np.concatenate([np.zeros(1, np.int64), active.cumsum(dtype=np.int64)])
        order = np.argsort(document_ids, kind="stable")
        rows = sparse.csr_matrix((values, latents, offsets), (len(active), self.d_sae))
        columns = rows[order].tocsc()
        parts = columns.indptr, columns.indices, columns.data
        return FiringTable(*parts, token_ids[order], document_ids[order])

    def measure(self, table: FiringTable) -> Any:
        """Return the table; subclasses return what they measure on it."""
        return table

    def compute(self) -> Any:
        """Return what is measured on all firings."""
        return self.measure(self.table())


class TypeFirings(Firings):
    """Firings of which something is measured for every token type.

    Args:
        d_sae: number of latents.
        vocab_size: number of token types.
    """

    def __init__(self, d_sae: int, vocab_size: int) -> None:
        super().__init__(d_sae)
        self.vocab_size = vocab_size


def segment_maxima(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the largest of values[offsets[i] : offsets[i + 1]], all > 0; 0 where there is none."""
    filled = np.flatnonzero(np.diff(offsets))
    maxima = np.zeros(len(offsets) - 1, values.dtype)
    if len(filled):
        maxima[filled] = np.maximum.reduceat(values, offsets[filled])
    return maxima
