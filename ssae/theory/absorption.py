"""Which labelled concepts an L1 SAE cannot hold as they are.

The concepts' own activations are codes and their directions a dictionary; the cone condition
(cone.py) says whether it is a local minimum of problem P, and if not, which directions turn. If
concept l gains by turning towards concept j, l fires (almost) only where j does, and the optimum
holds d_l + d_j as one latent that fires instead of both: l absorbs j on its tokens.

    held      no concept turns towards this one, and it turns towards none
    child     it turns towards a parent: its latent also says that the parent is there
    absorbed  children fire on some of its tokens, where its own latent falls silent
    split     every one of its tokens has a child: no latent of its own is left
    merged    it and another fire on the same tokens: one latent stands for both

The condition holds or not for any activations; how far directions turn, and how silent the parent
falls, depends on how constant activations are: with spread ones its latent fires on, to correct the
length, and a split parent may keep one. (Absorption as Chanin et al., 2409.14507, name it.)
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ssae.theory.cone import cone_condition

MIN_RESIDUAL = 0.01
"""Relative residual of the cone condition below which a concept is held."""
COVERED = 0.99
"""Share of a concept's tokens that children fire on, from which on it is split; and the share of
tokens that two concepts share, from which on they are merged."""


class Prediction(NamedTuple):
    """What an L1 SAE makes of one concept."""

    concept: int
    fate: str
    """held, child, absorbed, split or merged."""
    residual: float
    """Of the cone condition, relative."""
    children: tuple[int, ...]
    """Concepts that absorb it, the one that gains most first."""
    parents: tuple[int, ...]
    """Concepts that it absorbs."""
    merged_with: tuple[int, ...]
    """Concepts that fire on the same tokens."""
    covered: float
    """Share of its tokens on which a child fires."""


def predict_absorption(
    labels: Tensor, directions: Tensor, *, min_residual: float = MIN_RESIDUAL, min_fires: int = 1
) -> list[Prediction]:
    """Return what an L1 SAE makes of each concept.

    Args:
        labels: (n, num_concepts) activation of each concept on each token, >= 0; or bool.
        directions: (num_concepts, d_in).
        min_residual: of a concept whose condition is violated.
        min_fires: tokens on which a concept must fire to count as a child.

    Raises:
        ValueError: a shape is wrong, or a label is negative or not finite.
    """
    if labels.ndim != 2 or len(labels.T) != len(directions):
        raise ValueError(
            f"labels must have shape (n, {len(directions)}), got {tuple(labels.shape)}"
        )
    num = len(directions)
    on = labels > 0
    cones = {
        cone.latent: cone
        for cone in cone_condition(
            labels.double(), directions, max_partners=num, min_fires=min_fires
        )
    }
    gaining = {
        j: [int(k) for k in cone.violators] if cone.residual > min_residual else []
        for j, cone in cones.items()
    }
    same = _same_tokens(on)
    predictions = []
    for j in range(num):
        children = [k for k in gaining.get(j, []) if not same[j, k]]
        parents = [k for k in range(num) if j in gaining.get(k, []) and not same[j, k]]
        merged = np.flatnonzero(same[j]).tolist()
        fires = on[:, j]
        covered = float(on[fires][:, children].any(1).double().mean()) if children else 0.0
        predictions.append(
            Prediction(
                concept=j,
                fate=_fate(children, parents, merged, covered),
                residual=cones[j].residual if j in cones else 0.0,
                children=tuple(children),
                parents=tuple(parents),
                merged_with=tuple(merged),
                covered=covered,
            )
        )
    return predictions


def _fate(children: list[int], parents: list[int], merged: list[int], covered: float) -> str:
    if merged:
        return "merged"
    if children:
        return "split" if covered >= COVERED else "absorbed"
    return "child" if parents else "held"


def _same_tokens(on: Tensor) -> np.ndarray:
    """Return (num, num) bool: pairs that fire on the same tokens, but for 1 - COVERED of them."""
    counts = on.double().T @ on.double()
    fires = counts.diagonal()
    union = fires[:, None] + fires - counts
    same = (counts >= COVERED * union) & (union > 0)
    return same.fill_diagonal_(False).cpu().numpy()
