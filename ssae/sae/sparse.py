"""Sparse latents and the operations of the sparse step: training, inference and metrics share them.

An `ActiveSet` lists, token by token, the latents that may be non-zero (CSR without values). On it

    pre_acts   pre_t = x_i . W_enc[:, j] + b_enc_j        for the t-th active pair (i, j)
    decode     recon_i = sum_j z_ij W_dec[j]

cost O(nnz d_in) forwards and backwards instead of O(n d_sae d_in), without any (n, k, d_in) tensor:
the gradient of z is the same sampled product as pre_acts, the gradients of both weights are one
sum over the set transposed. Both operations have forward derivatives too, so `torch.func` and
`torch.autograd.forward_ad` give exact directional derivatives of any loss built from them.

The same interface holds for the set of *all* pairs (`ActiveSet.every`), where the operations are
dense matrix products: the readable reference, and the faster way while most latents are active.
"""

import functools
import warnings
from typing import NamedTuple

import torch
from scipy import sparse
from torch import Tensor, nn

from ssae.sae.products import decode_on, pre_acts_on

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class ActiveSet:
    """The pairs (token, latent) that may be non-zero.

    Args:
        offsets: (n + 1,) int32; token i owns the entries offsets[i] .. offsets[i + 1] - 1.
        indices: (nnz,) int32 latents, distinct within a token; None for every latent in order.
        d_sae: number of latents.
    """

    def __init__(self, offsets: Tensor, indices: Tensor | None, d_sae: int) -> None:
        # Four bytes each: the sampled product reads them a third faster than eight.
        self.offsets = offsets.int()
        self.indices = None if indices is None else indices.int()
        self.d_sae = d_sae

    @classmethod
    def of_rows(cls, indices: Tensor, d_sae: int) -> "ActiveSet":
        """Return the set in which token i has the latents indices[i], from (n, k)."""
        n, k = indices.shape
        offsets = k * torch.arange(n + 1, device=indices.device)
        return cls(offsets, indices.reshape(-1), d_sae)

    @classmethod
    def of_pairs(cls, tokens: Tensor, latents: Tensor, n: int, d_sae: int) -> "ActiveSet":
        """Return the set of pairs (tokens[t], latents[t]); `tokens` must not decrease."""
        return cls(_ends(torch.bincount(tokens, minlength=n)), latents, d_sae)

    @classmethod
    def every(cls, n: int, d_sae: int, device: torch.device) -> "ActiveSet":
        """Return the set of all pairs."""
        return cls(torch.zeros(n + 1, device=device), None, d_sae)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, n."""
        return len(self.offsets) - 1

    @functools.cached_property
    def tokens(self) -> Tensor:
        """(nnz,) token of every entry."""
        numbers = torch.arange(self.num_tokens, device=self.offsets.device)
        if self.indices is None:
            return numbers.repeat_interleave(self.d_sae)
        return numbers.repeat_interleave(self.offsets.diff())

    @functools.cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(offsets (d_sae + 1,), tokens (nnz,), entries (nnz,)): the entries sorted by latent."""
        assert self.indices is not None
        if self.indices.device.type == "cpu":  # a counting sort: faster than comparing
            order = torch.arange(len(self.indices), dtype=torch.int32)
            shape = (self.num_tokens, self.d_sae)
            csr = (order.numpy(), self.indices.numpy(), self.offsets.numpy())
            csc = sparse.csr_matrix(csr, shape).tocsc()
            parts = (csc.indptr, csc.indices, csc.data)
            offsets, tokens, entries = (torch.from_numpy(part) for part in parts)
            return offsets, tokens, entries
        latents, entries = torch.sort(self.indices, stable=True)
        counts = torch.bincount(latents, minlength=self.d_sae)
        return _ends(counts), self.tokens[entries], entries

    def pre_acts(
        self, x: Tensor, W_enc_T: Tensor, b_enc: Tensor, values: Tensor | None = None
    ) -> Tensor:
        """Return x_i . W_enc_T[j] + b_enc_j of every entry (nnz,).

        Args:
            x: (n, d_in).
            W_enc_T: (d_sae, d_in).
            b_enc: (d_sae,).
            values: (nnz,) the result, where choosing the set has already computed it.
        """
        if self.indices is None:
            return nn.functional.linear(x, W_enc_T, b_enc).flatten()
        return pre_acts_on(self, x, W_enc_T, b_enc, values)

    def decode(self, values: Tensor, W_dec: Tensor) -> Tensor:
        """Return sum_j values_ij W_dec[j], shape (n, d_in)."""
        if self.indices is None:
            return values.view(-1, self.d_sae) @ W_dec
        return decode_on(self, values, W_dec)

    def take(self, per_latent: Tensor) -> Tensor:
        """Return per_latent[j] of every entry (nnz,), from (d_sae,)."""
        if self.indices is None:
            return per_latent.expand(self.num_tokens, -1).reshape(-1)
        return per_latent[self.indices]

    def sum_per_token(self, values: Tensor) -> Tensor:
        """Return sum_j values_ij, shape (n,), differentiable."""
        if self.indices is None:
            return values.view(-1, self.d_sae).sum(1)
        return values.new_zeros(self.num_tokens).index_add(0, self.tokens, values)

    def count_per_token(self, where: Tensor) -> Tensor:
        """Return how many entries of each token hold in `where` (nnz,) bool: (n,) int64."""
        if self.indices is None:
            return where.view(-1, self.d_sae).count_nonzero(1)
        return torch.bincount(self.tokens[where], minlength=self.num_tokens)

    def count_per_latent(self, where: Tensor) -> Tensor:
        """Return how many entries of each latent hold in `where` (nnz,) bool: (d_sae,) int64."""
        if self.indices is None:  # summed as floats: a sum of bools is ten times slower on CPUs
            return where.view(-1, self.d_sae).float().sum(0).long()
        return torch.bincount(self.indices[where], minlength=self.d_sae)


class SparseLatents(NamedTuple):
    """Latents (n, d_sae) of which only the values on an active set are kept; those may be 0 too."""

    active: ActiveSet
    values: Tensor
    """(nnz,) >= 0."""

    def to_dense(self) -> Tensor:
        """Return the latents as a tensor (n, d_sae)."""
        active = self.active
        if active.indices is None:
            return self.values.view(-1, active.d_sae)
        dense = self.values.new_zeros(active.num_tokens, active.d_sae)
        return dense.index_put((active.tokens, active.indices), self.values)

    def columns(self, latents: Tensor) -> Tensor:
        """Return some latents as a dense tensor (n, len(latents))."""
        active = self.active
        if active.indices is None:
            return self.values.view(-1, active.d_sae)[:, latents]
        distinct, column = latents.unique(return_inverse=True)
        place = latents.new_full((active.d_sae,), -1)
        place[distinct] = torch.arange(len(distinct), device=latents.device)
        place = place[active.indices]
        found = place >= 0
        dense = self.values.new_zeros(active.num_tokens, len(distinct))
        return dense.index_put((active.tokens[found], place[found]), self.values[found])[:, column]

    def num_active(self) -> Tensor:
        """Return the number of latents > 0 of each token, (n,)."""
        return self.active.count_per_token(self.values > 0)

    def fire_counts(self) -> Tensor:
        """Return the number of tokens on which each latent is > 0, (d_sae,)."""
        return self.active.count_per_latent(self.values > 0)


def _ends(counts: Tensor) -> Tensor:
    """Return the offsets (len + 1,) int32 of segments of these lengths."""
    return nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
