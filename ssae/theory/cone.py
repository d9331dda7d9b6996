"""The cone condition: can a dictionary be a local minimum for codes that fire together like these?

Let x = z @ D exactly, and lam -> 0. Turn direction l towards direction j by a small t E_jl; the
codes that keep x exact become z_ij - t sum_l E_jl z_il, which must stay nonnegative where j is
silent: sum_l E_jl z_il <= 0 there. The L1 norm of all codes changes by -t sum_l E_jl w_jl with
w_jl = (1 - d_j . d_l) sum_i z_il. Rows j are independent; by Farkas' lemma no admissible row lowers
the norm if, and for linearly independent directions only if,

    w_j = ((1 - d_j . d_l) sum_i z_il)_{l != j}   lies in the cone of   {(z_il)_{l != j} : z_ij = 0}

(the nonnegative version of Gribonval & Schnass, 0904.4774). A nonnegative least-squares fit
of w_j by the codes of the tokens on which j is silent decides; what it leaves, e_j, is the
projection of w_j onto the polar cone: itself an admissible row, whose positive entries are the
latents that gain by turning towards d_j: children that never fire without their parent j.

What is approximate. Entries l are restricted to partners: latents that fire together with j, the
`max_partners` with the largest share of their activation there. Such a row is admissible as it is,
0 elsewhere, so a violation that is found is one. One that needs latents outside of the partners is
not found: a residual of 0 is no certificate. And it is the condition on these tokens: partners
that fire on fewer than `min_fires` of them are left out, since a latent of three tokens fires
together with another by chance.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import nnls
from torch import Tensor

from ssae.sae.sparse import SparseLatents
from ssae.theory.coded import as_csc, unit_directions

SAME = 1e-10
"""1 - cosine of two directions that are one."""
NEW_COLUMNS = 64
"""Tokens that join the fit at a time."""
TOLERANCE = 1e-7
"""Relative: a token whose code still points along the residual by less does not join."""
MIN_SHARE = 1e-6
"""A partner gains if its entry of e_j is this much of the largest entry of w_j."""


class Cone(NamedTuple):
    """The cone condition of one latent."""

    latent: int
    residual: float
    """||e_j|| / ||w_j||: 0 where the condition holds."""
    partners: np.ndarray
    """(num_partners,) the latents l of w_j."""
    gains: np.ndarray
    """(num_partners,) e_jl / max_l w_jl; > 0 for latents that gain by turning towards d_j."""

    @property
    def violators(self) -> np.ndarray:
        """The partners that gain, the one that gains most first."""
        order = np.argsort(-self.gains, kind="stable")
        return self.partners[order[self.gains[order] > MIN_SHARE]]


def cone_condition(
    z: Tensor | SparseLatents,
    W_dec: Tensor,
    *,
    latents: list[int] | None = None,
    max_partners: int = 64,
    min_fires: int = 1,
) -> list[Cone]:
    """Return the cone condition of every latent that has partners; see the module.

    Args:
        z: (n, d_sae) codes, >= 0.
        W_dec: (d_sae, d_in).
        latents: those to look at; None: all that fire.
        max_partners: of each.
        min_fires: tokens on which a partner must fire.

    Raises:
        ValueError: a shape is wrong, or a value is not finite or, in z, negative.
    """
    directions = unit_directions(W_dec)[0].cpu().numpy()
    columns = as_csc(z)
    num = len(columns.indptr) - 1
    if num != len(directions):
        raise ValueError(f"z must have {len(directions)} columns, got {num}")
    if latents is not None and not all(0 <= j < num for j in latents):
        raise ValueError(f"latents must lie in 0 .. {num - 1}, got {latents}")
    if max_partners < 1:
        raise ValueError(f"max_partners must be at least 1, got {max_partners}")
    rows = columns.tocsr()
    fires = np.diff(columns.indptr)
    masses = np.asarray(columns.sum(0)).ravel()
    chosen = np.flatnonzero(fires) if latents is None else latents
    found = []
    for j in chosen:
        on = columns.indices[columns.indptr[j] : columns.indptr[j + 1]]
        together = np.asarray(rows[on].sum(0)).ravel() / np.maximum(masses, 1e-300)
        together[fires < min_fires] = 0
        together[j] = 0
        partners = np.argsort(-together, kind="stable")[:max_partners]
        partners = np.sort(partners[together[partners] > 0])
        if len(partners):
            found.append(_cone(columns, directions, int(j), on, partners, masses))
    return found


def _cone(
    columns: sparse.csc_matrix,
    directions: np.ndarray,
    j: int,
    on: np.ndarray,
    partners: np.ndarray,
    masses: np.ndarray,
) -> Cone:
    w = (1 - directions[partners] @ directions[j]) * masses[partners]
    largest = w.max()
    if largest <= SAME * masses[partners].max():  # all of one direction: nothing to gain
        return Cone(j, 0.0, partners, np.zeros(len(partners)))
    codes = columns[:, partners].toarray()
    codes[on] = 0  # the others are the tokens on which j is silent
    codes = codes[codes.any(1)]
    residual = w / largest - project_on_cone(codes, w / largest)
    return Cone(
        j, float(np.linalg.norm(residual) / np.linalg.norm(w / largest)), partners, residual
    )


def project_on_cone(generators: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the point of the cone of the generators (n, m), rows, that is nearest to w (m,).

    The fit uses few of many rows: those join, some at a time, that point along what is left, until
    none does, which is the condition for the fit to be that of all rows.
    """
    norms = np.linalg.norm(generators, axis=1)
    generators = generators[norms > 0] / norms[norms > 0, None]
    inside = np.zeros(len(generators), bool)
    projection = np.zeros_like(w)
    while True:  # each round lowers ||w - projection||, so no set of rows comes twice
        along = np.where(inside, -np.inf, generators @ (w - projection))
        num = min(NEW_COLUMNS, len(along))
        new = np.argpartition(-along, num - 1)[:num] if num else np.zeros(0, int)
        new = new[along[new] > TOLERANCE * np.linalg.norm(w)]
        if not len(new):
            return projection
        used = np.concatenate([np.flatnonzero(inside), new])
        weights, _ = nnls(generators[used].T, w)
        projection = generators[used].T @ weights
        inside[:] = False
        inside[used[weights > 0]] = True
