"""Token types by how often they occur in the pool: decades per million, and ranks."""

from typing import NamedTuple

import torch
from torch import Tensor

BANDS = ("< 1", "1 - 10", "10 - 100", "100 - 1k", "1k - 10k", ">= 10k")
"""Names of the bands: occurrences per million tokens of the pool."""

EDGES = (1.0, 10.0, 100.0, 1e3, 1e4)


class Frequency(NamedTuple):
    """What evaluation knows of every token type."""

    bands: Tensor
    """(vocab_size,) index into BANDS."""
    ranks: Tensor
    """(vocab_size,) 0 for the most frequent type of the pool; ties by id."""


def frequency_of(token_counts: Tensor) -> Frequency:
    """Return bands and ranks from counts (vocab_size,) in a sample of the pool."""
    per_million = token_counts.double() * (1e6 / max(1, int(token_counts.sum())))
    bands = torch.bucketize(per_million, torch.tensor(EDGES, dtype=torch.float64), right=True)
    order = torch.argsort(token_counts, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return Frequency(bands, ranks)


def rank_bins(vocab_size: int, per_decade: int = 4) -> Tensor:
    """Return edges 0 = e_0 < e_1 < ... = vocab_size, even in the logarithm of the rank."""
    num_bins = max(1, round(per_decade * torch.log10(torch.tensor(float(vocab_size))).item()))
    edges = torch.logspace(0, torch.log10(torch.tensor(float(vocab_size))).item(), num_bins + 1)
    return torch.cat([torch.zeros(1, dtype=torch.int64), edges.round().long()]).unique()
