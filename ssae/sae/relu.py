"""ReLU SAE with an L1 penalty (Bricken et al. 2023; April-2024 update of Anthropic)."""

from typing import Any

from torch import Tensor

from ssae.sae.base import SparseAutoencoder


class ReLUSAE(SparseAutoencoder):
    """latents = relu(pre_acts);  penalty_i = l1_coefficient * sum_j latents_ij ||W_dec_j||.

    The coefficient is for activations scaled to mean norm sqrt(d_in), which is how every SAE trains
    here, and compares with ||x - recon||^2 summed over d_in.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        l1_coefficient: weight of the penalty.
        auxk_coefficient: weight of the auxk loss.
        k_aux: dead latents per token in it.
    """

    architecture = "relu"

    def __init__(
        self, d_in: int, d_sae: int, *, l1_coefficient: float, auxk_coefficient: float, k_aux: int
    ) -> None:
        super().__init__(d_in, d_sae, auxk_coefficient=auxk_coefficient, k_aux=k_aux)
        if l1_coefficient < 0:
            raise ValueError(
                f"l1_coefficient must not be negative, got {l1_coefficient}; "
                "set sae.l1_coefficient=5"
            )
        self.l1_coefficient = l1_coefficient

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().hyperparameters | {"l1_coefficient": self.l1_coefficient}

    def nonlinearity(self, pre_acts: Tensor) -> Tensor:
        """relu(pre_acts)."""
        return pre_acts.relu()

    def penalty(self, latents: Tensor) -> Tensor:
        """Return l1_coefficient * sum_j latents_ij ||W_dec_j||, shape (n,)."""
        return self.l1_coefficient * (latents @ self.W_dec.norm(dim=1))
