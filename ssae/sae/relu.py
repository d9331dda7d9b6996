"""ReLU SAE with an L1 penalty (Bricken et al. 2023; April-2024 update of Anthropic)."""

from typing import Any

from torch import Tensor

from ssae.sae import screen
from ssae.sae.base import Choice, SAEOutput, SparseAutoencoder
from ssae.sae.checks import check_not_negative


class ReLUSAE(SparseAutoencoder):
    """latents = relu(pre_acts);  penalty_i = l1_coefficient * sum_j latents_ij ||W_dec_j||.

    The coefficient is for activations scaled to mean norm sqrt(d_in), which is how every SAE trains
    here, and compares with ||x - recon||^2 summed over d_in.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        l1_coefficient: weight of the penalty.
        common: auxk_coefficient, k_aux, subtract_b_dec of SparseAutoencoder.
    """

    architecture = "relu"

    def __init__(self, d_in: int, d_sae: int, *, l1_coefficient: float, **common: Any) -> None:
        super().__init__(d_in, d_sae, **common)
        check_not_negative("l1_coefficient", l1_coefficient, 5)
        self.l1_coefficient = l1_coefficient

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().hyperparameters | {"l1_coefficient": self.l1_coefficient}

    def choose(self, x: Tensor) -> Choice | None:
        """Return where pre_acts > 0."""
        return screen.above(x, self.W_enc_T, self.b_enc, 0.0, self.screen_dtype)

    def penalty(self, out: SAEOutput) -> Tensor:
        """Return l1_coefficient * sum_j latents_ij ||W_dec_j||, shape (n,)."""
        active, values = out.latents
        norms = self.W_dec.norm(dim=1)
        return self.l1_coefficient * active.sum_per_token(values * active.take(norms))
