"""One pass of the language model over a test split, with every SAE spliced in."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssae.activation.rows import Rows, batches_of
from ssae.metric.frequency import BANDS, Frequency, rank_bins
from ssae.metric.sums import DocumentBandSums
from ssae.process.progress import progress_bar, token_rate
from ssae.sae.base import SAEOutput, SparseAutoencoder

if TYPE_CHECKING:
    from ssae.study import Study


@dataclasses.dataclass
class SplitSums:
    """What one SAE gave on one split."""

    sums: dict[str, np.ndarray]
    """{quantity: (num_documents, num_bands)}; see metric/formulas.py."""
    fires: Tensor
    """(d_sae,) number of tokens on which each latent fired."""
    rank_sums: Tensor
    rank_maxima: Tensor
    rank_counts: Tensor
    """(num_bins,) of ||x - recon||^2 / E||x - mu||^2 by rank of the token type."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens measured."""
        return int(self.sums["tokens"].sum())


class _Accumulator:
    def __init__(self, d_sae: int, num_documents: int, vocab_size: int) -> None:
        self.sums = DocumentBandSums(num_documents, len(BANDS))
        self.fires = torch.zeros(d_sae, dtype=torch.int64)
        self.edges = rank_bins(vocab_size)
        num_bins = len(self.edges) - 1
        self.rank_sums = torch.zeros(num_bins, dtype=torch.float64)
        self.rank_counts = torch.zeros(num_bins, dtype=torch.int64)
        self.rank_maxima = torch.zeros(num_bins, dtype=torch.float64)

    def add_errors(self, errors: Tensor, ranks: Tensor) -> None:
        bins = torch.bucketize(ranks, self.edges, right=True) - 1
        self.rank_sums.index_add_(0, bins, errors.double())
        self.rank_counts.index_add_(0, bins, torch.ones_like(bins))
        self.rank_maxima.scatter_reduce_(0, bins, errors.double(), "amax")

    def result(self, variance: float) -> SplitSums:
        return SplitSums(
            self.sums.compute(), self.fires,
            self.rank_sums / variance, self.rank_maxima / variance, self.rank_counts,
        )  # fmt: skip


@torch.no_grad()
def measure_split(
    study: "Study",
    saes: Mapping[str, SparseAutoencoder],
    rows: Rows,
    mean: Tensor,
    frequency: Frequency,
    *,
    name: str,
) -> dict[str, SplitSums]:
    """Return the sums of every SAE over the split.

    Recon and zeros replace the activations of text tokens; special tokens keep theirs, and are
    neither measured nor predicted.

    Args:
        study: names model and hookpoint.
        saes: by name, on the device the model's input goes to.
        rows: the split's documents.
        mean: (d_in,) mean activation of the split.
        frequency: of token types in the pool.
        name: for the progress bar.
    """
    lm = study.language_model
    lm.check_causal()
    hookpoint = lm.resolve(study.hookpoint)
    num_documents, num_copies = rows.num_documents, 2 + len(saes)  # clean, zero, one per SAE
    results = {
        key: _Accumulator(sae.d_sae, num_documents, lm.vocab_size) for key, sae in saes.items()
    }
    mean = mean.float().to(lm.device_used)
    batch_tokens = study.evaluation_batch_tokens // num_copies
    seen = 0
    with progress_bar(f"evaluating on {name}", rows.num_tokens) as progress:
        [task] = progress.tasks
        for row_ids in batches_of(rows, np.arange(rows.num_rows), batch_tokens):
            ids, attention_mask, documents, text = rows.batch(row_ids)
            # A prediction counts when the token predicted is text of the same document.
            predicted = text[:, 1:] & (documents[:, 1:] == documents[:, :-1])
            outputs: dict[str, SAEOutput] = {}
            captured: list[Tensor] = []

            def variants(
                x: Tensor,
                text: Tensor = text,
                captured: list[Tensor] = captured,
                outputs: dict[str, SAEOutput] = outputs,
            ) -> Tensor:
                """Return x as it is, zeros, and the recon of every SAE, stacked."""
                x = x[: len(text)]  # the copies are equal up to here
                inside = text.to(x.device)
                flat = x[inside].float().to(mean.device)  # a model may lie on several
                captured.append(flat)
                outputs.update((key, sae(flat)) for key, sae in saes.items())
                spliced = x.repeat(num_copies, 1, 1, 1)
                spliced[1, inside] = 0
                for row, out in enumerate(outputs.values(), start=2):
                    spliced[row, inside] = out.recon.to(x)
                return spliced.flatten(0, 1)

            # A batch that grew inside the hook would not fit the attention masks made before it.
            if attention_mask is not None:
                attention_mask = attention_mask.repeat(num_copies, 1)
            copies = ids.repeat(num_copies, 1)
            logits = lm.splice(copies, hookpoint, variants, attention_mask)
            ce = _cross_entropy(logits, ids)[:, predicted]
            flat = captured[0]
            here = (documents[text], frequency.bands[ids[text]])
            there = (documents[:, 1:][predicted], frequency.bands[ids[:, 1:][predicted]])
            ones = torch.ones(len(flat)), torch.ones(ce.shape[1])
            for row, (key, out) in enumerate(outputs.items(), start=2):
                result = results[key]
                errors = (flat - out.recon).square().sum(1).cpu()
                result.sums.update("residual_sq", errors, *here)
                result.sums.update("deviation_sq", (flat - mean).square().sum(1), *here)
                result.sums.update("active", out.latents.num_active(), *here)
                result.sums.update("tokens", ones[0], *here)
                result.sums.update("ce_clean", ce[0], *there)
                result.sums.update("ce_zero", ce[1], *there)
                result.sums.update("ce_spliced", ce[row], *there)
                result.sums.update("predictions", ones[1], *there)
                result.fires += out.latents.fire_counts().cpu()
                result.add_errors(errors, frequency.ranks[ids[text]])
            seen += len(flat)
            rate = token_rate(task, seen, f" x {len(saes)} SAEs")
            progress.update(task.id, completed=seen, rate=rate)
    any_sums = next(iter(results.values())).sums.compute()
    variance = float(any_sums["deviation_sq"].sum() / any_sums["tokens"].sum())
    return {key: result.result(variance) for key, result in results.items()}


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Return -log p(token) (num_variants, batch, length - 1) of tokens 1 .. length - 1, on the CPU.

    Args:
        logits: (num_variants * batch, length, vocab).
        ids: (batch, length).
    """
    variants = logits.unflatten(0, (-1, len(ids)))
    targets = ids[:, 1:].to(logits.device).flatten()
    losses = [
        torch.nn.functional.cross_entropy(
            variant[:, :-1].flatten(0, 1).float(), targets, reduction="none"
        )
        for variant in variants
    ]
    return torch.stack(losses).unflatten(1, (len(ids), -1)).cpu()
