"""What every sparse autoencoder shares.

    pre_acts = (x - b_dec) @ W_enc + b_enc          (n, d_sae)
    latents  = nonlinearity(pre_acts)               (n, d_sae), >= 0
    recon    = latents @ W_dec + b_dec              (n, d_in)

W_dec (d_sae, d_in): its rows are the decoder directions, of norm 1.

`forward` computes pre_acts only where latents can be non-zero (sparse.py, screen.py); `encode` and
`forward_dense` are the same equations on whole tensors: the reference, exact and readable.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ssae.process.fsdp import own_rows, set_rows
from ssae.sae import screen
from ssae.sae.checks import check_not_negative, check_whole
from ssae.sae.sparse import ActiveSet, SparseLatents

Choice = tuple[ActiveSet, Tensor]
"""An active set, and its pre_acts (nnz,), which choosing it has computed."""


class SAEOutput(NamedTuple):
    """What a forward pass gives."""

    recon: Tensor
    """(n, d_in) reconstruction of x."""
    latents: SparseLatents
    """(n, d_sae) latents, >= 0; `latents.to_dense()` is the tensor."""
    pre_acts: Tensor
    """(nnz,) before the nonlinearity, on the active set of the latents."""
    prefix_recons: Tensor | None = None
    """(n, num_prefixes, d_in) reconstructions from nested prefixes (matryoshka only)."""
    extra: "SAEOutput | None" = None
    """What the trained latents beside a frozen SAE give by themselves (residual only)."""


class SparseAutoencoder(nn.Module):
    """Base class.

    A variant says what latents are (`nonlinearity`, `values`), where they can be non-zero
    (`choose`), and what training adds to the squared error (`penalty`).

    Args:
        d_in: width of x.
        d_sae: number of latents.
        auxk_coefficient: weight of the auxk loss that revives dead latents; 0 switches it off.
        k_aux: how many dead latents take part in it per token.
        subtract_b_dec: whether the encoder reads x - b_dec or x.

    Raises:
        ValueError: a width or coefficient is out of range.
    """

    architecture: ClassVar[str]
    """The name in sae.json."""
    screen_dtype: torch.dtype | None = None
    """Precision in which active latents are searched (screen.py); None: that of the weights."""
    scaling: ClassVar[tuple[str, ...]] = ("b_enc",)
    """What has the unit of latents, one number per latent or one for all; a variant adds to it."""
    num_frozen: int = 0
    """The first latents, as many, are not trained (residual only)."""

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        auxk_coefficient: float,
        k_aux: int,
        subtract_b_dec: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("d_in", d_in), ("d_sae", d_sae), ("k_aux", k_aux)):
            check_whole(name, value)
        check_not_negative("auxk_coefficient", auxk_coefficient, 0.03125)
        self.d_in, self.d_sae = d_in, d_sae
        self.auxk_coefficient, self.k_aux = auxk_coefficient, k_aux
        self.subtract_b_dec = subtract_b_dec
        directions = nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
        self.W_dec = nn.Parameter(directions)
        # Encoder starts as the decoder's transpose (arXiv 2406.04093, A.1): few latents start dead.
        # Stored latent by latent, as everything sparse reads it and as ranks would share it.
        self.W_enc_T = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def W_enc(self) -> Tensor:
        """(d_in, d_sae), a view of the parameter W_enc_T."""
        return self.W_enc_T.T

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments: sae.json and `ssae.load` use them."""
        return {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "auxk_coefficient": self.auxk_coefficient,
            "k_aux": self.k_aux,
            "subtract_b_dec": self.subtract_b_dec,
        }

    def extra_repr(self) -> str:
        """Return the hyperparameters, for printing."""
        return ", ".join(f"{name}={value}" for name, value in self.hyperparameters.items())

    def nonlinearity(self, pre_acts: Tensor) -> Tensor:
        """Map pre_acts (n, d_sae) to latents (n, d_sae)."""
        every = ActiveSet.every(len(pre_acts), self.d_sae, pre_acts.device)
        return self.values(pre_acts.flatten(), every).view_as(pre_acts)

    def values(self, pre_acts: Tensor, active: ActiveSet) -> Tensor:
        """Map pre_acts (nnz,) on an active set that `choose` gave to latents (nnz,)."""
        return pre_acts.relu()

    def choose(self, x: Tensor) -> Choice | None:
        """Return where latents or their gradients can be non-zero; None if in most places.

        Args:
            x: (n, d_in), less b_dec if that is subtracted.
        """
        raise NotImplementedError

    def penalty(self, out: SAEOutput) -> Tensor | None:
        """Return the sparsity penalty (n,) of each token, or None."""
        return None

    def errors(self, x: Tensor, out: SAEOutput) -> Tensor:
        """Return the reconstruction loss (n,) of each token: ||x - recon||^2."""
        return (x - out.recon).square().sum(1)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return x - b_dec, or x for an SAE that does not subtract."""
        return x - self.b_dec if self.subtract_b_dec else x

    def pre_acts(self, x: Tensor) -> Tensor:
        """Return (x - b_dec) @ W_enc + b_enc, shape (n, d_sae)."""
        return nn.functional.linear(self.encoder_input(x), self.W_enc_T, self.b_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of x as a dense tensor: (..., d_in) to (..., d_sae)."""
        pre_acts = self.pre_acts(x.reshape(-1, self.d_in))
        return self.nonlinearity(pre_acts).view(*x.shape[:-1], self.d_sae)

    def decode(self, latents: Tensor) -> Tensor:
        """Return latents @ W_dec + b_dec, from (..., d_sae) to (..., d_in)."""
        return nn.functional.linear(latents, self.W_dec.T, self.b_dec)

    def forward(self, x: Tensor) -> SAEOutput:
        """Encode and decode x (n, d_in).

        Raises:
            ValueError: x has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(
                f"x must have shape (n, {self.d_in}), got {tuple(x.shape)}; x.flatten(0, -2) turns "
                "leading dimensions into one"
            )
        shifted, b_enc = x, self.b_enc
        if self.subtract_b_dec:
            shifted = x - self.b_dec.detach()
            # Adds nothing but the derivative by b_dec: one matrix-vector product, where a
            # derivative by `shifted` would be one row per token.
            b_enc = b_enc - self.W_enc_T.detach() @ (self.b_dec - self.b_dec.detach())
        choice = self.choose(shifted)
        if choice is None:
            return self.forward_dense(x)
        active, known = choice
        pre_acts = active.pre_acts(shifted, self.W_enc_T, b_enc, known)
        return self.output(SparseLatents(active, self.values(pre_acts, active)), pre_acts)

    def forward_dense(self, x: Tensor) -> SAEOutput:
        """Do what `forward` does by dense matrix products."""
        pre_acts = self.pre_acts(x)
        every = ActiveSet.every(len(x), self.d_sae, x.device)
        latents = SparseLatents(every, self.nonlinearity(pre_acts).flatten())
        return self.output(latents, pre_acts.flatten())

    def output(self, latents: SparseLatents, pre_acts: Tensor) -> SAEOutput:
        """Decode latents."""
        recon = latents.active.decode(latents.values, self.W_dec) + self.b_dec
        return SAEOutput(recon, latents, pre_acts)

    def auxk_errors(self, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """Return ||residual - z_aux @ W_dec||^2 per token (n,) (arXiv 2406.04093, A.2).

        z_aux holds the k_aux largest positive pre_acts among the dead latents.

        Args:
            x: (n, d_in).
            residual: (n, d_in) x - recon, detached: the loss must not pull on living latents.
            dead: (num_dead,) indices of the dead latents, at least one.
        """
        x, W_enc_T, b_enc = self.encoder_input(x), self.W_enc_T[dead], self.b_enc[dead]
        k = min(self.k_aux, len(dead))
        active, known = screen.top_k(x, W_enc_T, b_enc, k, self.screen_dtype)
        z_aux = active.pre_acts(x, W_enc_T, b_enc, known).relu()
        return (residual - active.decode(z_aux, self.W_dec[dead])).square().sum(1)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return what the optimiser steps on; a group may have a learning rate of its own."""
        return [{"params": list(self.parameters()), "lr": lr}]

    def update_statistics(self, out: SAEOutput) -> None:
        """Take in one training batch, where a variant keeps statistics of its own."""

    @torch.no_grad()
    def reset_latents(
        self,
        latents: Tensor,
        directions: Tensor,
        slopes: Tensor | float,
        b_enc: Tensor,
        unit: float,
        /,
    ) -> None:
        """Start latents anew: W_dec_j = directions_j, W_enc_j = slopes_j directions_j, b_enc_j.

        Args:
            latents: (num,) indices.
            directions: (num, d_in) of norm 1.
            slopes: (num,) or one for all.
            b_enc: (num,).
            unit: mean norm of x, where training has sqrt(d_in): other parameters begin as there.
        """
        rows = torch.as_tensor(slopes, device=directions.device).reshape(-1, 1) * directions
        set_rows(self.W_dec, latents, directions)
        set_rows(self.W_enc_T, latents, rows)
        set_rows(self.b_enc, latents, b_enc)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder direction to norm 1."""
        W_dec = own_rows(self.W_dec)
        W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Project the gradient of W_dec orthogonal to each unit direction: lengths are fixed."""
        if self.W_dec.grad is None:
            return
        # In pieces that stay in a CPU's cache: a temporary of the whole size costs more than this.
        rows = max(1, 2**18 // self.d_in)
        pieces = (own_rows(tensor).split(rows) for tensor in (self.W_dec.grad, self.W_dec))
        for grad, W_dec in zip(*pieces, strict=True):
            grad.addcmul_((grad * W_dec).sum(1, keepdim=True), W_dec, value=-1)

    @torch.no_grad()
    def rescale_input(self, scale: float) -> None:
        """Turn an SAE of x into the same SAE of scale * x.

        Every nonlinearity here commutes with positive factors, so the weights stay and biases and
        thresholds scale: pre_acts, latents and recon all become `scale` times what they were.
        """
        for name in ("b_dec", *self.scaling):
            own_rows(getattr(self, name)).mul_(scale)

    @torch.no_grad()
    def fold_decoder_norms(self) -> None:
        """Give every decoder direction norm 1 and its latent the norm instead.

        Exact wherever latents scale one by one with their pre_acts; a choice of the k largest is
        made among the scaled ones, and a threshold for all follows the mean norm.
        """
        norms = self.W_dec.norm(dim=1).clamp_min(1e-12)
        self.W_dec.div_(norms[:, None])
        self.W_enc_T.mul_(norms[:, None])
        for name in self.scaling:
            own = getattr(self, name)
            own.mul_(norms if own.ndim else norms.mean())
