"""Codes that minimise P's objective on a given active set, without any (n, d_sae) tensor.

    min over z >= 0 on the active set of  1/2 error_i + lam sum_j z_ij

with error_i = ||x_i - z_i @ D||^2, or for a Matryoshka SAE the mean over its prefixes m of
||x_i - sum_{j in the first m groups} z_ij d_j||^2: entries stand by (token, group), and one group
gives the first. lam = 0 is nonnegative least squares. The steps are FISTA's (Beck & Teboulle 2009),
restarted token by token where the momentum points uphill (O'Donoghue & Candes, 1204.3982), with a
length for each token: ||D_S||^2 is at most the number of its active latents.

Where active sets may grow, they become those of the nonnegative lasso: solve on them, add every
latent with d_j . r > lam, and again until there is none. These are the codes of `optimal_codes`,
to a coarser tolerance and in float32: in half the time where the encoder's are near them already.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.sae.products import sampled_product
from ssae.sae.sparse import ActiveSet

TOLERANCE = 2e-3
"""Of the KKT conditions, over ||x_i||. The objective exceeds its minimum by the square of
that: 1e-6 of it on the demo's activations, 2e-4 on random ones. Directions see sums over tokens."""
CHECK_EVERY = 5
"""Steps between two looks at the KKT conditions."""
MAX_STEPS = 1000
"""Of a token; one that needs more is left as it is."""
MAX_GROWTHS = 20
SAFETY = 1.02
CHUNK_TOKENS, CHUNK_BYTES = 4096, 2**25
"""Tokens at a time; fewer where their (n, d_sae) scores take more memory."""


class Support(NamedTuple):
    """An active set by (token, group): its row i num_groups + g; latents ascend."""

    active: ActiveSet
    num_groups: int

    @property
    def tokens(self) -> Tensor:
        """(nnz,) token of every entry."""
        return self.active.tokens // self.num_groups

    def residuals(self, x: Tensor, values: Tensor, directions: Tensor) -> Tensor:
        """Return what each prefix leaves over, (n, num_groups, d_in)."""
        parts = self.active.decode(values, directions).view(len(x), self.num_groups, x.shape[1])
        return x[:, None] - parts.cumsum(1)

    def pulls(self, residuals: Tensor) -> Tensor:
        """Return what latents of each group are pulled along, (n, num_groups, d_in).

        A latent is part of its own prefix and of all after it.
        """
        return residuals.flip(1).cumsum(1).flip(1) / self.num_groups

    def ascent(self, residuals: Tensor, directions: Tensor, lam: float) -> Tensor:
        """Return minus the derivative of the objective by every entry, (nnz,)."""
        return sampled_product(self.pulls(residuals).flatten(0, 1), directions, self.active) - lam

    def per_token(self, values: Tensor) -> Tensor:
        """Return the sum over each token's entries (n,)."""
        return self.active.sum_per_token(values).view(-1, self.num_groups).sum(1)


def support_of(z: sparse.csr_matrix, ends: list[int]) -> Support:
    """Return where codes (n, d_sae) are stored, in the order of their data.

    Args:
        z: codes; what is stored may be 0. Its indices are sorted in place.
        ends: number of latents in the first group, in the first two, ..., d_sae.
    """
    z.sort_indices()
    n, num = len(z.indptr) - 1, len(ends)
    rows = np.repeat(np.arange(n), np.diff(z.indptr)) * num
    rows += np.searchsorted(ends, z.indices, side="right")
    latents = torch.from_numpy(z.indices.astype(np.int64))
    return Support(ActiveSet.of_pairs(torch.from_numpy(rows), latents, n * num, ends[-1]), num)


