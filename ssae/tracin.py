"""TracIn: how much a step of training on a document lowers the loss of the seeds.

    l(doc)     = mean over the document's tokens of (error + penalty)
    g_c        = mean over seed documents of grad l(seed; theta_c)
    score(doc) = sum_c weight_c < grad l(doc; theta_c), g_c >

over checkpoints c of one training run (arXiv 2002.08484, section 3; weight_c is the share of the
summed learning rate that a checkpoint stands for, training/snapshots.py). The inner product is the
derivative of l(doc) along g_c: one forward-mode pass (sae/jvp.py) gives it for all tokens of a
batch. No gradient of a document is ever made, no activation stored.

theta are the parameters as they are in training: of the SAE that reads x = input_scale *
activations. Which parameters one calls the same matters, gradients are not invariant. The loss is
in units of x squared; training's division by the variance is one factor for all scores.

SAEs are in eval mode, so that the loss of a token does not depend on the tokens beside it:
batchtopk and matryoshka keep what exceeds their threshold, and jumprelu's penalty and thresholds,
whose gradients in training are straight-through estimates, have none. Frozen parameters (residual)
take no part. Neither do auxk, the objective's weights, Adam's scales or the projection that keeps
decoder directions at norm 1: the formula is that of gradient descent on the mean loss.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.activation.capture import NonFinite, capture_text, origins
from ssae.activation.rows import Rows, batches_of
from ssae.artifact.store import Artifact
from ssae.language_model.frozen import LanguageModel
from ssae.process.progress import progress_bar, token_rate
from ssae.sae.base import SparseAutoencoder
from ssae.sae.files import load
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.jvp import jvp, token_losses
from ssae.training.snapshots import folder_of


class Checkpoint(NamedTuple):
    """An SAE on its way through training."""

    sae: SparseAutoencoder
    """Of unscaled activations."""
    weight: float
    """Share of the summed learning rate."""


def checkpoints_of(trained: Artifact) -> list[Checkpoint]:
    """Return the snapshots of a `train` artifact; the SAE itself, weight 1, where it has none."""
    snapshots = trained.manifest.get("snapshots")
    if not snapshots:
        return [Checkpoint(load(trained.path), 1.0)]
    return [
        Checkpoint(load(folder_of(trained.path, row["step"])), row["weight"]) for row in snapshots
    ]


def input_scale_of(trained: Artifact) -> float | None:
    """Return what training multiplied activations by; None where the SAE was trained elsewhere."""
    return trained.manifest.get("input_scale")


def score_documents(
    lm: LanguageModel,
    hookpoint: str,
    checkpoints: Sequence[Checkpoint],
    seeds: Rows,
    candidates: Rows,
    batch_tokens: int,
    input_scale: float | None,
) -> np.ndarray:
    """Return the score (num_documents,) of every candidate, float64; 0 without a token of text.

    Seeds without text do not count as documents of the mean.

    Args:
        lm: gives the activations; one forward pass serves all checkpoints.
        hookpoint: the SAEs'.
        checkpoints: of one SAE; they stay as they are.
        seeds: documents of the subdomain.
        candidates: documents to score.
        batch_tokens: of a forward pass, padding included; does not change the scores.
        input_scale: as `input_scale_of` gives it; None: sqrt(d_in) over the mean norm on the seeds.

    Raises:
        ValueError: there is no checkpoint, or a score is not finite.
    """
    if not checkpoints:
        raise ValueError("checkpoints must hold at least one SAE, got none; see checkpoints_of")
    device, dtype = torch.device(lm.device_used), checkpoints[0].sae.b_dec.dtype

    def text(rows: Rows, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        for activations, documents in _text(lm, hookpoint, rows, batch_tokens, what):
            yield activations.to(device, dtype), documents.to(device, non_blocking=True)

    tokens = _tokens_per_document(seeds, batch_tokens).to(device, torch.float64)
    if input_scale is None:
        norms = [x.norm(dim=1).sum(dtype=torch.float64) for x, _ in text(seeds, "norm of seeds")]
        mean_norm = torch.stack(norms).sum() / tokens.sum()
        input_scale = float(checkpoints[0].sae.d_in ** 0.5 / mean_norm)
    saes = [_in_training_units(sae, input_scale).to(device) for sae, _ in checkpoints]
    share = 1 / (tokens * (tokens > 0).sum())
    batches = text(seeds, "gradient of seeds")
    gradients = seed_gradients(saes, ((input_scale * x, share[of]) for x, of in batches))

    sums = torch.zeros(candidates.num_documents, dtype=torch.float64, device=device)
    counts = torch.zeros_like(sums)
    for x, documents in text(candidates, "TracIn"):
        for (_, weight), sae, gradient in zip(checkpoints, saes, gradients, strict=True):
            _, derivatives = jvp(sae, input_scale * x, gradient)
            sums.index_add_(0, documents, weight * derivatives.double())
        counts.index_add_(0, documents, torch.ones_like(documents, dtype=counts.dtype))
    scores = (sums / counts.clamp_min(1)).cpu().numpy()
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise NonFinite(
            f"the TracIn scores of {len(wrong):,} of {len(scores):,} documents are not finite, "
            f"first that of document {wrong[0]}; set language_model.dtype=float32"
        )
    return scores


def seed_gradients(
    saes: Sequence[SparseAutoencoder], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[dict[str, Tensor]]:
    """Return, for each SAE, grad sum_i weights_i (error_i + penalty_i) over all tokens i.

    With weights 1 / (tokens of the document * number of documents), which sum to 1, that is the
    gradient of the mean over documents of their mean losses.

    Args:
        saes: their modes decide as in `forward`; see the module's docstring.
        batches: of (x (n, d_in), weights (n,)), x as these SAEs read it.

    Returns:
        {name of a parameter that is not frozen: gradient}.
    """
    trained = [{n: p for n, p in sae.named_parameters() if p.requires_grad} for sae in saes]
    sums = [{name: torch.zeros_like(p) for name, p in own.items()} for own in trained]
    for x, weights in batches:
        for sae, own, total in zip(saes, trained, sums, strict=True):
            loss = (weights * token_losses(sae, x)).sum()
            grads = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            for name, grad in zip(own, grads, strict=True):
                if grad is not None:
                    total[name] += grad
    return sums


def _in_training_units(sae: SparseAutoencoder, input_scale: float) -> SparseAutoencoder:
    """Return a copy that reads input_scale * x, with losses of one token each."""
    scaled = copy.deepcopy(sae).eval()
    scaled.rescale_input(input_scale)
    for module in scaled.modules():
        if isinstance(module, JumpReLUSAE):
            # The pull to a target takes a mean over the batch, and over ranks that may not be here.
            # It has no gradient in eval mode.
            module.target_l0 = None
    return scaled


def _text(
    lm: LanguageModel, hookpoint: str, rows: Rows, batch_tokens: int, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (activations (n, d_in), the document of each (n,)) of all text, batch by batch."""
    seen = 0
    with progress_bar(what, rows.num_tokens) as progress:
        [task] = progress.tasks
        for row_ids in batches_of(rows, np.arange(rows.num_rows), batch_tokens):
            batch = rows.batch(row_ids)
            documents = origins(batch)[:, 1].long()
            if len(documents) == 0:
                continue
            yield capture_text(lm, batch, [hookpoint])[hookpoint], documents
            rows.forget()
            seen += len(documents)
            progress.update(task.id, completed=seen, rate=token_rate(task, seen))


def _tokens_per_document(rows: Rows, batch_tokens: int) -> Tensor:
    """Return the tokens of text (num_documents,) int64 of each document."""
    counts = torch.zeros(rows.num_documents, dtype=torch.int64)
    for row_ids in batches_of(rows, np.arange(rows.num_rows), batch_tokens):
        batch = rows.batch(row_ids)
        counts += torch.bincount(batch.document_ids[batch.text], minlength=len(counts))
    return counts
