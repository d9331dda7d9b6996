"""BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssae.process.ranks import all_reduce, world_size
from ssae.sae import screen
from ssae.sae.base import Choice, SAEOutput, SparseAutoencoder
from ssae.sae.checks import check_whole
from ssae.sae.sparse import ActiveSet

MOMENTUM = 0.9
"""Of the running threshold, per step: it averages the last ten batches or so. One batch tells it to
a per cent already, and a mean that lags behind the weights gives another l0 than k."""


class BatchTopKSAE(SparseAutoencoder):
    """In training the k * n largest positive pre_acts of the global batch of n tokens are kept.

        train:  latents = relu(pre_acts) where among the k n largest, else 0
        eval:   latents = pre_acts 1[pre_acts > threshold]

    so that a token of a test set does not depend on its neighbours. threshold is a running mean of
    the smallest kept value, started at the first. Equal values at the end are all kept.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        k: mean number of active latents per token.
        common: auxk_coefficient, k_aux, subtract_b_dec of SparseAutoencoder.
    """

    architecture = "batchtopk"
    scaling = ("b_enc", "threshold")
    threshold: Tensor

    def __init__(self, d_in: int, d_sae: int, *, k: int, **common: Any) -> None:
        super().__init__(d_in, d_sae, **common)
        check_whole("k", k, d_sae, 32)
        self.k = k
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().hyperparameters | {"k": self.k}

    def values(self, pre_acts: Tensor, active: ActiveSet) -> Tensor:
        """relu; when all pairs are given, those outside of the choice become 0."""
        if active.indices is None:
            limit = self.threshold
            if self.training:
                num = self.k * active.num_tokens * world_size()
                # What equals the smallest kept value is kept.
                limit = screen.kth_largest(pre_acts, num)
                return pre_acts.relu() * (pre_acts >= limit)
            return pre_acts.relu() * (pre_acts > limit)
        return pre_acts.relu()

    def choose(self, x: Tensor) -> Choice | None:
        """Return the k n largest in training, what exceeds the threshold otherwise."""
        if self.training:
            return screen.largest_of_batch(x, self.W_enc_T, self.b_enc, self.k, self.screen_dtype)
        limit = self.threshold.clamp_min(0)
        return screen.above(x, self.W_enc_T, self.b_enc, limit, self.screen_dtype)

    @torch.no_grad()
    def update_statistics(self, out: SAEOutput) -> None:
        """Move the threshold towards the smallest value kept in this global batch."""
        values = out.latents.values.detach()
        infinity = values.new_tensor(float("inf"))
        smallest = torch.where(values > 0, values, infinity).amin() if len(values) else infinity
        smallest = all_reduce(smallest, dist.ReduceOp.MIN).to(self.threshold.dtype)
        moved = torch.where(
            self.threshold > 0, torch.lerp(smallest, self.threshold, MOMENTUM), smallest
        )
        self.threshold.copy_(torch.where(smallest.isfinite(), moved, self.threshold))
