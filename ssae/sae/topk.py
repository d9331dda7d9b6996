"""TopK SAE (Gao et al. 2024, arXiv 2406.04093)."""

from typing import Any

import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder


class TopKSAE(SparseAutoencoder):
    """latents = the k largest of relu(pre_acts) per token, the others zero.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        k: active latents per token.
        auxk_coefficient: weight of the auxk loss.
        k_aux: dead latents per token in it.
    """

    architecture = "topk"

    def __init__(
        self, d_in: int, d_sae: int, *, k: int, auxk_coefficient: float, k_aux: int
    ) -> None:
        super().__init__(d_in, d_sae, auxk_coefficient=auxk_coefficient, k_aux=k_aux)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
            raise ValueError(f"k must lie in 1 .. d_sae={d_sae}, got {k!r}; set sae.k=32")
        self.k = k

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().hyperparameters | {"k": self.k}

    def nonlinearity(self, pre_acts: Tensor) -> Tensor:
        """Keep the k largest positive pre_acts of each token."""
        values, indices = pre_acts.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())
