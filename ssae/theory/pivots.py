"""Optimal codes by an active-set method, many latents and all tokens at a time.

With S the latents that may be active and r = x - z @ D, a step goes along

    (D_S D_S^T + RIDGE) p = D_S r - lam

to the minimum on S. Two ends are looked at, and the one of lower objective is kept: z + t p with
the largest t <= 1 at which no z_j is negative, which never raises the objective, and (z + p)_+,
where many latents become 0 at once. A latent at 0 that p would make negative leaves S. When z is
the minimum on S, the latents with the largest d_j . r > lam enter, and where there is none z is
optimal. It ends, since the objective at the minimum on S falls each time: Lawson & Hanson's method
for nonnegative least squares (1974), which lets one latent enter or leave at a time.

A singular D_S, more latents than dimensions or a direction twice, needs no care: along what it
leaves open p is long, and runs into a latent that leaves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ENTERING = 8
"""Latents that may enter at a time."""
RIDGE = 1e-10
"""Above rounding, and below what slows the steps: it is an error of p, and of nothing else."""
CHUNK_BYTES = 2**25
"""Directions of as many tokens at once as take this much memory: a (n, |S|, d_in) that is small."""


class _Tokens(NamedTuple):
    """Tokens that are not done."""

    rows: Tensor
    """(n,) where they stand."""
    x: Tensor
    """(n, d_in)."""
    residual: Tensor
    """(n, d_in) x - z @ D."""
    latents: Tensor
    """(n, size) S; of the rest, any."""
    on: Tensor
    """(n, size) bool, which are of S."""
    z: Tensor
    """(n, size), 0 off S."""
    is_settled: Tensor
    """(n,) bool, whether z is the minimum on S."""

    def where(self, kept: Tensor) -> "_Tokens":
        return _Tokens(*(part[kept] for part in self))

    def compact(self) -> "_Tokens":
        """Return the same with the smallest size."""
        size = max(1, int(self.on.sum(1).max())) if len(self.on) else 1
        if size == self.on.shape[1]:
            return self
        order = self.on.to(torch.uint8).topk(size, dim=1).indices
        latents, on, z = (part.gather(1, order) for part in (self.latents, self.on, self.z))
        return self._replace(latents=latents, on=on, z=z)


@torch.no_grad()
def exact_codes(
    x: Tensor, directions: Tensor, lam: float, z: Tensor, tolerance: float, max_steps: int
) -> tuple[Tensor, int]:
    """Return codes (n, d_sae) that meet the KKT conditions, and the number of steps.

    Args:
        x: (n, d_in) float64.
        directions: (d_sae, d_in) of norm 1.
        lam: price of a unit of z.
        z: (n, d_sae) codes >= 0 to start from.
        tolerance: of the KKT conditions, relative to ||x||.
        max_steps: at which codes are left as they are.
    """
    codes, num_steps = torch.zeros_like(z), 0
    tokens = _started(x, directions, lam, z)
    while True:
        tokens, done = _entered(tokens, directions, lam, tolerance)
        for part in (done, tokens) if num_steps >= max_steps else (done,):
            codes[part.rows] = codes[part.rows].scatter_add(1, part.latents, part.z)
        if not len(tokens.rows) or num_steps >= max_steps:
            return codes, num_steps
        size = max(1, CHUNK_BYTES // (8 * tokens.on.shape[1] * x.shape[1]))
        parts = [
            _stepped(_Tokens(*part), directions, lam, tolerance)
            for part in zip(*(part.split(size) for part in tokens), strict=True)
        ]
        tokens = _Tokens(*(torch.cat(part) for part in zip(*parts, strict=True))).compact()
        num_steps += 1


def _started(x: Tensor, D: Tensor, lam: float, z: Tensor) -> _Tokens:
    # There are optimal codes of at most d_in latents.
    values, latents = z.topk(min(D.shape), dim=1)
    residual = x - torch.zeros_like(z).scatter_(1, latents, values) @ D
    objective = residual.square().sum(1) / 2 + lam * values.sum(1)
    # Codes that are worse than none, where one scale is far off, take many steps to mend.
    is_better = (objective < x.square().sum(1) / 2)[:, None]
    values = values * is_better
    on = values > 0
    rows = torch.arange(len(x), device=x.device)
    residual = torch.where(is_better, residual, x)
    return _Tokens(rows, x, residual, latents, on, values, ~on.any(1)).compact()


def _entered(tokens: _Tokens, D: Tensor, lam: float, tolerance: float) -> tuple[_Tokens, _Tokens]:
    """Return the tokens that go on, S grown where z is the minimum on it, and those done."""
    at = tokens.is_settled.nonzero()[:, 0]
    settled = tokens.where(at)
    over = settled.residual @ D.T - lam
    over.scatter_add_(1, settled.latents, settled.z.masked_fill(settled.on, -torch.inf))
    largest = over.topk(min(ENTERING, len(D)), dim=1)
    enters = largest.values > tolerance * settled.x.norm(dim=1, keepdim=True)
    is_done = torch.zeros_like(tokens.is_settled).index_fill(0, at[~enters.any(1)], True)
    shape = (len(tokens.rows), enters.shape[1])
    latents = tokens.latents.new_zeros(shape).index_copy(0, at, largest.indices)
    on = tokens.on.new_zeros(shape).index_copy(0, at, enters)
    grown = tokens._replace(
        latents=torch.cat([tokens.latents, latents], 1),
        on=torch.cat([tokens.on, on], 1),
        z=torch.cat([tokens.z, tokens.z.new_zeros(shape)], 1),
    )
    return grown.where(~is_done).compact(), tokens.where(is_done)


def _stepped(tokens: _Tokens, D: Tensor, lam: float, tolerance: float) -> _Tokens:
    """Return the tokens one step on."""
    x, on, z = tokens.x, tokens.on, tokens.z
    own = D[tokens.latents] * on[..., None]
    gram = own @ own.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_(torch.where(on, RIDGE, 1.0))

    def slack(residual: Tensor) -> Tensor:
        return (own @ residual[..., None])[..., 0] - lam

    factor, _ = torch.linalg.cholesky_ex(gram)
    wanted = torch.where(on, slack(tokens.residual), 0.0)
    p = torch.cholesky_solve(wanted[..., None], factor)[..., 0]
    reach = torch.where(on & (p < 0), z / -p, torch.inf)
    t = reach.amin(1, keepdim=True).clamp_max(1)
    ends = [torch.where(reach <= t, 0.0, z + t * p).clamp_min(0), (z + p).clamp_min(0)]
    residuals = [x - (end[:, None] @ own)[:, 0] for end in ends]
    near, far = (
        residual.square().sum(1) / 2 + lam * end.sum(1)
        for end, residual in zip(ends, residuals, strict=True)
    )
    is_far = (far < near)[:, None]
    z, residual = (torch.where(is_far, b, a) for a, b in (ends, residuals))
    bound = tolerance * x.norm(dim=1, keepdim=True)
    on = on & ~((z == 0) & (p < 0))
    is_settled = (torch.where(on, slack(residual), 0.0).abs() <= bound).all(1)
    return tokens._replace(residual=residual, on=on, z=z, is_settled=is_settled)
