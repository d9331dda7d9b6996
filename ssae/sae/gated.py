"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from typing import Any

import torch
from torch import Tensor, nn

from ssae.process.fsdp import set_rows
from ssae.sae.base import SAEOutput
from ssae.sae.relu import ReLUSAE
from ssae.sae.sparse import ActiveSet


class GatedSAE(ReLUSAE):
    """The gate says whether a latent is active, a rescaled path how strongly.

        pi_gate = (x - b_dec) @ W_enc + b_enc                  (these are the pre_acts)
        pi_mag  = (x - b_dec) @ (W_enc exp(r_mag)) + b_mag = exp(r_mag) (pi_gate - b_enc) + b_mag
        latents = 1[pi_gate > 0] relu(pi_mag)
        error_i = ||x - recon||^2 + ||x - relu(pi_gate) @ W_dec - b_dec||^2, W_dec, b_dec detached
        penalty_i = l1_coefficient * sum_j relu(pi_gate_ij) ||W_dec_j||

    The second error (section 3.2) is what trains the gate: the step itself has no gradient.
    """

    architecture = "gated"
    scaling = ("b_enc", "b_mag")

    def __init__(self, d_in: int, d_sae: int, *, l1_coefficient: float, **common: Any) -> None:
        super().__init__(d_in, d_sae, l1_coefficient=l1_coefficient, **common)
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))

    def values(self, pre_acts: Tensor, active: ActiveSet) -> Tensor:
        """1[pi_gate > 0] relu(pi_mag)."""
        gain, b_mag, b_enc = (active.take(v) for v in (self.r_mag.exp(), self.b_mag, self.b_enc))
        return (gain * (pre_acts - b_enc) + b_mag).relu() * (pre_acts > 0)

    def errors(self, x: Tensor, out: SAEOutput) -> Tensor:
        """Return both errors of each token, (n,)."""
        gate_recon = out.latents.active.decode(out.pre_acts.relu(), self.W_dec.detach())
        gate_errors = (x - gate_recon - self.b_dec.detach()).square().sum(1)
        return super().errors(x, out) + gate_errors

    def penalty(self, out: SAEOutput) -> Tensor:
        """Return the penalty of the gate, shape (n,)."""
        gates = out.latents._replace(values=out.pre_acts.relu())
        return super().penalty(out._replace(latents=gates))

    @torch.no_grad()
    def reset_latents(self, latents: Tensor, *how: Any) -> None:
        """Start latents anew, with pi_mag = pi_gate."""
        super().reset_latents(latents, *how)
        _, _, b_enc, _ = how
        set_rows(self.r_mag, latents, 0)
        set_rows(self.b_mag, latents, b_enc)
