"""Antipodal pairs: two latents that stand for one signed direction.

The identity of pairs (pairs.py) lets cos(d_j, d_k) fall to -1 only if k is silent wherever j fires.
So a direction u along which x varies with both signs, which nonnegative latents cannot hold as one,
becomes

    d_j = u, d_k = -u,   z_j = (x . u - lam)_+, z_k = (-x . u - lam)_+

two latents whose densities add up and that never fire together. `share` is the share of the
variance of x that lies along their common direction u = (d_j - d_k) / ||d_j - d_k||.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssae.sae.sparse import SparseLatents
from ssae.theory.coded import Coded, coded

MAX_COSINE = -0.9
MIN_DENSITY = 0.1
"""Share of tokens on which both latents of a dense pair fire."""
MAX_JOINT = 0.01
"""Share of tokens on which they fire together, at most."""
CHUNK = 1024


class AntipodalPair(NamedTuple):
    """Two latents of nearly opposite directions."""

    first: int
    second: int
    """The latents; the first fires on more tokens."""
    cosine: float
    """d_first . d_second."""
    densities: tuple[float, float]
    """Share of tokens on which each fires."""
    joint: float
    """Share of tokens on which both fire."""
    share: float
    """Of the variance of x, along the direction they share."""
    correlation: float
    """Of z_first - z_second with x along that direction, over tokens on which one fires."""

    @property
    def is_dense(self) -> bool:
        """Whether both fire on more than 10 % of tokens, and hardly ever together."""
        return min(self.densities) > MIN_DENSITY and self.joint <= MAX_JOINT


def opposite_directions(directions: Tensor, max_cosine: float = MAX_COSINE) -> Tensor:
    """Return the pairs j < k with d_j . d_k < max_cosine, (num_pairs, 2)."""
    found = [torch.zeros(0, 2, dtype=torch.int64, device=directions.device)]
    for start in range(0, len(directions), CHUNK):
        cosines = directions[start : start + CHUNK] @ directions.T
        j, k = (cosines < max_cosine).nonzero(as_tuple=True)
        j = j + start
        found.append(torch.stack([j, k], 1)[j < k])
    return torch.cat(found)


def antipodal_pairs(
    x: Tensor, z: Tensor | SparseLatents, W_dec: Tensor, max_cosine: float = MAX_COSINE
) -> list[AntipodalPair]:
    """Return the pairs of latents with opposite directions, the largest share of variance first.

    Args:
        x: (n, d_in), less b_dec.
        z: (n, d_sae) codes.
        W_dec: (d_sae, d_in).
        max_cosine: of the two directions, in [-1, 0).

    Raises:
        ValueError: max_cosine or a shape is out of range.
    """
    return pairs_of(coded(x, z, W_dec), max_cosine)


def pairs_of(batch: Coded, max_cosine: float = MAX_COSINE) -> list[AntipodalPair]:
    """Return the antipodal pairs of latents that fire on these tokens; see `antipodal_pairs`."""
    if not -1 <= max_cosine < 0:
        raise ValueError(f"max_cosine must lie in [-1, 0), got {max_cosine}")
    D = batch.directions
    fires = batch.z.fire_counts()
    alive = (fires > 0).nonzero()[:, 0]
    pairs = alive[opposite_directions(D[alive], max_cosine)]
    variance = batch.x.var(0, correction=0).sum().clamp_min(1e-300)
    n, found = len(batch.x), []
    for pair in pairs.split(CHUNK) if len(pairs) else ():
        order = fires[pair].argsort(dim=1, descending=True, stable=True)
        j, k = pair.gather(1, order).T
        u = torch.nn.functional.normalize(D[j] - D[k])
        signed = batch.x @ u.T
        z_j, z_k = batch.z.columns(j), batch.z.columns(k)
        on_j, on_k = z_j > 0, z_k > 0
        either = on_j | on_k
        columns = zip(
            j.tolist(),
            k.tolist(),
            (D[j] * D[k]).sum(1).tolist(),
            (on_j.double().sum(0) / n).tolist(),
            (on_k.double().sum(0) / n).tolist(),
            ((on_j & on_k).double().sum(0) / n).tolist(),
            (signed.var(0, correction=0) / variance).tolist(),
            _correlation(z_j - z_k, signed, either).tolist(),
            strict=True,
        )
        found += [
            AntipodalPair(a, b, cosine, (dense_a, dense_b), joint, share, correlation)
            for a, b, cosine, dense_a, dense_b, joint, share, correlation in columns
        ]
    return sorted(found, key=lambda pair: -pair.share)


def _correlation(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """Return the correlation of each column over the rows of its own that count."""
    count = where.sum(0)
    a = (a - (a * where).sum(0) / count) * where
    b = (b - (b * where).sum(0) / count) * where
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return (a * b).sum(0) / scale.clamp_min(1e-300)
