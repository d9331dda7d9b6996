"""Decoder directions for fixed codes: each in turn is put where P's objective is least.

With A = sum_i z_i^T z_i (d_sae, d_sae) and B = sum_i z_i^T x_i (d_sae, d_in), P's objective is

    1/2 sum ||x||^2 - sum_j B_j . d_j + 1/2 sum_jl A_jl d_j . d_l + lam sum z

and in one direction of norm 1, the others fixed, it is a constant less g_j . d_j, where

    g_j = B_j - A_j D + A_jj d_j = sum_i z_ij r_i + A_jj d_j

so its minimum over the sphere is d_j = g_j / ||g_j||. There sum_i z_ij r_i = g_j - A_jj d_j is
parallel to d_j: the condition of stationarity (violations.py). Steps like this, one latent after
the other, are those of online dictionary learning (Mairal et al. 2010, algorithm 2).

For a Matryoshka SAE latent j is in a share w_j of the prefixes, and a pair in the smaller share of
the two: the objective is the same with w_j B_j and min(w_j, w_l) A_jl.

What n tokens say of a direction is noisy: of the tangent part tau_j of sum_i z_ij r_i, the tokens
alone give noise_j^2 = sum_i z_ij^2 ||r_i||^2 in the mean of its square. A latent turns by the
share (1 - noise_j^2 / ||tau_j||^2)_+ of the way, the positive-part James-Stein estimate: by all of
it where many tokens agree, by nothing where a few would pull a direction that training has learnt
from more of them towards themselves.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ssae.theory.active_codes import support_of


class Statistics(NamedTuple):
    """What the objective depends on for fixed codes, sums over tokens in float64."""

    A: sparse.csr_matrix
    """(d_sae, d_sae) z^T z, weighted."""
    B: np.ndarray
    """(d_sae, d_in) z^T x, weighted."""
    noise: np.ndarray
    """(d_sae,) noise_j^2."""
    constant: float
    """1/2 sum ||x||^2 + lam sum z."""
    num_tokens: int

    @property
    def alive(self) -> np.ndarray:
        """Latents that fire."""
        return np.flatnonzero(self.A.diagonal())

    def objective(self, directions: np.ndarray) -> float:
        """Return P's objective, the mean over tokens."""
        linear = (self.B * directions).sum()
        square = (directions * (self.A @ directions)).sum()
        return float(self.constant - linear + square / 2) / self.num_tokens

    def shares(self, directions: np.ndarray) -> np.ndarray:
        """Return (1 - noise_j^2 / ||tau_j||^2)_+ (d_sae,)."""
        tau = self.B - self.A @ directions
        tau -= (tau * directions).sum(1, keepdims=True) * directions
        squares = np.square(tau).sum(1)
        return np.maximum(0, 1 - self.noise / np.maximum(squares, np.finfo(float).tiny))


def statistics_of(
    x: Tensor, z: sparse.csr_matrix, directions: Tensor, lam: float, ends: list[int]
) -> Statistics:
    """Return the statistics of n tokens.

    Args:
        x: (n, d_in), less b_dec.
        z: (n, d_sae) codes.
        directions: (d_sae, d_in) of norm 1, of which the residuals' noise is measured.
        lam: price of a unit of z.
        ends: of groups of latents; see `support_of`.
    """
    support, d_sae = support_of(z, ends), len(directions)
    values = torch.from_numpy(z.data)
    pulls = support.pulls(support.residuals(x, values, directions))
    lengths = pulls.double().square().sum(2).flatten()[support.active.tokens]
    noise = np.bincount(z.indices, (values.double().square() * lengths).numpy(), d_sae)
    z, rows = sparse.csr_matrix(z, dtype=np.float64), x.double().numpy()
    groups = np.searchsorted(ends, np.arange(d_sae), side="right")
    w = 1 - groups / len(ends)
    A = sparse.coo_matrix(z.T @ z)
    A.data *= np.minimum(w[A.row], w[A.col])
    constant = np.square(rows).sum() / 2 + lam * z.sum()
    return Statistics(
        sparse.csr_matrix(A), w[:, None] * (z.T @ rows), noise, float(constant), len(x)
    )


def total(parts: list[Statistics]) -> Statistics:
    """Return the statistics of all parts together."""
    A, B, noise, constant, num_tokens = (list(column) for column in zip(*parts, strict=True))
    return Statistics(
        _sum(A), np.sum(B, axis=0), np.sum(noise, axis=0), sum(constant), sum(num_tokens)
    )


def turned(
    statistics: Statistics, directions: np.ndarray, shares: np.ndarray | None = None
) -> np.ndarray:
    """Return the directions (d_sae, d_in) after a step of every latent that fires, in turn.

    Args:
        statistics: of the codes.
        directions: of norm 1.
        shares: (d_sae,) of the way that each goes; None: all of it. Between a direction and its
            minimiser the objective falls all along the great circle.
    """
    A, D = statistics.A, directions.copy()
    for j in statistics.alive:
        entries = slice(A.indptr[j], A.indptr[j + 1])
        latents, row = A.indices[entries], A.data[entries]
        g = statistics.B[j] - row @ D[latents] + row[latents == j].sum() * D[j]
        norm = np.linalg.norm(g)
        if not norm > 0:  # every direction is as good
            continue
        share = 1.0 if shares is None else shares[j]
        moved = share * g / norm + (1 - share) * D[j]
        length = np.linalg.norm(moved)
        if length > 0:
            D[j] = moved / length
    return D


def _sum(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    """Add matrices pair by pair: each entry is copied log2 times instead of once for each part."""
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + (parts[-1:] if len(parts) % 2 else [])
    return parts[0]
