"""The price of a unit of z that an SAE was trained with: lam of problem P.

Training minimises ||s x - recon||^2 + l1_coefficient sum_j z_j of activations scaled by
s = input_scale; in units of x, and halved, that is P with

    lam = l1_coefficient / (2 input_scale)          (ReLU with an L1 penalty)

At the optimum d_j . r_i = lam on every active pair, so the median of these projections estimates
lam where the objective is not known (SAEs trained elsewhere), and their spread says how well one
lam describes the SAE. TopK, BatchTopK, JumpReLU and Matryoshka have no price on z, and gated SAEs
price their gate alone, so as not to shrink z: lam = 0.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coded import Coded, check_tokens, unit_directions
from ssae.theory.codes import optimal_codes

PRICED = ("relu",)
"""Architectures that pay for a unit of z."""
TOLERANCE = 1e-4
"""Of codes whose l0 alone is asked for."""
SEARCH_STEPS = 20
CLOSE = 0.02
"""Relative distance from the wanted l0 at which the search ends."""


class Penalty(NamedTuple):
    """lam of an SAE, and what the projections of its residual on active directions say of it."""

    lam: float
    origin: str
    """objective, estimated, or none: an SAE without a price on z."""
    median: float
    """Of d_j . r_i over active pairs."""
    low: float
    high: float
    """Their 5 and 95 % quantiles."""


def penalty_of(sae: SparseAutoencoder, batch: Coded, input_scale: float | None = None) -> Penalty:
    """Return lam of an SAE.

    Args:
        sae: any architecture.
        batch: tokens with the SAE's codes, at least one of them active.
        input_scale: by which training scaled activations; None: not known.

    Raises:
        ValueError: no latent is active.
    """
    projections = batch.projections().cpu().numpy()
    if not len(projections):
        raise ValueError("no latent of the SAE is active on these tokens: lam cannot be estimated")
    low, median, high = np.quantile(projections, [0.05, 0.5, 0.95]).tolist()
    if sae.architecture not in PRICED:
        return Penalty(0.0, "none", median, low, high)
    coefficient = getattr(sae, "l1_coefficient", 0.0)
    if input_scale is not None and coefficient > 0:
        return Penalty(coefficient / 2 / input_scale, "objective", median, low, high)
    return Penalty(max(0.0, median), "estimated", median, low, high)


def lam_of_l0(x: Tensor, W_dec: Tensor, l0: float) -> float:
    """Return the lam at which optimal codes have l0 active latents per token, to 2 %.

    It puts SAEs without a penalty on the scale of P: the price at which P's own codes are as sparse
    as theirs.

    Args:
        x: (n, d_in), less b_dec; a few hundred tokens are enough.
        W_dec: (d_sae, d_in).
        l0: > 0.

    Raises:
        ValueError: even nonnegative least squares, lam -> 0, has fewer active latents.
    """
    if not l0 > 0:
        raise ValueError(f"l0 must be positive, got {l0}")
    directions, _ = unit_directions(W_dec)
    x = check_tokens(x, directions.shape[1])
    high = float((x @ directions.T).max())  # from here on every code is 0
    if not high > 0:
        raise ValueError("no direction points along any token: optimal codes are 0 at every lam")
    low, codes, found = 1e-4 * high, None, None
    lam = low
    for step in range(SEARCH_STEPS):
        codes = optimal_codes(
            x, directions, lam, initial=codes, tolerance=TOLERANCE, max_steps=2000
        ).z
        found = float((codes > 0).sum(1).double().mean())
        if abs(found - l0) <= CLOSE * l0:
            break
        if found < l0:
            if step == 0:
                raise ValueError(
                    f"optimal codes of this dictionary never have {l0:.1f} active latents per "
                    f"token, at most {found:.1f}"
                )
            high = lam
        else:
            low = lam
        lam = (low * high) ** 0.5
    return lam
