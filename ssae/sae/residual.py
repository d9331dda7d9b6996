"""A frozen generalist, and extra latents that learn what it leaves over."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from ssae.sae.base import SAEOutput, SparseAutoencoder
from ssae.sae.sparse import ActiveSet, SparseLatents


class ResidualSAE(SparseAutoencoder):
    """The extra latents read x and reconstruct the generalist's residual.

        recon   = generalist(x).recon + extra(x).recon
        latents = generalist's, then extra's: latent j < num_frozen is the generalist's latent j
        error_i = extra's error of reconstructing x_i - generalist(x_i).recon

    Only the extra latents are trained. The generalist stays the same to the last bit: it is never
    rescaled, x is scaled for it instead. (The idea of a residual SAE for a domain: 2507.12990.)

    Args:
        generalist: any architecture.
        extra: any architecture; its auxk and penalty hold for its own latents.

    Raises:
        ValueError: their widths differ.
    """

    architecture = "residual"

    def __init__(self, generalist: SparseAutoencoder, extra: SparseAutoencoder) -> None:
        nn.Module.__init__(self)
        if generalist.d_in != extra.d_in:
            raise ValueError(
                f"generalist and extra latents must read one width, got {generalist.d_in} and "
                f"{extra.d_in}"
            )
        self.generalist, self.extra = generalist.requires_grad_(False).eval(), extra
        self.d_in, self.d_sae = extra.d_in, generalist.d_sae + extra.d_sae
        self.num_frozen = generalist.d_sae
        self.auxk_coefficient, self.k_aux = extra.auxk_coefficient, extra.k_aux
        self.subtract_b_dec = extra.subtract_b_dec
        self.scale = 1.0  # x is `scale` times what the generalist reads

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return what describes both parts."""
        parts = {"generalist": self.generalist, "extra": self.extra}
        return {
            name: {"architecture": sae.architecture, "hyperparameters": sae.hyperparameters}
            for name, sae in parts.items()
        }

    @property
    def W_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_sae, d_in), a copy."""
        return torch.cat([self.generalist.W_dec, self.extra.W_dec])

    @property
    def W_enc_T(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_sae, d_in), a copy."""
        return torch.cat([self.generalist.W_enc_T, self.extra.W_enc_T])

    @property
    def b_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_sae,), a copy."""
        return torch.cat([self.scale * self.generalist.b_enc, self.extra.b_enc])

    @property
    def b_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_in,): the recon of no latents."""
        return self.scale * self.generalist.b_dec + self.extra.b_dec

    @property
    def screen_dtype(self) -> torch.dtype | None:
        """That of both parts."""
        return self.extra.screen_dtype

    @screen_dtype.setter
    def screen_dtype(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, dtype: torch.dtype | None
    ) -> None:
        self.generalist.screen_dtype = self.extra.screen_dtype = dtype

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return what the extra latents read."""
        return self.extra.encoder_input(x)

    def pre_acts(self, x: Tensor) -> Tensor:
        """Return the pre_acts (n, d_sae) of both."""
        frozen = self.scale * self.generalist.pre_acts(x / self.scale)
        return torch.cat([frozen, self.extra.pre_acts(x)], 1)

    def nonlinearity(self, pre_acts: Tensor) -> Tensor:
        """Map pre_acts (n, d_sae) to latents (n, d_sae), each part by its own rule."""
        frozen, extra = pre_acts[:, : self.num_frozen], pre_acts[:, self.num_frozen :]
        frozen = self.scale * self.generalist.nonlinearity(frozen / self.scale)
        return torch.cat([frozen, self.extra.nonlinearity(extra)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the sum of both recons, from (..., d_sae) to (..., d_in)."""
        frozen, extra = latents[..., : self.num_frozen], latents[..., self.num_frozen :]
        return self.scale * self.generalist.decode(frozen / self.scale) + self.extra.decode(extra)

    def forward(self, x: Tensor) -> SAEOutput:
        """Encode and decode x (n, d_in)."""
        return self._join(self.generalist(x / self.scale), self.extra(x))

    def forward_dense(self, x: Tensor) -> SAEOutput:
        """Do what `forward` does by dense matrix products."""
        frozen = self.generalist.forward_dense(x / self.scale)
        return self._join(frozen, self.extra.forward_dense(x))

    def errors(self, x: Tensor, out: SAEOutput) -> Tensor:
        """Return the extra latents' errors (n,) in reconstructing the generalist's residual."""
        assert out.extra is not None
        frozen = (out.recon - out.extra.recon).detach()
        return self.extra.errors(x - frozen, out.extra)

    def penalty(self, out: SAEOutput) -> Tensor | None:
        """Return the penalty (n,) of the extra latents, or None."""
        assert out.extra is not None
        return self.extra.penalty(out.extra)

    def auxk_errors(self, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """Return the extra latents' auxk errors (n,); no frozen latent counts as dead."""
        return self.extra.auxk_errors(x, residual, dead - self.num_frozen)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the parameters of the extra latents."""
        return self.extra.parameter_groups(lr)

    def update_statistics(self, out: SAEOutput) -> None:
        """Take in one training batch."""
        assert out.extra is not None
        self.extra.update_statistics(out.extra)

    def normalise_decoder(self) -> None:
        """Scale the extra decoder directions to norm 1."""
        self.extra.normalise_decoder()

    def remove_parallel_gradient(self) -> None:
        """Project the gradient of the extra decoder directions."""
        self.extra.remove_parallel_gradient()

    def reset_latents(self, latents: Tensor, *how: Any) -> None:
        """Start extra latents anew."""
        self.extra.reset_latents(latents - self.num_frozen, *how)

    def rescale_input(self, scale: float) -> None:
        """Turn an SAE of x into the same SAE of scale * x."""
        self.extra.rescale_input(scale)
        self.scale *= scale
        if math.isclose(self.scale, 1, rel_tol=1e-9):  # back where it was: exactly
            self.scale = 1.0

    def fold_decoder_norms(self) -> None:
        """Give every decoder direction norm 1, the generalist's too."""
        self.generalist.fold_decoder_norms()
        self.extra.fold_decoder_norms()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the extra latents; the generalist is always in eval mode."""
        super().train(mode)
        self.generalist.eval()
        return self

    def _join(self, frozen: SAEOutput, extra: SAEOutput) -> SAEOutput:
        """Return the output for x, given the generalist's for x / scale."""
        recon = self.scale * frozen.recon + extra.recon
        active, order = _concatenate(frozen.latents.active, extra.latents.active)
        values, pre_acts = (
            torch.cat([self.scale * a, b])[order]
            for a, b in (
                (frozen.latents.values, extra.latents.values),
                (frozen.pre_acts, extra.pre_acts),
            )
        )
        return SAEOutput(recon, SparseLatents(active, values), pre_acts, extra=extra)


def _concatenate(a: ActiveSet, b: ActiveSet) -> tuple[ActiveSet, Tensor]:
    """Return each token's entries of `a`, then those of `b`, and where they stand in [a, b]."""
    a, b = _listed(a), _listed(b)
    assert a.indices is not None
    assert b.indices is not None
    of_a = torch.arange(len(a.indices), device=a.offsets.device) + b.offsets[a.tokens]
    of_b = torch.arange(len(b.indices), device=a.offsets.device) + a.offsets[b.tokens + 1]
    place = torch.cat([of_a, of_b])
    order = torch.empty_like(place)
    order[place] = torch.arange(len(place), device=place.device)
    indices = torch.cat([a.indices, b.indices + a.d_sae])[order]
    return ActiveSet(a.offsets + b.offsets, indices, a.d_sae + b.d_sae), order


def _listed(active: ActiveSet) -> ActiveSet:
    """Return the same set with its latents listed, where they are all."""
    if active.indices is not None:
        return active
    every = torch.arange(active.d_sae, device=active.offsets.device)
    return ActiveSet.of_rows(every.expand(active.num_tokens, -1), active.d_sae)
