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
SMALL, SMALLEST = 1e-2, 1e-12
"""Prices below which, over the largest, there is a way by larger ones, and at which that ends."""
FALL = 4.0
"""Of the price at each step of that way."""
COARSE = 1e-3
"""Tolerance of the KKT conditions on it."""


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

    They are dense, 8 n d_sae bytes: `amortisation_gap` takes as many tokens as there are.

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
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1), got {tolerance}")
    if initial is not None:
        check_tensor("initial", initial)
        if initial.shape != shape or not (initial >= 0).all() or initial.isinf().any():
            raise ValueError(
                f"initial must be finite nonnegative codes {shape}, got {tuple(initial.shape)}"
            )
    if not len(directions):
        return Codes(x.new_zeros(shape), x.new_zeros(len(x)), 0)
    rows, parts = chunk_tokens(len(directions)), []
    for start in range(0, len(x), rows):
        own = slice(start, start + rows)
        z = None if initial is None else initial[own].double()
        parts.append(_solve(x[own], directions, lam, z, tolerance, max_steps))
    z, kkt, num_steps = zip(*parts, strict=True)
    return Codes(torch.cat(z), torch.cat(kkt), max(num_steps))


def amortisation_gap(sae: SparseAutoencoder, x: Tensor, lam: float) -> AmortisationGap:
    """Return how much lower P's objective is with optimal codes than with the encoder's.

    Args:
        sae: any architecture; its encoder is compared, its dictionary stays.
        x: (n, d_in) activations, as the SAE reads them.
        lam: price of a unit of z.
    """
    sums, worst = x.new_zeros(4, dtype=torch.float64), 0.0
    for piece in x.split(chunk_tokens(sae.d_sae)):
        own = coded_by(sae, piece)
        best = optimal_codes(own.x, own.directions, lam, initial=own.z.to_dense())
        theirs = coded(own.x, best.z, own.directions)
        columns = own.objective(lam), theirs.objective(lam), own.z.num_active()
        sums += torch.stack([c.double().sum() for c in (*columns, theirs.z.num_active())])
        worst = max(worst, float(best.kkt.max()))
    return AmortisationGap(*(sums / len(x)).tolist(), kkt=worst)


def chunk_tokens(d_sae: int) -> int:
    """Return of how many tokens the codes are held densely at a time."""
    return max(1, CHUNK_BYTES // (8 * d_sae))


def _solve(
    x: Tensor, directions: Tensor, lam: float, z: Tensor | None, tolerance: float, max_steps: int
) -> Codes:
    num_steps = 0
    if z is None:
        z = x.new_zeros(len(x), len(directions))
        for price in _falling(float((x @ directions.T).max()), lam):
            z, more = exact_codes(x, directions, price, z, COARSE, max_steps - num_steps)
            num_steps += more
    kkt = kkt_violation(x, z, directions, lam)
    left = (kkt > tolerance).nonzero()[:, 0]
    if len(left) and num_steps < max_steps:
        z = z.clone()
        z[left], more = exact_codes(
            x[left], directions, lam, z[left], tolerance, max_steps - num_steps
        )
        num_steps += more
        kkt[left] = kkt_violation(x[left], z[left], directions, lam)
    return Codes(z, kkt, num_steps)


def _falling(largest: float, lam: float) -> list[float]:
    """Return prices from `largest`, at which no latent is active, down to above a small lam.

    With such a price nearly d_in latents are active: from none of them an active set gets there in
    a fourth of the steps by way of larger prices. Without any price it is there at once.
    """
    prices, price = [], largest / FALL
    if 0 < lam < SMALL * largest:
        while price > FALL * max(lam, SMALLEST * largest):
            prices.append(price)
            price /= FALL
    return prices
