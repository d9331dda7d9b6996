"""Optimal codes of a fixed dictionary: the nonnegative lasso, solved to its KKT conditions.

    min over z >= 0 of  1/2 ||x - z @ D||^2 + lam sum_j z_j

is convex. Its KKT conditions (formulas in coded.py's names, r = x - z @ D):

    d_j . r  = lam   where z_j > 0
    d_j . r <= lam   elsewhere

so kkt(z) = max_j of |d_j . r - lam| where z_j > 0 and (d_j . r - lam)_+ elsewhere, over ||x||, is 0
at the optimum alone; it is what says when to stop. The steps are FISTA's (Beck & Teboulle 2009),
restarted token by token where the momentum points uphill (O'Donoghue & Candes, 1204.3982). After
some of them the active latents are nearly known, and pivots.py makes the codes exact; tokens for
which it does not go on with FISTA.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coded import check_lam, check_tokens, coded, coded_by, unit_directions
from ssae.theory.pivots import exact_codes

CHECK_EVERY = 10
"""Steps between two looks at the KKT conditions."""
CHUNK_BYTES = 2**25
"""Codes of as many tokens at once as take this much memory."""
GUESS_STEPS = 100
"""Before the active set is guessed."""
POWER_STEPS = 200
"""Of the power iteration for ||D||^2."""
SAFETY = 1.02
"""What it may have missed."""


class Codes(NamedTuple):
    """Optimal codes, and how optimal they are."""

    z: Tensor
    """(n, d_sae) float64, >= 0, of the directions of norm 1."""
    kkt: Tensor
    """(n,) largest violation of the KKT conditions, over ||x_i||."""
    num_steps: int
    """Of FISTA, for the tokens that took longest."""


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
    max_steps: int = 50_000,
) -> Codes:
    """Return the codes that minimise 1/2 ||x_i - z_i @ D||^2 + lam sum_j z_ij over z_i >= 0.

    Args:
        x: (n, d_in), less b_dec.
        W_dec: (d_sae, d_in); its rows are made norm 1.
        lam: >= 0; 0 gives nonnegative least squares.
        initial: (n, d_sae) codes to start from, >= 0, of the directions of norm 1.
        tolerance: of kkt, at which a token is done.
        max_steps: of FISTA, at which the others are left as they are; see `Codes.kkt`.

    Raises:
        ValueError: a shape is wrong, or a value is not finite or negative where it may not be.
    """
    directions, _ = unit_directions(W_dec)
    x, lam = check_tokens(x, directions.shape[1]), check_lam(lam)
    shape = (len(x), len(directions))
    if initial is None:
        initial = x.new_zeros(1, 1).expand(shape)
    if initial.shape != shape or not (initial >= 0).all() or initial.isinf().any():
        raise ValueError(
            f"initial must be finite nonnegative codes {shape}, got {tuple(initial.shape)}"
        )
    if not len(directions):
        return Codes(x.new_zeros(shape), x.new_zeros(len(x)), 0)
    step = 1 / (SAFETY * _squared_norm(directions))
    rows = max(1, CHUNK_BYTES // (8 * len(directions)))
    parts = [
        _solve(x[i : i + rows], directions, lam, initial[i : i + rows].double(), step, tolerance,
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


def _squared_norm(directions: Tensor) -> float:
    """Return ||D||^2, the Lipschitz constant of the gradient."""
    generator = torch.Generator(directions.device).manual_seed(0)
    v = torch.randn(
        directions.shape[1], generator=generator, dtype=directions.dtype, device=directions.device
    )
    for _ in range(POWER_STEPS):
        v = directions.T @ (directions @ v)
        v /= v.norm().clamp_min(torch.finfo(v.dtype).tiny)
    return float((directions @ v).square().sum().clamp_min(1e-300))


def _solve(
    x: Tensor, directions: Tensor, lam: float, z: Tensor, step: float, tolerance: float,
    max_steps: int,
) -> Codes:  # fmt: skip
    guess = _fista(x, directions, lam, z, step, tolerance, min(GUESS_STEPS, max_steps))
    z, kkt, num_steps = guess
    left = (kkt > tolerance).nonzero()[:, 0]
    if not len(left) or num_steps >= max_steps:
        return guess
    z[left], is_exact = exact_codes(x[left], directions, lam, z[left], tolerance)
    kkt[left] = kkt_violation(x[left], z[left], directions, lam)
    left = left[~is_exact]
    if len(left):
        z[left], kkt[left], more = _fista(
            x[left], directions, lam, z[left], step, tolerance, max_steps - num_steps
        )
        num_steps += more
    return Codes(z, kkt, num_steps)


def _fista(
    x: Tensor, directions: Tensor, lam: float, z: Tensor, step: float, tolerance: float,
    max_steps: int,
) -> Codes:  # fmt: skip
    best, kkt = z.clone(), x.new_full((len(x),), torch.inf)
    left = torch.arange(len(x), device=x.device)
    y, t = z, x.new_ones(len(x), 1)
    num_steps = 0
    while True:
        if num_steps % CHECK_EVERY == 0:
            found = kkt_violation(x, z, directions, lam)
            best[left], kkt[left] = z, found
            open_ = found > tolerance
            if num_steps >= max_steps or not open_.any():
                return Codes(best, kkt, num_steps)
            if not open_.all():
                left, x, z, y, t = (a[open_] for a in (left, x, z, y, t))
        ascent = (x - y @ directions) @ directions.T - lam
        new = torch.add(y, ascent, alpha=step).clamp_min_(0)
        # The momentum points uphill: forget it, for this token alone.
        restart = ((y - new) * (new - z)).sum(1, keepdim=True) > 0
        t = torch.where(restart, 1.0, t)
        t_new = (1 + (1 + 4 * t * t).sqrt()) / 2
        y = torch.addcmul(new, torch.where(restart, 0.0, (t - 1) / t_new), new - z)
        z, t = new, t_new
        num_steps += 1
