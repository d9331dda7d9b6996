"""TopK SAE (Gao et al. 2024, arXiv 2406.04093)."""

from typing import Any

import torch
from torch import Tensor

from ssae.sae import screen
from ssae.sae.base import Choice, SparseAutoencoder
from ssae.sae.checks import check_whole


class TopKSAE(SparseAutoencoder):
    """latents = the k largest of relu(pre_acts) per token, the others zero.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        k: active latents per token.
        common: auxk_coefficient, k_aux, subtract_b_dec of SparseAutoencoder.
    """

    architecture = "topk"

    def __init__(self, d_in: int, d_sae: int, *, k: int, **common: Any) -> None:
        super().__init__(d_in, d_sae, **common)
        check_whole("k", k, d_sae, 32)
        self.k = k

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().hyperparameters | {"k": self.k}

    def nonlinearity(self, pre_acts: Tensor) -> Tensor:
        """Keep the k largest positive pre_acts of each token."""
        values, indices = pre_acts.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())

    def choose(self, x: Tensor) -> Choice:
        """Return the k largest per token."""
        return screen.top_k(x, self.W_enc_T, self.b_enc, self.k, self.screen_dtype)
