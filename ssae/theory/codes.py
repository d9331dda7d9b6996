"""Optimal codes of a fixed dictionary: the nonnegative lasso, solved to its KKT conditions.

    min over z >= 0 of  1/2 ||x - z @ D||^2 + lam sum_j z_j

is convex. Its KKT conditions (formulas in coded.py's names, r = x - z @ D):

    d_j . r  = lam   where z_j > 0
    d_j . r <= lam   elsewhere

so kkt(z) = max_j of |d_j . r - lam| where z_j > 0 and (d_j . r - lam)_+ elsewhere, over ||x||, is 0
at the optimum alone; it is what says when to stop. pivots.py solves it: the active latents are few,
and once they are known the codes are a linear system away.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coded import (
    check_lam,
    check_tensor,
    check_tokens,
    coded,
    coded_by,
    unit_directions,
)
from ssae.theory.pivots import exact_codes

CHUNK_BYTES = 2**25
"""Codes of as many tokens at once as take this much memory."""


class Codes(NamedTuple):
    """Optimal codes, and how optimal they are."""

    z: Tensor
    """(n, d_sae) float64, >= 0, of the directions of norm 1."""
    kkt: Tensor
    """(n,) largest violation of the KKT conditions, over ||x_i||."""
    num_steps: int
    """Of pivots.py, for the tokens that took longest."""


class AmortisationGap(NamedTuple):
    """What an encoder loses to the optimal codes of its own dictionary, means over tokens."""

    objective: float
    """1/2 ||r||^2 + lam sum z with the SAE's codes."""
    optimal: float
    """The same with optimal codes."""
    l0: float
    """Active latents per token of the SAE's codes."""
    optimal_l0: float
    """Likewise of the optimal ones."""
    kkt: float
    """Largest violation of the KKT conditions that is left in the optimal codes."""

    @property
    def gap(self) -> float:
        """What the encoder costs, objective - optimal >= 0."""
        return self.objective - self.optimal


@torch.no_grad()
def kkt_violation(x: Tensor, z: Tensor, directions: Tensor, lam: float) -> Tensor:
    """Return kkt(z) (n,), over ||x_i||, of codes z (n, d_sae); see above."""
    slack = (x - z @ directions) @ directions.T - lam
    worst = torch.where(z > 0, slack.abs(), slack.clamp_min(0)).amax(1)
    return worst / x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)


@torch.no_grad()
def optimal_codes(
    x: Tensor,
    W_dec: Tensor,
    lam: float,
    *,
    initial: Tensor | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 10_000,
) -> Codes:
    """Return the codes that minimise 1/2 ||x_i - z_i @ D||^2 + lam sum_j z_ij over z_i >= 0.

    Args:
        x: (n, d_in), less b_dec.
        W_dec: (d_sae, d_in); its rows are made norm 1.
        lam: >= 0; 0 gives nonnegative least squares.
        initial: (n, d_sae) codes to start from, >= 0, of the directions of norm 1.
        tolerance: of kkt, at which a token is done.
        max_steps: of pivots.py, at which the others are left as they are; see `Codes.kkt`.

    Raises:
        TypeError: what should be a tensor is none.
        ValueError: a shape is wrong, or a value is not finite or negative where it may not be.
    """
    directions, _ = unit_directions(W_dec)
    x, lam = check_tokens(x, directions.shape[1]), check_lam(lam)
    shape = (len(x), len(directions))
    if initial is None:
        initial = x.new_zeros(1, 1).expand(shape)
    check_tensor("initial", initial)
    if initial.shape != shape or not (initial >= 0).all() or initial.isinf().any():
        raise ValueError(
            f"initial must be finite nonnegative codes {shape}, got {tuple(initial.shape)}"
        )
    if not len(directions):
        return Codes(x.new_zeros(shape), x.new_zeros(len(x)), 0)
    rows = max(1, CHUNK_BYTES // (8 * len(directions)))
    parts = [
        _solve(x[i : i + rows], directions, lam, initial[i : i + rows].double(), tolerance,
               max_steps)
        for i in range(0, len(x), rows)
    ]  # fmt: skip
    z, kkt, num_steps = zip(*parts, strict=True)
    return Codes(torch.cat(z), torch.cat(kkt), max(num_steps))


def amortisation_gap(sae: SparseAutoencoder, x: Tensor, lam: float) -> AmortisationGap:
    """Return how much lower P's objective is with optimal codes than with the encoder's.

    Args:
        sae: any architecture; its encoder is compared, its dictionary stays.
        x: (n, d_in) activations, as the SAE reads them.
        lam: price of a unit of z.
    """
    own = coded_by(sae, x)
    best = optimal_codes(own.x, own.directions, lam, initial=own.z.to_dense())
    theirs = coded(own.x, best.z, own.directions)
    return AmortisationGap(
        objective=float(own.objective(lam).mean()),
        optimal=float(theirs.objective(lam).mean()),
        l0=float(own.z.num_active().double().mean()),
        optimal_l0=float(theirs.z.num_active().double().mean()),
        kkt=float(best.kkt.max()),
    )


def _solve(
    x: Tensor, directions: Tensor, lam: float, z: Tensor, tolerance: float, max_steps: int
) -> Codes:
    kkt, num_steps = kkt_violation(x, z, directions, lam), 0
    left = (kkt > tolerance).nonzero()[:, 0]
    if len(left) and max_steps:
        z = z.clone()
        z[left], num_steps = exact_codes(x[left], directions, lam, z[left], tolerance, max_steps)
        kkt[left] = kkt_violation(x[left], z[left], directions, lam)
    return Codes(z, kkt, num_steps)
