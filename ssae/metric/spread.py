"""Over how many token types a latent spreads, and how high it goes (arXiv 2411.00743, figure 5).

For latent j and token type v,

    p_j(v)    activation mass of j on v: the sum of z_ij over the tokens of v, over that of all
    H_j       - sum_v p_j(v) log p_j(v), in nats
    exp(H_j)  effective number of types: 1 for a latent of one type, V for one that is even
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse, special

from ssae.metric.firings import FiringTable, TypeFirings, segment_maxima


class Spread(NamedTuple):
    """What the firings of a set say of every latent and every token type."""

    fires: np.ndarray
    """(d_sae,) int64, number of tokens on which the latent is > 0."""
    entropy: np.ndarray
    """(d_sae,) float64, H_j in nats; 0 for a latent that never fires."""
    max_activation: np.ndarray
    """(d_sae,) float32; 0 for a latent that never fires."""
    max_per_type: np.ndarray
    """(vocab_size,) float32, the largest activation of any latent on the type; 0 without any."""

    @property
    def effective_types(self) -> np.ndarray:
        """(d_sae,) effective number of types, exp(H_j)."""
        return np.exp(self.entropy)


class TokenSpread(TypeFirings):
    """Entropy H_j over token types and largest activation of every latent; see the module.

    Args:
        d_sae: number of latents.
        vocab_size: number of token types.

    Example:
        >>> import torch
        >>> from ssae.sae.sparse import ActiveSet, SparseLatents
        >>> active = ActiveSet.of_rows(torch.tensor([[0], [0], [1]]), d_sae=2)
        >>> spread = TokenSpread(d_sae=2, vocab_size=3)
        >>> latents = SparseLatents(active, torch.tensor([2.0, 2.0, 7.0]))
        >>> spread.update(latents, torch.tensor([0, 2, 2]), torch.zeros(3))
        >>> found = spread.compute()
        >>> found.effective_types.round(6), found.max_per_type
        (array([2., 1.]), array([2., 0., 7.], dtype=float32))
    """

    def measure(self, table: FiringTable) -> Spread:
        """Return fires, H_j, and the largest activations."""
        types = table.token_ids[table.tokens]
        shape = (self.d_sae, self.vocab_size)
        # Sorted by type and then by latent, in one pass: what is to be added lies together.
        values = table.values.astype(np.float64)
        mass = sparse.csr_matrix((values, types, table.offsets), shape).tocsc()
        max_per_type = segment_maxima(mass.data, mass.indptr).astype(np.float32)
        mass.sum_duplicates()
        totals = np.bincount(mass.indices, mass.data, minlength=self.d_sae)
        terms = special.entr(mass.data / totals[mass.indices])
        return Spread(
            fires=np.diff(table.offsets).astype(np.int64),
            entropy=np.bincount(mass.indices, terms, minlength=self.d_sae),
            max_activation=segment_maxima(table.values, table.offsets),
            max_per_type=max_per_type,
        )
