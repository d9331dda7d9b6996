"""Activations together with their codes, as the statements about problem P read them.

    P:  min over ||d_j|| = 1, z_i >= 0 of  mean_i [ 1/2 ||x_i - z_i @ D||^2 + lam sum_j z_ij ]

x is what is left of an activation when b_dec is subtracted; the rows d_j of D are those of W_dec,
made norm 1: the latent takes the norm, which changes neither the reconstruction nor
lam sum_j z_ij ||W_dec_j||.
"""

import numbers
from typing import NamedTuple

import torch
from scipy import sparse
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.sae.products import sampled_product, weighted_rows
from ssae.sae.sparse import ActiveSet, SparseLatents

SMALLEST_NORM = 1e-12
"""Of a direction; a shorter one has none."""


class Coded(NamedTuple):
    """Activations and their codes in a dictionary, in float64."""

    x: Tensor
    """(n, d_in), less b_dec."""
    z: SparseLatents
    """(n, d_sae), nothing but the entries > 0."""
    directions: Tensor
    """(d_sae, d_in) of norm 1."""
    residual: Tensor
    """(n, d_in) x - z @ directions."""

    def objective(self, lam: float) -> Tensor:
        """Return 1/2 ||x_i - z_i @ D||^2 + lam sum_j z_ij of every token (n,)."""
        return self.residual.square().sum(1) / 2 + lam * self.z.active.sum_per_token(self.z.values)

    def sums_per_latent(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return sum_i values_ij rows_i, (d_sae, m), from values (nnz,) and rows (n, m)."""
        offsets, tokens, entries = self.z.active.transposed
        return weighted_rows(rows, tokens, offsets, values[entries])

    def masses(self, values: Tensor) -> Tensor:
        """Return sum_i values_ij (d_sae,), from values (nnz,)."""
        return self.sums_per_latent(values, values.new_ones(self.z.active.num_tokens, 1))[:, 0]

    def projections(self) -> Tensor:
        """Return d_j . r_i of every entry (nnz,): lam at the optimum."""
        return sampled_product(self.residual, self.directions, self.z.active)


def unit_directions(W_dec: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions (d_sae, d_in) of norm 1 and their former norms (d_sae,), float64.

    Raises:
        TypeError: W_dec is no tensor.
        ValueError: W_dec is no matrix, or not finite.
    """
    check_tensor("W_dec", W_dec)
    W_dec = W_dec.detach().double()
    if W_dec.ndim != 2 or not W_dec.isfinite().all():
        raise ValueError(f"W_dec must be a finite (d_sae, d_in), got shape {tuple(W_dec.shape)}")
    norms = W_dec.norm(dim=1)
    return W_dec / norms.clamp_min(SMALLEST_NORM)[:, None], norms


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, Tensor):
        kind = type(value)
        raise TypeError(
            f"{name} must be a torch.Tensor, got {kind.__module__}.{kind.__qualname__}; "
            f"use torch.as_tensor({name})"
        )


def check_tokens(x: Tensor, d_in: int) -> Tensor:
    """Return x in float64.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is not finite, or has another shape than (n, d_in).
    """
    check_tensor("x", x)
    if x.ndim != 2 or x.shape[1] != d_in or not len(x):
        raise ValueError(f"x must have shape (n, {d_in}) with n > 0, got {tuple(x.shape)}")
    x = x.detach().double()
    if not x.isfinite().all():
        raise ValueError("x must be finite; it holds NaN or infinity")
    return x


def check_lam(lam: float) -> float:
    """Return lam.

    Raises:
        ValueError: it is not a finite number of at least 0.
    """
    if not isinstance(lam, numbers.Real) or not 0 <= lam < float("inf"):
        raise ValueError(f"lam must be a finite number of at least 0, got {lam}")
    return float(lam)


def coded(x: Tensor, z: Tensor | SparseLatents, W_dec: Tensor) -> Coded:
    """Return x (n, d_in), from which b_dec is subtracted, with its codes z (n, d_sae).

    Raises:
        TypeError: what should be a tensor is none.
        ValueError: a shape is wrong, or a value is not finite or, in z, negative.
    """
    directions, norms = unit_directions(W_dec)
    d_sae, d_in = directions.shape
    x = check_tokens(x, d_in)
    # A latent whose direction has no length fires for nothing.
    scale = torch.where(norms > SMALLEST_NORM, norms, 0.0)
    active, values = _entries(z, len(x), scale)
    residual = x - active.decode(values, directions)
    return Coded(x, SparseLatents(active, values), directions, residual)


@torch.no_grad()
def coded_by(sae: SparseAutoencoder, x: Tensor) -> Coded:
    """Return x (n, d_in) less the SAE's b_dec, with the codes that its encoder gives."""
    check_tensor("x", x)
    latents = sae(x.to(sae.b_dec.dtype)).latents
    return coded(x.double() - sae.b_dec.double(), latents, sae.W_dec)


def as_csc(z: Tensor | SparseLatents) -> sparse.csc_matrix:
    """Return codes (n, d_sae) as a matrix whose columns can be taken, float64.

    Raises:
        TypeError: z is no tensor.
        ValueError: a value is not finite, or negative.
    """
    if not isinstance(z, SparseLatents):
        check_tensor("z", z)
    values = z.values if isinstance(z, SparseLatents) else z
    if not (values >= 0).all() or values.isinf().any():
        raise ValueError("z must be finite and nowhere negative")
    if isinstance(z, SparseLatents) and z.active.indices is not None:
        parts = (z.values.detach().double(), z.active.indices, z.active.offsets)
        values, indices, offsets = (part.cpu().numpy() for part in parts)
        shape = (z.active.num_tokens, z.active.d_sae)
        rows = sparse.csr_matrix((values, indices, offsets), shape, copy=True)
    else:
        dense = z.to_dense() if isinstance(z, SparseLatents) else z
        rows = sparse.csr_matrix(dense.detach().double().cpu().numpy())
    rows.eliminate_zeros()
    return sparse.csc_matrix(rows)


def _entries(z: Tensor | SparseLatents, n: int, scale: Tensor) -> tuple[ActiveSet, Tensor]:
    """Return the set of entries > 0 of scale (d_sae,) * z, and its values (nnz,) in float64."""
    d_sae = len(scale)
    if isinstance(z, SparseLatents):
        shape = (z.active.num_tokens, z.active.d_sae)
        values = z.values.detach()
        if z.active.indices is None:
            z = z.to_dense().detach()
            values = z
    else:
        check_tensor("z", z)
        shape, values = tuple(z.shape), z.detach()
    if shape != (n, d_sae):
        raise ValueError(f"z must have shape ({n}, {d_sae}), got {shape}")
    if not (values >= 0).all() or values.isinf().any():
        raise ValueError("z must be finite and nowhere negative")
    if isinstance(z, SparseLatents):
        indices = z.active.indices
        assert indices is not None
        tokens, latents = z.active.tokens, indices.long()
    else:
        tokens, latents = (values > 0).nonzero(as_tuple=True)
        values = values[tokens, latents]
    values = values.double() * scale[latents]
    kept = values > 0
    return ActiveSet.of_pairs(tokens[kept], latents[kept], n, d_sae), values[kept]
