"""Matryoshka BatchTopK SAE (Bussmann et al. 2025, arXiv 2503.17547)."""

import itertools
from typing import Any

import torch
from torch import Tensor

from ssae.sae.base import SAEOutput
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.sparse import ActiveSet, SparseLatents


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK latents of which every prefix of the dictionary must reconstruct on its own.

        recon_m = sum_{j < size_1 + ... + size_m} latents_j W_dec[j] + b_dec
        error_i = mean_m ||x_i - recon_m,i||^2

    so the first latents hold what is general, the later ones what refines it.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        k: mean number of active latents per token.
        group_sizes: latents that each prefix adds; they sum to d_sae.
        common: auxk_coefficient, k_aux, subtract_b_dec of SparseAutoencoder.
    """

    architecture = "matryoshka"

    def __init__(
        self, d_in: int, d_sae: int, *, k: int, group_sizes: list[int], **common: Any
    ) -> None:
        super().__init__(d_in, d_sae, k=k, **common)
        sizes = list(group_sizes)
        whole = all(type(size) is int and size > 0 for size in sizes)
        if not whole or sum(sizes) != d_sae:
            raise ValueError(
                f"group_sizes must be positive whole numbers that sum to d_sae={d_sae}, got "
                f"{sizes}; set sae.group_sizes=[{d_sae // 4},{d_sae - d_sae // 4}]"
            )
        self.group_sizes = sizes

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().hyperparameters | {"group_sizes": self.group_sizes}

    def output(self, latents: SparseLatents, pre_acts: Tensor) -> SAEOutput:
        """Decode every group of latents once; prefixes are running sums over groups."""
        active, values = latents
        num = len(self.group_sizes)
        if active.indices is None:
            dense = values.view(-1, self.d_sae).split(self.group_sizes, dim=1)
            directions = self.W_dec.split(self.group_sizes)
            parts = torch.stack([z @ W for z, W in zip(dense, directions, strict=True)], 1)
        else:
            # Every (token, group) is a row of its own: sort each token's entries by group.
            ends = active.indices.new_tensor(list(itertools.accumulate(self.group_sizes)))
            groups = torch.bucketize(active.indices, ends, right=True)
            rows = active.tokens * num + groups
            rows, order = torch.sort(rows, stable=True)
            by_group = ActiveSet.of_pairs(
                rows, active.indices[order], active.num_tokens * num, self.d_sae
            )
            parts = by_group.decode(values[order], self.W_dec).view(-1, num, self.d_in)
        prefixes = parts.cumsum(1) + self.b_dec
        return SAEOutput(prefixes[:, -1], latents, pre_acts, prefixes)

    def errors(self, x: Tensor, out: SAEOutput) -> Tensor:
        """Return the mean squared error of the prefixes, (n,)."""
        assert out.prefix_recons is not None
        return (x[:, None] - out.prefix_recons).square().sum(2).mean(1)
