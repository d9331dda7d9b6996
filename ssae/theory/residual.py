"""What is left of x: the part a penalty shrinks away, and the part no active direction reaches.

On the set S of latents that are active on a token, the KKT conditions D_S r = lam 1 give

    r = lam D_S^T (D_S D_S^T)^-1 1 + r_perp,   D_S r_perp = 0

The first part lies in the span of the active directions. For codes that are not optimal it is the
projection of r onto that span, D_S^T (D_S D_S^T)^-1 D_S r, which is what is reported: least
squares on the active set would remove it without another latent. r_perp needs other latents, or
other directions: what its spectrum shows in few dimensions are concepts that are missing, what is
linear in x a map could take away.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssae.sae.products import sampled_product, weighted_rows
from ssae.sae.sparse import ActiveSet, SparseLatents
from ssae.theory.coded import Coded, coded

TOLERANCE = 1e-10
"""Of the projection, relative to ||D_S r||."""
MAX_STEPS = 2000
RIDGE = 1e-9
"""Of the regression on x, relative to the mean variance of a dimension."""


class ResidualStructure(NamedTuple):
    """Where the squared residual lies, over all tokens."""

    shrinkage_share: float
    """Share of sum ||r||^2 in the span of the active directions."""
    orthogonal_share: float
    """The rest, r_perp."""
    spectrum: Tensor
    """(d_in,) eigenvalues of the covariance of r_perp, over their sum, falling."""
    effective_dimensions: float
    """(sum of eigenvalues)^2 / sum of their squares: d_in without structure, 0 without r_perp."""
    components: Tensor
    """(d_in, d_in) the eigenvectors, as rows."""
    linear_share: float
    """R^2 of r predicted from x by a linear map fitted on other tokens; at most 0: none."""
    type_errors: Tensor
    """(vocab_size,) sum ||r_perp||^2 by token type; empty without token ids."""
    type_counts: Tensor
    """(vocab_size,)."""


@torch.no_grad()
def in_span(batch: Coded) -> Tensor:
    """Return the projection (n, d_in) of r on the span of each token's active directions.

    D_S D_S^T a = D_S r is solved by conjugate gradients, for all tokens at once and on the active
    set alone: nothing is of size (n, |S|, d_in).
    """
    active, D = batch.z.active, batch.directions
    b = batch.projections()
    a, p = torch.zeros_like(b), b.clone()
    left, square = b.clone(), active.sum_per_token(b * b)
    enough = TOLERANCE**2 * square
    for _ in range(MAX_STEPS):
        if not (square > enough).any():
            break
        Ap = sampled_product(_decode(active, p, D), D, active)
        curvature = active.sum_per_token(p * Ap)
        # Where nothing is left to do, and where D_S is singular, 0 / 0: such tokens stay.
        step = torch.where(
            (square > enough) & (curvature > 0), square / curvature.clamp_min(1e-300), 0
        )
        a = a + step[active.tokens] * p
        left = left - step[active.tokens] * Ap
        before, square = square, active.sum_per_token(left * left)
        p = left + (square / before.clamp_min(1e-300))[active.tokens] * p
    return _decode(active, a, D)


def _decode(active: ActiveSet, values: Tensor, D: Tensor) -> Tensor:
    assert active.indices is not None
    return weighted_rows(D, active.indices, active.offsets, values)


class ResidualSums:
    """Gathers what `ResidualStructure` is computed from, batch by batch, in float64.

    Args:
        d_in: width of x.
        vocab_size: number of token types; 0 without token ids.
        device: of the tokens.
    """

    def __init__(self, d_in: int, vocab_size: int = 0, device: torch.device | str = "cpu") -> None:
        like = torch.zeros(0, dtype=torch.float64, device=device)
        self.energy = like.new_zeros(2)  # sums of ||r||^2 and of its part in the span
        self.perp = like.new_zeros(d_in + 1, d_in)  # sums of r_perp^T r_perp, and of r_perp
        # Sums of (1, x, r)^T (1, x, r), of either half of the tokens.
        self.moments = like.new_zeros(2, 1 + 2 * d_in, 1 + 2 * d_in)
        self.types = like.new_zeros(2, vocab_size)  # sums of ||r_perp||^2 and of 1

    @torch.no_grad()
    def update(self, batch: Coded, half: Tensor, token_ids: Tensor | None = None) -> None:
        """Add tokens with their codes.

        Args:
            batch: n tokens.
            half: (n,) bool: the linear map is fitted on one half and tested on the other; tokens
                of one document should share a half.
            token_ids: (n,) types.
        """
        r, x = batch.residual, batch.x
        shrunk = in_span(batch)
        perp = r - shrunk
        errors = perp.square().sum(1)
        self.energy += torch.stack([r.square().sum(), shrunk.square().sum()])
        self.perp += torch.cat([perp.T @ perp, perp.sum(0, keepdim=True)])
        both = torch.cat([x.new_ones(len(x), 1), x, r], 1)
        for number, own in enumerate((both[~half], both[half])):
            self.moments[number] += own.T @ own
        if half.dtype != torch.bool or len(half) != len(x):
            raise ValueError(f"half must be bool ({len(x)},), got {half.dtype} {tuple(half.shape)}")
        if token_ids is not None:
            ids = token_ids.long()
            self.types[0].index_add_(0, ids, errors)
            self.types[1].index_add_(0, ids, torch.ones_like(errors))

    def result(self) -> ResidualStructure:
        """Return what the tokens say."""
        n = self.moments[:, 0, 0].sum()
        mean = self.perp[-1] / n
        covariance = self.perp[:-1] / n - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)
        values = values.flip(0).clamp_min(0)
        spectrum = values / values.sum().clamp_min(1e-300)
        squares = float(spectrum.square().sum())
        total, shrunk = self.energy.tolist()
        share = shrunk / total if total > 0 else 0.0
        return ResidualStructure(
            shrinkage_share=share,
            orthogonal_share=1 - share,
            spectrum=spectrum,
            effective_dimensions=float(1 / squares) if squares > 0 else 0.0,
            components=vectors.T.flip(0),
            linear_share=_linear_share(self.moments),
            type_errors=self.types[0],
            type_counts=self.types[1],
        )


def _linear_share(moments: Tensor) -> float:
    """Return R^2 of r on x, fitted on one half and tested on the other, both ways round."""
    d_in = (moments.shape[1] - 1) // 2
    if not (moments[:, 0, 0] > 0).all():
        return float("nan")
    error = total = 0.0
    for fitted, tested in ((0, 1), (1, 0)):
        A = _least_squares(moments[fitted], d_in)
        xx, xr = moments[tested, : 1 + d_in, : 1 + d_in], moments[tested, : 1 + d_in, 1 + d_in :]
        rr = moments[tested, 1 + d_in :, 1 + d_in :].trace()
        error += float(rr - 2 * (A * xr).sum() + (A * (xx @ A)).sum())
        # Around the mean of the half it was fitted on: what a map without x could do.
        mean = moments[fitted, 0, 1 + d_in :] / moments[fitted, 0, 0]
        total += float(rr - 2 * mean @ xr[0] + xx[0, 0] * mean @ mean)
    return 1 - error / total if total > 0 else 0.0


def _least_squares(moments: Tensor, d_in: int) -> Tensor:
    """Return A (1 + d_in, d_in) of r = (1, x) @ A."""
    xx, xr = moments[: 1 + d_in, : 1 + d_in], moments[: 1 + d_in, 1 + d_in :]
    ridge = RIDGE * (xx.diagonal()[1:].sum() / d_in).clamp_min(1e-300)
    eye = torch.eye(1 + d_in, dtype=xx.dtype, device=xx.device)
    return torch.linalg.solve(xx + ridge * eye, xr)


def residual_structure(
    x: Tensor, z: Tensor | SparseLatents, W_dec: Tensor, token_ids: Tensor | None = None
) -> ResidualStructure:
    """Return how the residual of x splits, its spectrum, and what carries it; see the module.

    Args:
        x: (n, d_in), less b_dec; the first half of the tokens and the second test each other.
        z: (n, d_sae) codes.
        W_dec: (d_sae, d_in).
        token_ids: (n,) types, to sum by; None: not summed.

    Raises:
        ValueError: a shape is wrong, or a value is not finite or, in z, negative.
    """
    batch = coded(x, z, W_dec)
    if token_ids is not None and (token_ids.shape != x.shape[:1] or (token_ids < 0).any()):
        raise ValueError(
            f"token_ids must be {len(x)} numbers of at least 0, got {tuple(token_ids.shape)}"
        )
    vocab_size = 0 if token_ids is None else int(token_ids.max()) + 1
    sums = ResidualSums(x.shape[1], vocab_size, x.device)
    sums.update(batch, torch.arange(len(x), device=x.device) >= len(x) // 2, token_ids)
    return sums.result()
