"""Where an SAE stands between the best that any dictionary can do and what it does.

On one scale, all values of P's objective, mean_i [ 1/2 ||x_i - z_i D||^2 + lam sum_j z_ij ]:

    wide limit     any number of directions: an atom per data point (below)
    convex path    as many directions as the SAE uses on these tokens, chosen among their own
                   (convex.py); all of them where the SAE uses more
    optimal codes  the SAE's directions with optimal codes (codes.py)
    SAE            its directions with its encoder's codes

The last difference is what amortisation costs, the others what the directions cost. The wide limit
bounds all of them from below. The convex path does not: it is what one good dictionary reaches.

Wide limit. A nonnegative combination of unit vectors with sum z = s has norm <= s,
so for any dictionary objective_i >= min_s [ 1/2 (||x_i|| - s)_+^2 + lam s ], reached by d = x_i /
||x_i|| with z = (||x_i|| - lam)_+:

    h_i = lam ||x_i|| - lam^2 / 2   where ||x_i|| > lam,   ||x_i||^2 / 2 elsewhere
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coarsening import at_most, directions_of
from ssae.theory.coded import Coded, check_lam, check_tokens, coded, coded_by
from ssae.theory.codes import optimal_codes
from ssae.theory.convex import candidates_of

TOLERANCE = 1e-4
"""Of the KKT conditions: an objective's error is of its square's order."""


class WideLimit(NamedTuple):
    """The optimum of P with any number of directions."""

    objective: float
    """mean h_i."""
    z: Tensor
    """(n,) code of each token in its own direction."""
    num_directions: int
    """Tokens with ||x|| > lam: those that get one."""


class Scale(NamedTuple):
    """P's objective of four solutions on the same tokens, means."""

    wide_limit: float
    convex_path: float
    optimal_codes: float
    sae: float

    @property
    def share(self) -> float:
        """(sae - wide_limit) / wide_limit."""
        return (self.sae - self.wide_limit) / self.wide_limit


class OptimalityGap(NamedTuple):
    """The scale, and how it came about."""

    lam: float
    scale: Scale
    """On x."""
    held_out: Scale | None
    """On tokens that the convex path was not chosen among, if there are any."""
    num_directions: int
    """Latents of the SAE that its optimal codes use on x."""
    num_convex: int
    """Directions of the convex path."""
    gamma: float
    """Its price of a direction."""
    l0: float
    """Active latents per token of the SAE's codes on x."""
    optimal_l0: float
    """Of the optimal ones."""


def wide_limit(x: Tensor, lam: float) -> WideLimit:
    """Return the optimum of P over dictionaries of every size; see the module.

    Args:
        x: (n, d_in), less b_dec.
        lam: price of a unit of z.
    """
    lam = check_lam(lam)
    norms = check_tokens(x, x.shape[-1]).norm(dim=1)
    own = norms > lam
    h = torch.where(own, lam * norms - lam**2 / 2, norms.square() / 2)
    return WideLimit(float(h.mean()), (norms - lam).clamp_min(0), int(own.sum()))


def optimality_gap(
    sae: SparseAutoencoder, x: Tensor, lam: float, held_out: Tensor | None = None
) -> OptimalityGap:
    """Return where the SAE stands on the scale of P's objective; see the module.

    Args:
        sae: any architecture.
        x: (n, d_in) activations; the convex path chooses among their directions, which takes
            O(n^2 d_in) per sweep: some thousands at most.
        lam: price of a unit of z, > 0.
        held_out: (m, d_in) activations of other tokens.

    Raises:
        ValueError: lam is not positive, or x has another shape.
    """
    if not check_lam(lam) > 0:
        raise ValueError("the scale needs a penalty, lam > 0; got 0")
    own = coded_by(sae, x)
    best = with_optimal_codes(own.x, own.directions, lam)
    num = int(torch.count_nonzero(best.z.fire_counts()))
    candidates = candidates_of(own.x[own.x.norm(dim=1) > lam])
    gamma, convex = 0.0, candidates
    if num < len(candidates):
        gamma, chosen = at_most(own.x, candidates, lam, num)
        convex = directions_of(chosen, candidates)
    return OptimalityGap(
        lam=lam,
        scale=_scale(own, best, convex, lam),
        held_out=None if held_out is None else _held_out(sae, held_out, convex, lam),
        num_directions=num,
        num_convex=len(convex),
        gamma=gamma,
        l0=float(own.z.num_active().double().mean()),
        optimal_l0=float(best.z.num_active().double().mean()),
    )


def _held_out(sae: SparseAutoencoder, x: Tensor, convex: Tensor, lam: float) -> Scale:
    own = coded_by(sae, x)
    return _scale(own, with_optimal_codes(own.x, own.directions, lam), convex, lam)


def _scale(own: Coded, best: Coded, convex: Tensor, lam: float) -> Scale:
    chosen = with_optimal_codes(own.x, convex, lam).objective(lam)
    return Scale(
        wide_limit=wide_limit(own.x, lam).objective,
        convex_path=float(chosen.mean()),
        optimal_codes=float(best.objective(lam).mean()),
        sae=float(own.objective(lam).mean()),
    )


def with_optimal_codes(x: Tensor, W_dec: Tensor, lam: float) -> Coded:
    """Return x (n, d_in), less b_dec, with its optimal codes in a dictionary (num, d_in)."""
    return coded(x, optimal_codes(x, W_dec, lam, tolerance=TOLERANCE).z, W_dec)
