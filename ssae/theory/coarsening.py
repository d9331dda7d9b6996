"""The path of the large-dictionary problem over gamma: tokens merge into ever fewer directions."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.theory.convex import LargeDictionary, largest_gamma, solve_large_dictionary

SMALLEST_SHARE = 1e-3
"""Of the largest gamma: where the search for a number of directions begins."""
SEARCH_STEPS = 12
CLOSE = 0.02
"""Relative distance from the wanted number of directions at which the search ends."""


class Merge(NamedTuple):
    """A direction that a larger gamma does without."""

    step: int
    """Number of the gamma at which it is gone."""
    child: int
    """The candidate that was in use."""
    parent: int
    """The candidate that took over most of what it stood for; -1 where nothing did."""
    share: float
    """Of that."""
    num_tokens: int
    """On which it was active."""


def coarsening_path(
    x: Tensor,
    candidates: Tensor,
    lam: float,
    gammas: list[float],
    *,
    tolerance: float = 1e-4,
    max_sweeps: int = 5000,
) -> list[LargeDictionary]:
    """Return the solution for each gamma, in the given order.

    Solved from the largest gamma down, each starting from the one before: few directions first.

    Args:
        x: (n, d_in), less b_dec.
        candidates: (num_candidates, d_in).
        lam: price of a unit of z.
        gammas: prices of a direction.
        tolerance: of the relative duality gap.
        max_sweeps: of each.
    """
    solved: dict[float, LargeDictionary] = {}
    last = None
    for gamma in sorted(set(gammas), reverse=True):
        last = solve_large_dictionary(
            x, candidates, lam, gamma, initial=last, tolerance=tolerance, max_sweeps=max_sweeps
        )
        solved[gamma] = last
    return [solved[gamma] for gamma in gammas]


def merge_tree(path: list[LargeDictionary]) -> list[Merge]:
    """Return which directions give way to which, along a path of rising gamma.

    The parent of direction j is the k of the next solution with the largest sum_i z_ij z'_ik over
    tokens: what stands where j stood.
    """
    merges = []
    for step, (fine, coarse) in enumerate(zip(path, path[1:], strict=False), 1):
        gone = np.flatnonzero(~np.isin(fine.used, coarse.used))
        overlap = fine.z[:, gone].T @ coarse.z
        for row, j in enumerate(gone):
            total = overlap[row].sum()
            best = int(overlap[row].argmax()) if total > 0 else -1
            merges.append(
                Merge(
                    step=step,
                    child=int(fine.used[j]),
                    parent=int(coarse.used[best]) if best >= 0 else -1,
                    share=float(overlap[row, best] / total) if best >= 0 else 0.0,
                    num_tokens=int(np.count_nonzero(fine.z[:, j])),
                )
            )
    return merges


def at_most(
    x: Tensor, candidates: Tensor, lam: float, num: int, *, tolerance: float = 1e-3
) -> tuple[float, LargeDictionary]:
    """Return (gamma, solution) with at most `num` directions in use, and hardly fewer.

    gamma is searched by bisection of its logarithm, each solve starting from the last. Which
    directions are in use is that of a solution within `tolerance` of the optimum: another within it
    may use some more or fewer.
    """
    top = largest_gamma(x, candidates, lam) if len(candidates) else 0.0
    if not top > 0:  # no token is worth a direction at this lam
        return 0.0, solve_large_dictionary(x, candidates, lam, 0.0)
    low, high = math.log(SMALLEST_SHARE * top), math.log(top)
    best, best_gamma, start = None, top, None
    for _ in range(SEARCH_STEPS):
        gamma = math.exp((low + high) / 2)
        found = solve_large_dictionary(
            x, candidates, lam, gamma, initial=start, tolerance=tolerance, max_sweeps=300
        )
        if found.num_used <= num:
            if best is None or found.num_used >= best.num_used:
                best, best_gamma = found, gamma
            if found.num_used >= (1 - CLOSE) * num:
                break
            start, high = found, math.log(gamma)
        else:
            low = math.log(gamma)
    if best is None:  # every token alone needs more than that
        best = solve_large_dictionary(x, candidates, lam, top)
    return best_gamma, best


def directions_of(solution: LargeDictionary, candidates: Tensor) -> Tensor:
    """Return the directions in use (num_used, d_in)."""
    return candidates[torch.from_numpy(solution.used).to(candidates.device)]
