"""The large-dictionary problem: problem P made convex, solved with a certificate.

With directions fixed to a large set A (all normalised tokens, the dictionaries of several SAEs, or
both), choosing among them is convex:

    F(Z) = (1/2N) ||X - Z A||^2 + (lam/N) sum Z + (gamma/sqrt N) sum_j ||Z_:j||,   Z >= 0

gamma = 0 with every token among the candidates is the wide limit (an atom per data point); growing
gamma makes tokens share directions; `num_used` counts those that are left.

Solver: block coordinate descent. Directions have norm 1, so the exact minimiser in a row of Z^T is

    u = (z_j + R a_j - lam)_+,   z_j <- (1 - gamma sqrt N / ||u||)_+ u

The rows of a block of candidates are visited one after the other with their products R a_j kept up
to date by the block's Gram matrix, so a sweep is matrix products. Only a working set is visited:
the directions in use and those of largest ||(R a_j - lam)_+||; others join when the certificate
says so. After some sweeps the residual and Z are extrapolated from their history (Anderson), and
what is better is kept.

Certificate: any Theta (N, d_in) with ||(Theta a_j - lam)_+|| <= gamma sqrt N for all j bounds the
optimum from below by (1/2N) (||X||^2 - ||X - Theta||^2). R becomes such a Theta by scaling rows.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coded import SMALLEST_NORM, check_lam, check_tokens, unit_directions

BLOCK = 32
"""Candidates whose products are kept up to date together."""
SWEEPS = 6
"""Between two looks at the certificate."""
SMALLEST_WORKING_SET = 256
BISECTIONS = 30
ROUNDING = 1e-14
"""Of F, relative to ||X||^2 / N."""


class LargeDictionary(NamedTuple):
    """A solution, with its certificate."""

    used: np.ndarray
    """(num_used,) candidates with a code that is not all zero."""
    z: np.ndarray
    """(n, num_used) their codes."""
    objective: float
    """F(Z)."""
    bound: float
    """Below which F cannot fall."""
    num_sweeps: int

    @property
    def gap(self) -> float:
        """(F - bound) / F: what is not known of the optimum, relative."""
        return (self.objective - self.bound) / max(self.objective, 1e-300)

    @property
    def num_used(self) -> int:
        """Number of directions in use."""
        return len(self.used)


def candidates_of(x: Tensor | None = None, saes: list[SparseAutoencoder] | None = None) -> Tensor:
    """Return candidate directions (num, d_in) of norm 1: of tokens, of SAEs, or of both.

    Args:
        x: (n, d_in), less b_dec; tokens of norm 0 have no direction and are left out.
        saes: whose decoder directions are added.

    Raises:
        ValueError: neither is given.
    """
    parts = [] if x is None else [x]
    parts += [sae.W_dec.detach() for sae in saes or []]
    if not parts:
        raise ValueError("candidates are directions of tokens (x), of SAEs (saes), or of both")
    found = [unit_directions(part) for part in parts]
    return torch.cat([directions[norms > SMALLEST_NORM] for directions, norms in found])


def largest_gamma(x: Tensor, candidates: Tensor, lam: float) -> float:
    """Return the gamma from which on no direction is used: max_j ||(X a_j - lam)_+|| / sqrt N."""
    A = unit_directions(candidates)[0]
    x = check_tokens(x, A.shape[1])
    products = (x @ A.T - check_lam(lam)).clamp_min(0)
    return float(products.norm(dim=0).max()) / len(x) ** 0.5


def solve_large_dictionary(
    x: Tensor,
    candidates: Tensor,
    lam: float,
    gamma: float,
    *,
    initial: LargeDictionary | None = None,
    tolerance: float = 1e-4,
    max_sweeps: int = 5000,
) -> LargeDictionary:
    """Return the codes that minimise F, and a bound below which F cannot fall.

    Args:
        x: (n, d_in), less b_dec.
        candidates: (num_candidates, d_in); made norm 1.
        lam: price of a unit of z.
        gamma: price of a direction's use, >= 0.
        initial: a solution to start from, of the same x and candidates with another gamma.
        tolerance: of the relative duality gap.
        max_sweeps: after which the best found is returned; its gap says how good it is.

    Raises:
        ValueError: a shape is wrong, or a number is out of range.
    """
    A = unit_directions(candidates)[0].cpu().numpy()
    X = check_tokens(x, A.shape[1]).cpu().numpy()
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma must be a finite number of at least 0, got {gamma}")
    problem = _Problem(X, A, check_lam(lam), gamma * len(X) ** 0.5)
    Z = np.zeros((len(A), len(X)))
    if initial is not None:
        Z[initial.used] = initial.z.T
    R = np.ascontiguousarray((X - Z.T @ A).T)
    bound, num_sweeps = 0.0, 0
    while True:
        value = problem.value(Z, R)
        certified, scores = problem.certificate(R)
        bound = max(bound, certified)
        # Rounding: without prices F falls to 0, where no relative gap means anything.
        is_zero = value <= ROUNDING * problem.square / len(X)
        if value - bound <= tolerance * value or is_zero or num_sweeps >= max_sweeps:
            break
        work = problem.working_set(Z, scores)
        Z, R, certified = problem.descend(Z, R, work)
        bound = max(bound, certified)
        num_sweeps += SWEEPS
    used = np.flatnonzero(Z.any(1))
    return LargeDictionary(used, Z[used].T.copy(), value, min(bound, value), num_sweeps)


class _Problem:
    """F and its certificate. Z (num_candidates, N) and R (d_in, N) have a row per group."""

    def __init__(self, X: np.ndarray, A: np.ndarray, lam: float, threshold: float) -> None:
        self.X, self.A, self.lam, self.threshold = X, A, lam, threshold
        self.square = float(np.vdot(X, X))

    def value(self, Z: np.ndarray, R: np.ndarray) -> float:
        groups = np.linalg.norm(Z, axis=1).sum()
        total = np.square(R).sum() / 2 + self.lam * Z.sum() + self.threshold * groups
        return float(total) / len(self.X)

    def certificate(self, R: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the bound that R gives, and ||(R a_j - lam)_+|| of every candidate."""
        products = self.A @ R
        over = np.maximum(products - self.lam, 0)
        scores = np.linalg.norm(over, axis=1)
        if self.threshold == 0:  # every token by itself
            scale = np.minimum(1, self.lam / np.maximum(products.max(0, initial=0.0), 1e-300))
        else:
            # A token's row shrinks as the tightest of the candidates wants that it is over lam of.
            tight = np.flatnonzero(scores > self.threshold)
            shrink = self._shrink(products[tight])
            scale = np.where(over[tight] > 0, shrink[:, None], 1.0).min(0, initial=1.0)
        left = self.X - (R * scale).T
        return (self.square - float(np.square(left).sum())) / 2 / len(self.X), scores

    def _shrink(self, products: np.ndarray) -> np.ndarray:
        """Return, by candidate, the largest s with ||(s R a_j - lam)_+|| <= gamma sqrt N."""
        low, high = np.zeros(len(products)), np.ones(len(products))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            over = np.maximum(middle[:, None] * products - self.lam, 0)
            fits = np.linalg.norm(over, axis=1) <= self.threshold
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return low

    def working_set(self, Z: np.ndarray, scores: np.ndarray) -> np.ndarray:
        in_use = Z.any(1)
        num = min(len(scores), max(SMALLEST_WORKING_SET, 2 * int(in_use.sum())))
        worth = np.where(in_use, np.inf, scores)
        order = np.argsort(worth)[::-1][:num]
        return order[worth[order] > self.threshold / 2]

    def descend(
        self, Z: np.ndarray, R: np.ndarray, work: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Sweep over the working set; return Z, R and the best bound on the way."""
        residuals, codes = [R.copy()], [Z[work]]
        for _ in range(SWEEPS):
            for start in range(0, len(work), BLOCK):
                self._visit(Z, R, work[start : start + BLOCK])
            residuals.append(R.copy())
            codes.append(Z[work])
        mix = _extrapolation(residuals)
        bound, _ = self.certificate(np.tensordot(mix, np.stack(residuals[1:]), 1))
        tried = Z.copy()
        tried[work] = np.maximum(np.tensordot(mix, np.stack(codes[1:]), 1), 0)
        tried_R = np.ascontiguousarray((self.X - tried.T @ self.A).T)
        if self.value(tried, tried_R) < self.value(Z, R):
            Z, R = tried, tried_R
        return Z, R, bound

    def _visit(self, Z: np.ndarray, R: np.ndarray, block: np.ndarray) -> None:
        """Minimise F in the rows of a block of candidates, one after the other, in place."""
        A = self.A[block]
        gram, products, old = A @ A.T, A @ R, Z[block]
        change = np.empty_like(old)
        for j in range(len(block)):
            u = products[j] + old[j]
            u -= self.lam
            np.maximum(u, 0, out=u)
            norm = float(np.sqrt(u @ u))
            u *= 1 - self.threshold / norm if norm > self.threshold else 0.0
            np.subtract(u, old[j], out=change[j])
            if j + 1 < len(block) and change[j].any():
                products[j + 1 :] -= gram[j + 1 :, j, None] * change[j]
        Z[block] = old + change
        R -= A.T @ change


def _extrapolation(history: list[np.ndarray]) -> np.ndarray:
    """Return weights, of sum 1, of history[1:] that make the combined last step smallest."""
    steps = np.stack([(b - a).ravel() for a, b in zip(history, history[1:], strict=False)])
    gram = steps @ steps.T
    gram += 1e-12 * (np.trace(gram) + 1e-300) * np.eye(len(gram))
    weights = np.linalg.solve(gram, np.ones(len(gram)))
    return weights / weights.sum()
