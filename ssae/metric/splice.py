"""One pass of the language model over a test split, with every SAE spliced in."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssae.activation.rows import Rows, batches_of
from ssae.metric.frequency import Frequency
from ssae.metric.measures import Measured, Measures, Split, Texts
from ssae.metric.sums import document_draws
from ssae.metric.tail import tail_types
from ssae.process.progress import progress_bar, token_rate
from ssae.sae.base import SAEOutput, SparseAutoencoder

if TYPE_CHECKING:
    from ssae.study import Study


@torch.no_grad()
def measure_split(
    study: "Study",
    saes: Mapping[str, SparseAutoencoder],
    rows: Rows,
    mean: Tensor,
    frequency: Frequency,
    *,
    name: str,
) -> dict[str, Measured]:
    """Return what is measured of every SAE on the split.

    Recon and zeros replace the activations of text tokens; special tokens keep theirs, and are
    neither measured nor predicted.

    Args:
        study: names model, hookpoint and resamples.
        saes: by name, on the device the model's input goes to.
        rows: the split's documents.
        mean: (d_in,) mean activation of the split.
        frequency: of token types in the pool.
        name: for the progress bar.
    """
    lm = study.language_model
    lm.check_causal()
    hookpoint = lm.resolve(study.hookpoint)
    num_copies = 2 + len(saes)  # clean, zero, one per SAE
    draws = document_draws(rows.num_documents, study.num_bootstraps, study.seed)
    tail = tail_types(frequency.ranks, rows.token_counts, draws)
    split = Split(rows.num_documents, mean.float().to(lm.device_used), frequency, tail)
    measures = {key: Measures(sae.d_sae, split) for key, sae in saes.items()}
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
                flat = x[inside].float().to(split.mean.device)  # a model may lie on several
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
            both = predicted & text[:, :-1]  # a separator predicts, but is not measured
            places = (text.flatten().cumsum(0) - 1).view_as(text)
            texts = Texts(
                ids[text], documents[text], ce,
                ids[:, 1:][predicted], ids[:, :-1][predicted], documents[:, 1:][predicted],
                places[:, :-1][both], ids[:, 1:][both],
            )  # fmt: skip
            for row, (key, out) in enumerate(outputs.items(), start=2):
                measures[key].update(flat, out, texts, row)
            seen += len(flat)
            rate = token_rate(task, seen, f" x {len(saes)} SAEs")
            progress.update(task.id, completed=seen, rate=rate)
    return {key: measures.pop(key).result() for key in saes}  # one by one: firings take room


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
