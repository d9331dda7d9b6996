"""What happens to P as directions get plentiful, or get a price: its two ends, on toys."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coarsening import Merge, coarsening_path, merge_tree
from ssae.theory.coded import Coded, coded_by
from ssae.theory.convex import candidates_of, largest_gamma
from ssae.theory.fit import fit_dictionary
from ssae.theory.gap import wide_limit, with_optimal_codes
from ssae.theory.toy import Points

NEAR = 0.99  # cosine of a point with a direction that is its own
NUM_FAMILIES, FAMILY_SIZE, SCATTER = 6, 5, 0.4
NUM_GAMMAS = 40
SHARES = (0.1, 0.99)
"""Of the largest gamma, at which no direction is left: ends of the path."""


class Limit(NamedTuple):
    """How near a number of directions comes to the wide limit.

    The objectives are over the wide limit of the same x less b_dec, less 1.
    """

    num_directions: int
    sae: float
    optimal_codes: float
    """With the SAE's directions."""
    dictionary: float
    """Of directions that were fitted without an encoder."""
    cosines: list[float]
    """Of each point with the direction nearest to it."""
    code: float
    """Median of sum_j z_ij / (||x_i|| - lam)."""

    @property
    def num_own(self) -> int:
        """Points with a direction of their own."""
        return sum(cosine > NEAR for cosine in self.cosines)


class Merging(NamedTuple):
    """Tokens in families of similar direction, as directions get a price (convex.py)."""

    families: list[int]
    """Of each token, and so of each candidate."""
    gammas: list[float]
    """Rising, over the largest."""
    num_used: list[int]
    """Directions in use at each."""
    merges: list[Merge]
    """Which of them gives way to which; step is an index of gammas."""
    gap: float
    """Largest duality gap of the path, relative."""


def measure_limit(toy: Points, sae: SparseAutoencoder, lam: float) -> Limit:
    """Return how near an SAE, and as many directions alone, come to an atom per data point."""
    points = toy.lengths[:, None] * toy.directions
    own = coded_by(sae, points)
    alone = fit_dictionary(points, sae.d_sae, lam, seed=toy.seed)
    codes = own.z.active.sum_per_token(own.z.values) / (own.x.norm(dim=1) - lam)
    best = with_optimal_codes(own.x, own.directions, lam)
    return Limit(
        num_directions=sae.d_sae,
        sae=excess_over_limit(own, lam),
        optimal_codes=excess_over_limit(best, lam),
        dictionary=excess_over_limit(with_optimal_codes(points, alone, lam), lam),
        cosines=nearest(normalize(own.x), own).amax(1).tolist(),
        code=float(codes.median()),
    )


def excess_over_limit(batch: Coded, lam: float) -> float:
    """Return P's objective over the wide limit, less 1."""
    return float(batch.objective(lam).mean()) / wide_limit(batch.x, lam).objective - 1


def nearest(D: Tensor, batch: Coded) -> Tensor:
    """Return D . d_j (num_concepts, d_sae), less than any cosine for latents that never fire."""
    return torch.where(batch.z.fire_counts() > 0, D.double() @ batch.directions.T, -2)


def measure_merging(lam: float, seed: int) -> Merging:
    """Return how directions merge on tokens x = a family's direction + noise, of norm 1."""
    toy = Points(num_concepts=NUM_FAMILIES, d_in=16, seed=seed)
    families = torch.arange(NUM_FAMILIES).repeat_interleave(FAMILY_SIZE)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(families), toy.d_in, generator=generator)
    x = normalize(toy.directions[families] + SCATTER * normalize(noise)).double()
    candidates = candidates_of(x)
    shares = torch.linspace(*SHARES, NUM_GAMMAS).tolist()
    top = largest_gamma(x, candidates, lam)
    path = coarsening_path(x, candidates, lam, [share * top for share in shares])
    return Merging(
        families.tolist(), shares, [found.num_used for found in path], merge_tree(path),
        max(found.gap for found in path),
    )  # fmt: skip
