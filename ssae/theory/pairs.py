"""The identity of pairs: at an optimum the residual of one latent gives its cosine with any other.

With E_j[r] = lam d_j (violations.py) the product with another direction d_k is

    d_j . d_k = E_j[d_k . r] / lam = P_j(k active) + E_j[(d_k . r) / lam; k silent]

since d_k . r = lam wherever k is active (arXiv 2606.02385). It holds for every pair, whether or not
the two ever fire together: a cosine near -1 needs a k that is silent wherever j fires.
"""

from typing import NamedTuple

from torch import Tensor

from ssae.theory.coded import Coded, check_lam


class PairIdentity(NamedTuple):
    """Both sides of the identity for pairs (j, k), each (num_pairs,)."""

    cosine: Tensor
    """d_j . d_k."""
    expected: Tensor
    """E_j[d_k . r] / lam: equal to the cosine at the optimum."""
    joint: Tensor
    """P_j(k active), the share of j's activation on tokens on which k fires."""
    silent: Tensor
    """E_j[(d_k . r) / lam; k silent], the rest where the codes are optimal."""


def pair_identity(batch: Coded, pairs: Tensor, lam: float) -> PairIdentity:
    """Return both sides of the identity of pairs (j, k).

    Args:
        batch: n tokens with their codes.
        pairs: (num_pairs, 2) latents.
        lam: > 0.

    Raises:
        ValueError: lam is 0: then d_k . r says nothing of the cosine.
    """
    if not check_lam(lam) > 0:
        raise ValueError("the identity of pairs needs a penalty, lam > 0; got 0")
    num = len(batch.directions)
    if (
        pairs.ndim != 2
        or pairs.shape[1] != 2
        or (len(pairs) and not 0 <= pairs.min() <= pairs.max() < num)
    ):
        raise ValueError(f"pairs must be (num_pairs, 2) latents of 0 .. {num - 1}")
    j, k = pairs.long().T
    z = batch.z.columns(j)
    share = z / z.sum(0)
    fires = batch.z.columns(k) > 0
    projected = share * (batch.residual @ batch.directions[k].T) / lam
    return PairIdentity(
        cosine=(batch.directions[j] * batch.directions[k]).sum(1),
        expected=projected.sum(0),
        joint=(share * fires).sum(0),
        silent=(projected * ~fires).sum(0),
    )
