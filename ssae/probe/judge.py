"""Which latents carry the spurious attribute: by what they read in exchanged documents.

A document is read twice, with all words of shift.word_pairs as the first of their pair and as the
second. A latent that reads the attribute is active in one reading; one that reads anything else is
active in both. No document's own attribute is used, and none of the balanced set.
"""

import numpy as np
import torch
from scipy import sparse
from scipy.stats import rankdata
from torch import Tensor

MIN_FIRING = 5
"""Documents that a latent must fire in, or there is nothing to tell."""


def aurocs(first: sparse.csr_array, second: sparse.csr_array, *, paired: bool) -> np.ndarray:
    """Return how well each latent tells second from first readings: AUROC (d_sae,).

        AUROC_j = P(zbar_j of a second > zbar_j of a first reading) + 1/2 P(equal)

    0.5 is no difference, 0 and 1 are perfect. Of paired readings those count in which the latent
    fires in one or the other: how rare a word is does not matter. Latents that fire in fewer than
    MIN_FIRING documents get 0.5.

    Args:
        first: (m, d_sae) pooled latents.
        second: (m', d_sae).
        paired: row i of both is the same document.
    """
    columns = first.tocsc(), second.tocsc()
    sizes = len(first.indptr) - 1, len(second.indptr) - 1
    fires = np.diff(columns[0].indptr) + np.diff(columns[1].indptr)
    found = np.full(len(fires), 0.5)
    for latent in np.flatnonzero(fires >= MIN_FIRING).tolist():
        a, b = (_column(own, latent, size) for own, size in zip(columns, sizes, strict=True))
        if paired:
            fired = (a > 0) | (b > 0)
            if fired.sum() < MIN_FIRING:
                continue
            a, b = a[fired], b[fired]
        ranks = rankdata(np.concatenate([a, b]))
        above = ranks[len(a) :].sum() - len(b) * (len(b) + 1) / 2
        found[latent] = above / (len(a) * len(b))
    return found


def _column(readings: sparse.csc_array, latent: int, size: int) -> np.ndarray:
    """Return the values (size,) of one latent."""
    entries = slice(readings.indptr[latent], readings.indptr[latent + 1])
    values = np.zeros(size)
    values[readings.indices[entries]] = readings.data[entries]
    return values


def cosines(W_dec: Tensor, first: Tensor, second: Tensor) -> np.ndarray:
    """Return the cosine (d_sae,) of each decoder direction with the difference of two means.

    Args:
        W_dec: (d_sae, d_in).
        first: (m, d_in) pooled activations of one reading, where the SAE reads.
        second: (m', d_in) of the other.
    """
    direction = second.double().mean(0) - first.double().mean(0)
    directions = W_dec.detach().double().cpu()
    return torch.cosine_similarity(directions, direction[None], dim=1).numpy()
