"""Exact optimal codes from a good guess of which latents are active: an active-set method.

On the set S of latents with z_j > 0 the KKT conditions are linear: D_S D_S^T z_S = D_S x - lam. The
guess S is the support of some steps of FISTA. Then, token by token: where a z_j of the solution is
negative its latent leaves S; where none is, the latents with the largest d_j . r > lam enter; until
neither happens, which makes the solution exact to rounding. A token for which the exchange does not
end, or whose D_S is singular, keeps its guess.
"""

import torch
from torch import Tensor

MAX_PIVOTS = 40
ENTERING = 16
"""Latents that may enter at a time."""
CHUNK_BYTES = 2**25
"""Directions of as many tokens at once as take this much memory: a (n, |S|, d_in) that is small."""


@torch.no_grad()
def exact_codes(
    x: Tensor, directions: Tensor, lam: float, z: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return codes (n, d_sae), and where (n,) they meet the KKT conditions.

    Args:
        x: (n, d_in) float64.
        directions: (d_sae, d_in) of norm 1.
        lam: price of a unit of z.
        z: (n, d_sae) codes whose supports are the guess.
        tolerance: of the KKT conditions, relative to ||x||.
    """
    size = max(1, int((z > 0).sum(1).max())) + 2 * ENTERING
    rows = max(1, CHUNK_BYTES // (8 * size * x.shape[1]))
    parts = [
        _pivot(x[i : i + rows], directions, lam, z[i : i + rows], tolerance)
        for i in range(0, len(x), rows)
    ]
    codes, is_exact = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(is_exact)


def _pivot(x: Tensor, D: Tensor, lam: float, z: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    codes, is_exact = z.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    left, on = torch.arange(len(x), device=x.device), z > 0
    entering = min(ENTERING, len(D))
    for _ in range(MAX_PIVOTS):
        new, is_regular = _solve(x, D, lam, on)
        slack = (x - new @ D) @ D.T - lam
        bound = tolerance * x.norm(dim=1, keepdim=True)
        leaves = on & (new < 0)
        over = torch.where(on, 0.0, slack)
        wrong = torch.where(on, torch.maximum(slack.abs(), -new), over) > bound
        done = is_regular & ~wrong.any(1)
        codes[left[done]], is_exact[left[done]] = new[done].clamp_min(0), True
        open_ = ~done & is_regular
        if not open_.any():
            break
        largest = over.topk(entering, dim=1)
        enters = torch.zeros_like(on).scatter(1, largest.indices, largest.values > bound)
        on = torch.where(leaves.any(1, keepdim=True), on & ~leaves, on | enters)
        left, x, on = left[open_], x[open_], on[open_]
    return codes, is_exact


def _solve(x: Tensor, D: Tensor, lam: float, on: Tensor) -> tuple[Tensor, Tensor]:
    """Return z (n, d_sae) of D_S D_S^T z_S = D_S x - lam, and where (n,) it has one solution."""
    size = max(1, int(on.sum(1).max()))
    chosen = on.to(torch.uint8).topk(size, dim=1).indices
    is_own = on.gather(1, chosen)
    own = D[chosen] * is_own[..., None]
    gram = own @ own.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_((~is_own).to(x.dtype))
    wanted = torch.where(is_own, (own @ x[..., None])[..., 0] - lam, 0.0)
    factor, failed = torch.linalg.cholesky_ex(gram)
    solved = torch.cholesky_solve(wanted[..., None], factor)[..., 0]
    solved = torch.where(is_own, solved, 0.0)
    is_regular = (failed == 0) & solved.isfinite().all(1)
    solved = torch.where(is_regular[:, None], solved, 0.0)
    return x.new_zeros(len(x), len(D)).scatter(1, chosen, solved), is_regular
