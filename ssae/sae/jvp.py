"""Directional derivatives of per-token losses, without per-token gradients.

    loss_i'(theta; direction) = < grad_theta loss_i, direction >          for every token i at once

One forward-mode pass costs about two forwards and stores nothing per token: what TracIn (arXiv
2002.08484) needs to score a pool against the mean gradient of the seeds. For codes on an active
set S it is, for the squared error,

    dz_S     = (x - b_dec) dW_enc[:, S] + db_S - db_dec W_enc[:, S]
    drecon   = dz_S W_dec[S] + z_S dW_dec[S] + db_dec
    dloss    = -2 residual . drecon
"""

from collections.abc import Mapping

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ssae.sae.base import SparseAutoencoder


def token_losses(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Return errors + penalty of each token (n,), in the unit of x squared."""
    out = sae(x)
    errors, penalty = sae.errors(x, out), sae.penalty(out)
    return errors if penalty is None else errors + penalty


@torch.no_grad()
def jvp(
    sae: SparseAutoencoder, x: Tensor, direction: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return (losses (n,), their derivatives (n,) along a direction in the space of parameters).

    The active set is held fixed and straight-through estimates stand where training uses them, so
    that the derivative is the inner product with exactly the gradient of training.

    Args:
        sae: any architecture; its mode decides as in `forward`: estimates only in training.
        x: (n, d_in).
        direction: {name of a parameter: tensor of its shape}; parameters left out stay fixed.

    Raises:
        ValueError: a name or shape does not fit.
    """
    parameters = {name: weight.detach() for name, weight in sae.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    wrong = {n: tuple(t.shape) for n, t in direction.items() if shapes.get(n) != tuple(t.shape)}
    if wrong:
        raise ValueError(f"direction has {wrong}; the parameters of this SAE are {shapes}")
    with forward_ad.dual_level():
        duals = {
            f"sae.{name}": forward_ad.make_dual(weight, direction[name].to(weight))
            for name, weight in parameters.items()
            if name in direction
        }
        losses = torch.func.functional_call(_Losses(sae), duals, x)
        primal, tangent = forward_ad.unpack_dual(losses)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


class _Losses(torch.nn.Module):
    def __init__(self, sae: SparseAutoencoder) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor) -> Tensor:
        return token_losses(self.sae, x)
