"""Error against how frequent a token type is (arXiv 2411.00743, figure 3)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class RankErrors(NamedTuple):
    """Errors of tokens by bin of the rank of their type; all (num_bins,)."""

    sums: Tensor
    """float64."""
    counts: Tensor
    """int64, tokens."""
    maxima: Tensor
    """float64; 0 where there is no token."""

    def over(self, scale: float) -> "RankErrors":
        """Return the errors divided by `scale`."""
        return RankErrors(self.sums / scale, self.counts, self.maxima / scale)


class ErrorByRank(Metric):
    """Sum, number and maximum of the errors of tokens, by the rank of the token's type.

    Args:
        edges: (num_bins + 1,) rising; bin b holds the ranks edges[b] .. edges[b + 1] - 1.

    Example:
        >>> by_rank = ErrorByRank(torch.tensor([0, 1, 4]))
        >>> by_rank.update(torch.tensor([1.0, 2.0, 4.0]), ranks=torch.tensor([0, 3, 1]))
        >>> by_rank.compute().sums
        tensor([1., 6.], dtype=torch.float64)
        >>> by_rank.compute().maxima
        tensor([1., 4.], dtype=torch.float64)
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor
    maxima: Tensor

    def __init__(self, edges: Tensor) -> None:
        super().__init__(sync_on_compute=False)
        self.edges = edges
        zeros = torch.zeros(len(edges) - 1, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("counts", zeros.long(), dist_reduce_fx="sum")
        self.add_state("maxima", zeros.clone(), dist_reduce_fx="max")

    def update(self, errors: Tensor, ranks: Tensor) -> None:
        """Add errors (n,), >= 0, of tokens whose types have ranks (n,)."""
        bins = torch.bucketize(ranks, self.edges, right=True) - 1
        errors = errors.double().cpu()
        self.sums.index_add_(0, bins, errors)
        self.counts.index_add_(0, bins, torch.ones_like(bins))
        self.maxima.scatter_reduce_(0, bins, errors, "amax")

    def compute(self) -> RankErrors:
        """Return sum, number and maximum of each bin."""
        return RankErrors(self.sums, self.counts, self.maxima)
