"""Which token types some latent stands for (arXiv 2411.00743, figures 2, 6, 11 and 14).

threshold_j    half of the 99.9 % activation of latent j: of its m activations > 0 the
ceil(0.999 m)-th smallest, an order statistic
n_v            number of tokens of type v
fires_j        number of tokens on which latent j is above threshold_j
C[v, j]        number of tokens of type v on which latent j is above threshold_j
F1[v, j]       2 C[v, j] / (n_v + fires_j)
represented    max_j F1[v, j] >= 0.5
"""

from typing import NamedTuple

import numpy as np

from ssae.metric.firings import FiringTable, TypeFirings, segment_maxima

REPRESENTED_F1 = 0.5


class StrongFirings(NamedTuple):
    """The firings above the threshold of their latent, sorted by latent and document."""

    latents: np.ndarray
    """(m,) int64."""
    token_ids: np.ndarray
    """(m,) int32."""
    document_ids: np.ndarray
    """(m,) int32."""
    fires: np.ndarray
    """(d_sae,) int64, how many there are of each latent."""


class TypesFound(NamedTuple):
    """How well the best latent of every token type finds it."""

    type_counts: np.ndarray
    """(vocab_size,) int64, n_v."""
    best_f1: np.ndarray
    """(vocab_size,) float64, max_j F1[v, j]."""
    best_latent: np.ndarray
    """(vocab_size,) int64, the j of that maximum, the first of several; -1 where it is 0."""

    @property
    def represented(self) -> np.ndarray:
        """(vocab_size,) bool: best_f1 >= 0.5."""
        return self.best_f1 >= REPRESENTED_F1


class RepresentedTypes(TypeFirings):
    """The largest F1[v, j] of every token type v over the latents j; see the module.

    Args:
        d_sae: number of latents.
        vocab_size: number of token types.

    Example:
        >>> import torch
        >>> from ssae.sae.sparse import ActiveSet, SparseLatents
        >>> active = ActiveSet.of_rows(torch.tensor([[0], [0], [0], [1]]), d_sae=2)
        >>> types = RepresentedTypes(d_sae=2, vocab_size=3)
        >>> latents = SparseLatents(active, torch.tensor([9.0, 9.0, 1.0, 5.0]))
        >>> types.update(latents, torch.tensor([2, 2, 1, 1]), torch.zeros(4))
        >>> found = types.compute()
        >>> found.best_f1.round(2), found.best_latent  # 1.0 is under half of 9.0
        (array([0.  , 0.67, 1.  ]), array([-1,  1,  0]))
    """

    def measure(self, table: FiringTable) -> TypesFound:
        """Return n_v, max_j F1[v, j] and the latent it belongs to."""
        return types_found(table, self.vocab_size)


def types_found(table: FiringTable, vocab_size: int) -> TypesFound:
    """Return n_v, max_j F1[v, j] and the latent it belongs to, of every token type v."""
    strong = strong_firings(table)
    type_counts = np.bincount(table.token_ids, minlength=vocab_size)
    keys, both = np.unique(
        strong.token_ids * np.int64(table.d_sae) + strong.latents, return_counts=True
    )
    types, latents = np.divmod(keys, table.d_sae)
    f1 = 2 * both / (type_counts[types] + strong.fires[latents])
    best_f1 = np.zeros(vocab_size)
    best_latent = np.full(vocab_size, -1)
    if len(keys):
        own, starts = np.unique(types, return_index=True)
        best_f1[own] = np.maximum.reduceat(f1, starts)
        reached = np.flatnonzero(f1 == best_f1[types])
        own, first = np.unique(types[reached], return_index=True)
        best_latent[own] = latents[reached[first]]
    return TypesFound(type_counts, best_f1, best_latent)


def strong_firings(table: FiringTable) -> StrongFirings:
    """Return the firings above threshold_j, half of the 99.9 % activation of their latent."""
    counts = np.diff(table.offsets)
    strong = np.flatnonzero(table.values > np.repeat(half_peaks(table), counts))
    tokens = table.tokens[strong]
    fires = np.diff(np.searchsorted(strong, table.offsets))
    latents = np.repeat(np.arange(table.d_sae), fires)
    return StrongFirings(latents, table.token_ids[tokens], table.document_ids[tokens], fires)


def half_peaks(table: FiringTable) -> np.ndarray:
    """Return threshold_j (d_sae,) float32; 0 for a latent that never fires."""
    counts = np.diff(table.offsets)
    peaks = segment_maxima(table.values, table.offsets)
    for latent in np.flatnonzero(counts >= 1000):  # of fewer the 99.9 % activation is the largest
        own = table.values[table.offsets[latent] : table.offsets[latent + 1]]
        place = (999 * len(own) + 999) // 1000 - 1
        peaks[latent] = np.partition(own, place)[place]
    return peaks / 2
