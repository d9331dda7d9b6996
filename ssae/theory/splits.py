"""How latents split as SAEs grow wider.

A child of latent j is a latent k of a wider SAE with

    d_j . d_k > tau      and      share of k's tokens on which j fires >= purity

The wider SAE's own latent nearest to j, its heir, is the child of largest cosine. Where another
child fires, the heir may be silent though what it stands for is there: with level_j the 5 %
quantile of x . d_heir where the heir fires,

    absorbed share = share of tokens with j and another child active on which the heir is silent
                     though x . d_heir >= level_j
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.theory.coded import Coded, as_csc, coded_by

MIN_COSINE = 0.5
"""tau."""
MIN_PURITY = 0.5
THERE = 0.05
"""Quantile of x . d_heir, over tokens on which the heir fires, from which on it should fire."""
CHUNK = 1024


class Child(NamedTuple):
    """A latent of the wider SAE."""

    latent: int
    cosine: float
    """With its parent's direction."""
    purity: float
    """Share of its tokens on which the parent fires."""
    coverage: float
    """Share of the parent's tokens on which it fires."""
    fires: int
    """Tokens on which it fires."""


class Family(NamedTuple):
    """A latent of the narrower SAE, and what became of it in the wider one."""

    parent: int
    children: list[Child]
    """The largest cosine first: the heir; empty if the concept is gone."""
    fires: int
    """Tokens on which the parent fires."""
    covered: float
    """Share of them on which a child fires."""
    absorbed: float
    """The absorbed share; NaN where no other child fires together with the parent."""
    asked: int
    """Tokens it is a share of: those with the parent and another child active."""


def splitting(
    narrow: SparseAutoencoder,
    wide: SparseAutoencoder,
    x: Tensor,
    *,
    min_cosine: float = MIN_COSINE,
    min_purity: float = MIN_PURITY,
) -> list[Family]:
    """Return what became of every latent of `narrow` that fires on x, in order of its children.

    Args:
        narrow: any architecture.
        wide: of the same activations, with more latents.
        x: (n, d_in) activations.
        min_cosine: tau, in (0, 1).
        min_purity: in (0, 1].

    Raises:
        ValueError: a bound is out of range, or the SAEs read different widths.
    """
    if narrow.d_in != wide.d_in:
        raise ValueError(f"both SAEs must read one width, got {narrow.d_in} and {wide.d_in}")
    return splits_of(
        coded_by(narrow, x), coded_by(wide, x), min_cosine=min_cosine, min_purity=min_purity
    )


def splits_of(
    narrow: Coded, wide: Coded, *, min_cosine: float = MIN_COSINE, min_purity: float = MIN_PURITY
) -> list[Family]:
    """Return what became of the latents of `narrow` on the same tokens; see `splitting`."""
    if not (0 < min_cosine < 1 and 0 < min_purity <= 1):
        raise ValueError(
            f"min_cosine must lie in (0, 1) and min_purity in (0, 1], got {min_cosine} and "
            f"{min_purity}"
        )
    ours, theirs = (as_csc(batch.z) for batch in (narrow, wide))
    ours_on, theirs_on = (_on(z) for z in (ours, theirs))
    num_ours, num_theirs = (np.diff(z.indptr) for z in (ours, theirs))
    found = []
    for start in range(0, len(narrow.directions), CHUNK):
        stop = min(start + CHUNK, len(narrow.directions))
        cosines = (narrow.directions[start:stop] @ wide.directions.T).cpu().numpy()
        together = (ours_on[:, start:stop].T @ theirs_on).toarray()
        purity = together / np.maximum(num_theirs, 1)
        is_child = (cosines > min_cosine) & (purity >= min_purity) & (num_theirs > 0)
        for j in range(start, stop):
            if not num_ours[j]:
                continue
            row = j - start
            latents = np.flatnonzero(is_child[row])
            latents = latents[np.argsort(-cosines[row, latents], kind="stable")]
            children = [
                Child(
                    int(k), float(cosines[row, k]), float(purity[row, k]),
                    float(together[row, k] / num_ours[j]), int(num_theirs[k]),
                )
                for k in latents
            ]  # fmt: skip
            on = ours_on[:, [j]].toarray()[:, 0] > 0
            found.append(_split(j, on, children, theirs, wide))
    return sorted(found, key=lambda split: -len(split.children))


def _on(z: sparse.csc_matrix) -> sparse.csc_matrix:
    return sparse.csc_matrix((np.ones_like(z.data), z.indices, z.indptr), z.shape)


def _split(
    j: int, on: np.ndarray, children: list[Child], theirs: sparse.csc_matrix, wide: Coded
) -> Family:
    fires = int(on.sum())
    if not children:
        return Family(j, [], fires, 0.0, float("nan"), 0)
    own = theirs[:, [child.latent for child in children]].toarray() > 0
    covered = float(own[on].any(1).mean())
    heir, others = own[:, 0], own[:, 1:].any(1)
    there = (wide.x @ wide.directions[children[0].latent]).cpu().numpy()
    level = np.quantile(there[heir], THERE)
    asked = on & others
    silent = asked & ~heir & (there >= level)
    absorbed = float(silent.sum() / asked.sum()) if asked.any() else float("nan")
    return Family(j, children, fires, covered, absorbed, int(asked.sum()))
