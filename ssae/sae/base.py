"""What every sparse autoencoder shares.

    pre_acts = (x - b_dec) @ W_enc + b_enc          (n, d_sae)
    latents  = nonlinearity(pre_acts)               (n, d_sae), >= 0
    recon    = latents @ W_dec + b_dec              (n, d_in)

W_dec (d_sae, d_in): its rows are the decoder directions, of norm 1.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class SAEOutput(NamedTuple):
    """What a forward pass gives."""

    recon: Tensor
    """(n, d_in) reconstruction of x."""
    latents: Tensor
    """(n, d_sae) latents, >= 0, mostly zero."""
    pre_acts: Tensor
    """(n, d_sae) before the nonlinearity."""


class SparseAutoencoder(nn.Module):
    """Base class: a variant overrides `nonlinearity`, and `penalty` if it has one.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        auxk_coefficient: weight of the auxk loss that revives dead latents; 0 switches it off.
        k_aux: how many dead latents take part in it per token.

    Raises:
        ValueError: a width or coefficient is out of range.
    """

    architecture: ClassVar[str]
    """The name in sae.json."""

    def __init__(self, d_in: int, d_sae: int, *, auxk_coefficient: float, k_aux: int) -> None:
        super().__init__()
        for name, value in (("d_in", d_in), ("d_sae", d_sae), ("k_aux", k_aux)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name} must be a whole number of at least 1, got {value!r}; "
                    f"set sae.{name}=256"
                )
        if auxk_coefficient < 0:
            raise ValueError(
                f"auxk_coefficient must not be negative, got {auxk_coefficient}; "
                "set sae.auxk_coefficient=0.03125"
            )
        self.d_in, self.d_sae = d_in, d_sae
        self.auxk_coefficient, self.k_aux = auxk_coefficient, k_aux
        directions = nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
        self.W_dec = nn.Parameter(directions)
        # Encoder starts as the decoder's transpose (arXiv 2406.04093, A.1): few latents start dead.
        self.W_enc = nn.Parameter(directions.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments: sae.json and `ssae.load` use them."""
        return {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "auxk_coefficient": self.auxk_coefficient,
            "k_aux": self.k_aux,
        }

    def nonlinearity(self, pre_acts: Tensor) -> Tensor:
        """Map pre_acts (n, d_sae) to latents (n, d_sae)."""
        raise NotImplementedError

    def penalty(self, latents: Tensor) -> Tensor | None:
        """Return the sparsity penalty (n,) of each token, or None."""
        return None

    def pre_acts(self, x: Tensor) -> Tensor:
        """Return (x - b_dec) @ W_enc + b_enc, shape (n, d_sae)."""
        return nn.functional.linear(x - self.b_dec, self.W_enc.T, self.b_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents (n, d_sae) of x (n, d_in)."""
        return self.nonlinearity(self.pre_acts(x))

    def decode(self, latents: Tensor) -> Tensor:
        """Return latents @ W_dec + b_dec, shape (n, d_in)."""
        return nn.functional.linear(latents, self.W_dec.T, self.b_dec)

    def forward(self, x: Tensor) -> SAEOutput:
        """Encode and decode x (n, d_in); further leading dimensions are kept."""
        pre_acts = self.pre_acts(x)
        latents = self.nonlinearity(pre_acts)
        return SAEOutput(self.decode(latents), latents, pre_acts)

    def auxk_errors(self, residual: Tensor, pre_acts: Tensor, dead: Tensor) -> Tensor:
        """Return ||residual - z_aux @ W_dec||^2 per token (n,) (arXiv 2406.04093, A.2).

        z_aux holds the k_aux largest positive pre_acts among the dead latents.

        Args:
            residual: (n, d_in) x - recon, detached: the loss must not pull on living latents.
            pre_acts: (n, d_sae).
            dead: (num_dead,) indices of the dead latents, at least one.
        """
        z_aux = pre_acts[:, dead].relu()
        if len(dead) > self.k_aux:
            values, indices = z_aux.topk(self.k_aux, dim=1, sorted=False)
            z_aux = torch.zeros_like(z_aux).scatter(1, indices, values)
        return (residual - z_aux @ self.W_dec[dead]).square().sum(1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder direction to norm 1."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Project the gradient of W_dec orthogonal to each unit direction: lengths are fixed."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.sub_(along * self.W_dec)

    @torch.no_grad()
    def rescale_input(self, scale: float) -> None:
        """Turn an SAE of x into the same SAE of scale * x.

        Every nonlinearity here commutes with positive factors, so the weights stay and the two
        biases scale: pre_acts, latents and recon all become `scale` times what they were.
        """
        self.b_dec.mul_(scale)
        self.b_enc.mul_(scale)