@torch.no_grad()
def codes_on(
    x: Tensor,
    directions: Tensor,
    support: Support,
    values: Tensor,
    lam: float,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Return the best values (nnz,) on an active set.

    Args:
        x: (n, d_in), less b_dec.
        directions: (d_sae, d_in) of norm 1.
        support: where codes may be > 0.
        values: (nnz,) >= 0 to start from.
        lam: price of a unit of z.
        tolerance: of the KKT conditions, over ||x_i||.
    """
    if not len(values):
        return values
    tokens = support.tokens
    step = (1 / (SAFETY * support.per_token(torch.ones_like(values)).clamp_min(1)))[tokens]
    norms = x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)[tokens]
    z, y, t = values, values, x.new_ones(len(x))
    r_z = r_y = support.residuals(x, z, directions)
    for number in range(MAX_STEPS):
        if number % CHECK_EVERY == 0:
            slack = support.ascent(r_z, directions, lam)
            worst = torch.where(z > 0, slack.abs(), slack.clamp_min(0)) / norms
            if worst.max() <= tolerance:
                break
        new = (y + step * support.ascent(r_y, directions, lam)).clamp_min(0)
        # The momentum points uphill: forget it, for this token alone.
        restart = support.per_token((y - new) * (new - z)) > 0
        t = torch.where(restart, 1.0, t)
        t_new = (1 + (1 + 4 * t * t).sqrt()) / 2
        momentum = torch.where(restart, 0.0, (t - 1) / t_new)
        r_new = support.residuals(x, new, directions)
        y = new + momentum[tokens] * (new - z)
        r_y = torch.lerp(r_z, r_new, 1 + momentum[:, None, None])  # residuals are affine in codes
        z, r_z, t = new, r_new, t_new
    return z


@torch.no_grad()
def encoded(sae: SparseAutoencoder, x: Tensor) -> Iterator[tuple[Tensor, sparse.csr_matrix]]:
    """Yield x less b_dec, some tokens at a time, with the SAE's own codes."""
    rows = min(CHUNK_TOKENS, max(1, CHUNK_BYTES // (4 * sae.d_sae)))
    for piece in x.split(rows):
        latents = sae.eval()(piece).latents
        active, values = latents
        indices = active.indices
        if indices is None:
            z = sparse.csr_matrix(latents.to_dense().numpy())
        else:
            parts = (values.numpy(), indices.numpy(), active.offsets.numpy())
            z = sparse.csr_matrix(parts, (len(piece), sae.d_sae))
        z.eliminate_zeros()
        yield piece - sae.b_dec, z


@torch.no_grad()
def best_codes(
    x: Tensor,
    z: sparse.csr_matrix,
    directions: Tensor,
    lam: float,
    ends: list[int],
    *,
    grows: bool,
    tolerance: float = TOLERANCE,
) -> sparse.csr_matrix:
    """Return the best codes (n, d_sae), on the active set of z or on any.

    Args:
        x: (n, d_in), less b_dec; a chunk, if active sets grow: (n, d_sae) scores are computed.
        z: codes to start from; its indices are sorted in place.
        directions: (d_sae, d_in) of norm 1, in x's dtype.
        lam: price of a unit of z.
        ends: of groups of latents; see `support_of`.
        grows: whether active sets may; for one group.
        tolerance: see `codes_on`.
    """
    assert not grows or len(ends) == 1
    left, places, done = np.arange(len(x)), [], []
    for _ in range(MAX_GROWTHS):
        here = x[torch.from_numpy(left)]
        support = support_of(z, ends)
        values = codes_on(here, directions, support, torch.from_numpy(z.data), lam, tolerance)
        # A copy: what is eliminated is moved about in the arrays themselves.
        z = sparse.csr_matrix((values.numpy(), z.indices, z.indptr), z.shape, copy=True)
        z.eliminate_zeros()
        more = _violators(here, z, directions, lam, tolerance) if grows else None
        is_open = np.zeros(len(left), bool) if more is None else np.diff(more.indptr) > 0
        places.append(left[~is_open])
        done.append(z[~is_open])
        if more is None or not is_open.any():
            break
        left, z = left[is_open], _with(z, more, is_open)
    else:
        places.append(left)
        done.append(z)
    order = np.argsort(np.concatenate(places))
    best = sparse.csr_matrix(sparse.vstack(done))[order]
    best.eliminate_zeros()
    return best


def _violators(
    x: Tensor, z: sparse.csr_matrix, directions: Tensor, lam: float, tolerance: float
) -> sparse.csr_matrix:
    """Return the silent latents with d_j . r > lam, as the places of ones."""
    r = support_of(z, [len(directions)]).residuals(x, torch.from_numpy(z.data), directions)[:, 0]
    over = r @ directions.T > lam + tolerance * x.norm(dim=1, keepdim=True)
    tokens = torch.from_numpy(np.repeat(np.arange(len(x)), np.diff(z.indptr)))
    over[tokens, torch.from_numpy(z.indices.astype(np.int64))] = False
    return sparse.csr_matrix(over.numpy())


def _with(z: sparse.csr_matrix, more: sparse.csr_matrix, where: np.ndarray) -> sparse.csr_matrix:
    """Return the codes of some tokens, with zeros stored in more places."""
    a, b = sparse.coo_matrix(z[where]), sparse.coo_matrix(more[where])
    data = np.concatenate([a.data, np.zeros(b.nnz, a.dtype)])
    places = np.concatenate([a.row, b.row]), np.concatenate([a.col, b.col])
    return sparse.csr_matrix((data, places), a.shape)
