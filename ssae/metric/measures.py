"""Everything that is measured of one SAE on one split, gathered in the one pass of splice.py."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ssae.metric.concept import DocumentPeaks
from ssae.metric.error_by_rank import ErrorByRank, RankErrors
from ssae.metric.firings import Firings
from ssae.metric.frequency import BANDS, Frequency, rank_bins
from ssae.metric.represented import RepresentedTypes, TypesFound
from ssae.metric.spread import Spread, TokenSpread
from ssae.metric.sums import DocumentBandSums
from ssae.metric.tail import TailError, TailTypes, tail_recall
from ssae.sae.base import SAEOutput


class Split(NamedTuple):
    """What is known of a split before an SAE is measured on it."""

    num_documents: int
    mean: Tensor
    """(d_in,) float32 mean activation, on the device of the activations."""
    frequency: Frequency
    """Of token types in the pool."""
    tail: TailTypes
    """The rare types, and the resamples of documents."""

    @property
    def vocab_size(self) -> int:
        """Number of token types."""
        return len(self.frequency.ranks)


class Texts(NamedTuple):
    """The tokens of a batch that are text, and the predictions among them, on the CPU."""

    ids: Tensor
    """(n,) token types."""
    documents: Tensor
    """(n,)."""
    ce: Tensor
    """(2 + num_saes, num_predictions) cross-entropies: clean, zero, one row for each SAE."""
    predicted: Tensor
    """(num_predictions,) token types that are predicted."""
    current: Tensor
    """(num_predictions,) token types on which the predictions are made."""
    predicted_documents: Tensor
    """(num_predictions,)."""
    rows: Tensor
    """(num_rows,) rows of the tokens of text on which a prediction is made."""
    following: Tensor
    """(num_rows,) token types that are predicted from them."""


class Measured(NamedTuple):
    """What one SAE gave on one split."""

    sums: dict[str, np.ndarray]
    """{quantity: (num_documents, num_bands)}; see metric/formulas.py."""
    rank_errors: RankErrors
    """||x - recon||^2 / E||x - mu||^2 by rank of the token type."""
    types: TypesFound
    """Which token types some latent stands for."""
    spread: Spread
    """Firing counts, entropies and largest activations of every latent."""
    peaks: sparse.csc_matrix
    """(num_documents, d_sae) largest activation of every latent on every document."""
    tail: TailTypes
    tail_recall: np.ndarray
    """(1 + num_bootstraps,)."""
    tail_error: np.ndarray
    """(1 + num_bootstraps,), of ||x - recon||^2 / E||x - mu||^2."""

    @property
    def fires(self) -> Tensor:
        """(d_sae,) int64, number of tokens on which each latent fired."""
        return torch.from_numpy(self.spread.fires)

    @property
    def num_tokens(self) -> int:
        """Number of tokens measured."""
        return int(self.sums["tokens"].sum())


class Measures:
    """The metrics of one SAE on one split.

    Args:
        d_sae: number of its latents.
        split: what it is measured on.
    """

    def __init__(self, d_sae: int, split: Split) -> None:
        vocab_size = split.vocab_size
        self.split = split
        self.sums = DocumentBandSums(split.num_documents, len(BANDS))
        self.rank_errors = ErrorByRank(rank_bins(vocab_size))
        self.tail_error = TailError(vocab_size, split.tail)
        self.firings = Firings(d_sae)
        self.types = RepresentedTypes(d_sae, vocab_size)
        self.spread = TokenSpread(d_sae, vocab_size)
        self.peaks = DocumentPeaks(d_sae, split.num_documents)

    def update(self, x: Tensor, out: SAEOutput, texts: Texts, row: int) -> None:
        """Add a batch.

        Args:
            x: (n, d_in) activations of the tokens of text.
            out: what the SAE makes of them.
            texts: the tokens.
            row: of this SAE in texts.ce.
        """
        bands, ranks = self.split.frequency
        here = texts.documents, bands[texts.ids]
        errors = (x - out.recon).square().sum(1).cpu()
        deviations = (x - self.split.mean).square().sum(1).cpu()
        self.sums.update("residual_sq", errors, *here)
        self.sums.update("deviation_sq", deviations, *here)
        active = out.latents.num_active().cpu()
        self.sums.update("active", active, *here)
        self.sums.update("tokens", torch.ones(len(x)), *here)
        before = texts.documents[texts.rows], bands[texts.following]
        self.sums.update("residual_sq_predicted", errors[texts.rows], *before)
        self.sums.update("deviation_sq_predicted", deviations[texts.rows], *before)
        self.sums.update("active_predicted", active[texts.rows], *before)
        self.sums.update("tokens_predicted", torch.ones(len(texts.rows)), *before)
        there = texts.predicted_documents, bands[texts.predicted]
        ones = torch.ones(texts.ce.shape[1])
        self.sums.update("ce_clean", texts.ce[0], *there)
        self.sums.update("ce_zero", texts.ce[1], *there)
        self.sums.update("ce_spliced", texts.ce[row], *there)
        self.sums.update("predictions", ones, *there)
        where = texts.predicted_documents, bands[texts.current]
        self.sums.update("ce_clean_current", texts.ce[0], *where)
        self.sums.update("ce_spliced_current", texts.ce[row], *where)
        self.sums.update("predictions_current", ones, *where)
        self.rank_errors.update(errors, ranks[texts.ids])
        self.tail_error.update(errors, texts.ids, texts.documents)
        self.firings.update(out.latents, texts.ids, texts.documents)

    def result(self) -> Measured:
        """Return what was measured."""
        sums = self.sums.compute()
        table = self.firings.table()
        types = self.types.measure(table)
        variance = float(sums["deviation_sq"].sum() / sums["tokens"].sum())
        return Measured(
            sums=sums,
            rank_errors=self.rank_errors.compute().over(variance),
            types=types,
            spread=self.spread.measure(table),
            peaks=self.peaks.measure(table),
            tail=self.split.tail,
            tail_recall=tail_recall(table, self.split.tail, types),
            tail_error=self.tail_error.compute() / variance,
        )
