"""Which latents carry the spurious attribute: by what they read in exchanged documents.

A document is read twice, with all words of shift.word_pairs as the first of their pair and as the
second. A latent that reads the attribute is active in one reading; one that reads anything else is
as active in both. No document's own attribute is used.
"""

import numpy as np
import torch
from scipy import sparse
from scipy.stats import rankdata
from torch import Tensor

MIN_FIRING = 5
"""Documents of one reading that a latent must fire in, or there is nothing to tell."""


def selectivity(first: sparse.csr_array, second: sparse.csr_array) -> np.ndarray:
    """Return how much of each latent's activation hangs on the attribute, (d_sae,).

        selectivity_j = b_j / (a_j + b_j),   a_j, b_j = mean of zbar_j over first, second readings

    0.5 is no difference; 1 is a latent that is active in second readings alone, 0 in first ones.
    Within pairs, so that it does not matter how much documents differ otherwise, nor how rare the
    words are. Latents that fire in fewer than MIN_FIRING documents get 0.5.

    Args:
        first: (m, d_sae) pooled latents.
        second: (m', d_sae), of the same documents or of others.
    """
    a, b = (np.asarray(own.sum(0)).ravel() / max(1, len(own.indptr) - 1) for own in (first, second))
    fires = [np.bincount(own.indices, minlength=len(a)) for own in (first, second)]
    found = np.divide(b, a + b, out=np.full(len(a), 0.5), where=a + b > 0)
    return np.where(np.maximum(*fires) >= MIN_FIRING, found, 0.5)


def aurocs(first: sparse.csr_array, second: sparse.csr_array) -> np.ndarray:
    """Return how well each latent tells a second from a first reading: AUROC (d_sae,).

        AUROC_j = P(zbar_j of a second > zbar_j of a first reading) + 1/2 P(equal)

    of any two documents. Latents that fire in fewer than MIN_FIRING documents get 0.5.

    Args:
        first: (m, d_sae) pooled latents.
        second: (m', d_sae).
    """
    columns = first.tocsc(), second.tocsc()
    sizes = len(first.indptr) - 1, len(second.indptr) - 1
    fires = np.maximum(*(np.diff(own.indptr) for own in columns))
    found = np.full(len(fires), 0.5)
    for latent in np.flatnonzero(fires >= MIN_FIRING).tolist():
        a, b = (_column(own, latent, size) for own, size in zip(columns, sizes, strict=True))
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
