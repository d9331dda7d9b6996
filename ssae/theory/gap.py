"""Where an SAE stands between the best that any dictionary can do and what it does.

On one scale, all values of P's objective, mean_i [ 1/2 ||x_i - z_i D||^2 + lam sum_j z_ij ]:

    wide limit     any number of directions: an atom per data point (below)
    convex path    `num` directions, chosen among those of the tokens (convex.py)
    own path       `num` of the SAE's own directions, chosen likewise
    optimal codes  all of the SAE's directions with optimal codes (codes.py)
    SAE            its directions with its encoder's codes

The last difference is what amortisation costs, and the price of z if the SAE was not trained to pay
one; that of the two paths, at equal numbers of directions, is what the directions cost. `num` is
how many the SAE's optimal codes use, but at most one for every TOKENS_PER_DIRECTION tokens: with a
direction for every token the path would be the wide limit and say nothing of other tokens. The wide
limit bounds all of them from below. The convex path does not: it is what one good dictionary
reaches.

Wide limit. A nonnegative combination of unit vectors with sum z = s has norm <= s,
so for any dictionary objective_i >= min_s [ 1/2 (||x_i|| - s)_+^2 + lam s ], reached by d = x_i /
||x_i|| with z = (||x_i|| - lam)_+:

    h_i = lam ||x_i|| - lam^2 / 2   where ||x_i|| > lam,   ||x_i||^2 / 2 elsewhere
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coarsening import CLOSE, at_most, directions_of
from ssae.theory.coded import Coded, check_lam, check_tokens, coded, coded_by
from ssae.theory.codes import optimal_codes
from ssae.theory.convex import candidates_of

TOLERANCE = 1e-4
"""Of the KKT conditions: an objective's error is of its square's order."""


TOKENS_PER_DIRECTION = 4
"""At least, on both paths."""


class WideLimit(NamedTuple):
    """The optimum of P with any number of directions."""

    objective: float
    """mean h_i."""
    z: Tensor
    """(n,) code of each token in its own direction."""
    num_directions: int
    """Tokens with ||x|| > lam: those that get one."""


class Scale(NamedTuple):
    """P's objective of five solutions on the same tokens, means."""

    wide_limit: float
    convex_path: float
    own_path: float
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
    """On tokens that the paths were not chosen on, if there are any."""
    num_directions: int
    """Latents of the SAE that its optimal codes use on x."""
    num_convex: int
    """Directions of the convex path."""
    num_own: int
    """Directions of the own path."""
    gamma: float
    """Price of a direction on the convex path."""
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
    own, best = _both_codes(sae, x, lam)
    used = own.directions[best.z.fire_counts() > 0]
    num = min(len(used), max(1, len(own.x) // TOKENS_PER_DIRECTION))
    tokens = candidates_of(own.x[own.x.norm(dim=1) > lam])
    gamma, convex = _path(own.x, tokens, lam, num)
    # As many as there are on the convex path, which may end up with fewer.
    subset = used
    if len(convex) < (1 - CLOSE) * len(used):
        _, subset = _path(own.x, used, lam, max(1, len(convex)))
    paths = convex, subset
    return OptimalityGap(
        lam=lam,
        scale=_scale(own, best, paths, lam),
        held_out=None if held_out is None else _scale(*_both_codes(sae, held_out, lam), paths, lam),
        num_directions=len(used),
        num_convex=len(convex),
        num_own=len(subset),
        gamma=gamma,
        l0=float(own.z.num_active().double().mean()),
        optimal_l0=float(best.z.num_active().double().mean()),
    )


def _path(x: Tensor, candidates: Tensor, lam: float, num: int) -> tuple[float, Tensor]:
    """Return (gamma, directions), at most `num` of the candidates."""
    gamma, chosen = at_most(x, candidates, lam, num)
    return gamma, directions_of(chosen, candidates)


def _both_codes(sae: SparseAutoencoder, x: Tensor, lam: float) -> tuple[Coded, Coded]:
    """Return x with the codes of the SAE's encoder, and with optimal ones."""
    own = coded_by(sae, x)
    return own, with_optimal_codes(own.x, own.directions, lam)


def _scale(own: Coded, best: Coded, paths: tuple[Tensor, Tensor], lam: float) -> Scale:
    convex, subset = (with_optimal_codes(own.x, path, lam).objective(lam) for path in paths)
    return Scale(
        wide_limit=wide_limit(own.x, lam).objective,
        convex_path=float(convex.mean()),
        own_path=float(subset.mean()),
        optimal_codes=float(best.objective(lam).mean()),
        sae=float(own.objective(lam).mean()),
    )


def with_optimal_codes(x: Tensor, W_dec: Tensor, lam: float) -> Coded:
    """Return x (n, d_in), less b_dec, with its optimal codes in a dictionary (num, d_in)."""
    return coded(x, optimal_codes(x, W_dec, lam, tolerance=TOLERANCE).z, W_dec)
