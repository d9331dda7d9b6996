"""Sums over tokens, kept per document and frequency band, and intervals from them."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

QUANTITIES = (
    "residual_sq", "deviation_sq", "active", "tokens",
    "ce_clean", "ce_spliced", "ce_zero", "predictions",
    "ce_clean_current", "ce_spliced_current", "predictions_current",
    "residual_sq_predicted", "deviation_sq_predicted", "active_predicted", "tokens_predicted",
)  # fmt: skip


class DocumentBandSums(Metric):
    """Sums of quantities of tokens by (document, band): what every formula is computed from.

    Documents are the unit of resampling: tokens of one document are not independent.

    Args:
        num_documents: number of documents.
        num_bands: number of frequency bands.

    Example:
        >>> sums = DocumentBandSums(num_documents=2, num_bands=1)
        >>> sums.update("tokens", torch.ones(3), torch.tensor([0, 0, 1]), torch.zeros(3).long())
        >>> sums.compute()["tokens"]
        array([[2.],
               [1.]])
    """

    sums: Tensor
    full_state_update = False

    def __init__(self, num_documents: int, num_bands: int) -> None:
        super().__init__(sync_on_compute=False)
        self.num_documents, self.num_bands = num_documents, num_bands
        zeros = torch.zeros(len(QUANTITIES), num_documents * num_bands, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    def update(self, quantity: str, values: Tensor, document_ids: Tensor, bands: Tensor) -> None:
        """Add values (n,) of tokens in document_ids (n,) and bands (n,)."""
        cells = document_ids.long() * self.num_bands + bands
        self.sums[QUANTITIES.index(quantity)].index_add_(0, cells.cpu(), values.double().cpu())

    def compute(self) -> dict[str, np.ndarray]:
        """Return {quantity: (num_documents, num_bands) float64}."""
        shape = (self.num_documents, self.num_bands)
        return {q: self.sums[i].view(shape).numpy() for i, q in enumerate(QUANTITIES)}


def document_draws(num_documents: int, num_bootstraps: int, seed: int) -> np.ndarray:
    """Return how often each document is drawn, (1 + num_bootstraps, num_documents) float64.

    Row 0 is the set itself, every document once; each other row draws num_documents of them with
    replacement. One seed gives every SAE and every measure the same resamples, so differences and
    ratios between SAEs are paired.

    Args:
        num_documents: number of documents.
        num_bootstraps: number of resamples.
        seed: of the resampling.
    """
    share = np.full(num_documents, 1 / num_documents)
    counts = np.random.default_rng(seed).multinomial(num_documents, share, size=num_bootstraps)
    return np.vstack([np.ones(num_documents), counts])


def resample(
    sums: Mapping[str, np.ndarray], num_bootstraps: int, seed: int
) -> dict[str, np.ndarray]:
    """Return {quantity: (1 + num_bootstraps, num_bands + 1)} sums over resampled documents.

    The rows are those of `document_draws`; column 0 is the sum over bands.

    Args:
        sums: {quantity: (num_documents, num_bands)}.
        num_bootstraps: number of resamples.
        seed: of the resampling.
    """
    counts = document_draws(len(next(iter(sums.values()))), num_bootstraps, seed)
    bands = {name: np.column_stack([s.sum(1), s]) for name, s in sums.items()}
    return {name: counts @ s for name, s in bands.items()}


def intervals(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (value, low, high) from draws (1 + num_bootstraps, ...): row 0 and the 95 % interval.

    Resamples in which a band has no token are left out of its interval.
    """
    resampled = np.where(np.isfinite(draws[1:]), draws[1:], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a band without any token stays nan
        low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    return draws[0], low, high
