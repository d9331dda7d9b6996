"""How often latents fire, where they fire most, and in which ones two SAEs differ."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.activation.shards import Tokens
from ssae.sae.base import SparseAutoencoder

CONTEXT_TOKENS = 32
"""Tokens kept on either side of a peak; the report shows as many as its page has room for."""


def silence_counts(fires: Tensor, tokens_since_fired: Tensor, dead_after: int) -> dict[str, int]:
    """Count latents that never fired in a set, apart by what can be said of them.

    num_dead: silent here, and silent for more than `dead_after` tokens when training ended.
    num_rare: silent here only: too rare to tell. Silence over N tokens bounds the firing rate by
    3/N (95 %), no more.
    """
    silent = fires == 0
    dead = silent & (tokens_since_fired > dead_after)
    return {
        "num_silent": int(silent.sum()),
        "num_dead": int(dead.sum()),
        "num_rare": int(silent.sum() - dead.sum()),
    }


def firing_rate_histogram(fires: Tensor, num_tokens: int) -> dict[str, list[float]]:
    """Return log10 bin edges and counts of the firing rates of the latents that fired."""
    rates = torch.log10(fires[fires > 0].double() / num_tokens).numpy()
    lowest = -math.ceil(math.log10(num_tokens))
    edges = np.linspace(lowest, 0, -4 * lowest + 1)
    counts, _ = np.histogram(rates, edges)
    return {"bin_edges": edges.tolist(), "counts": counts.tolist()}


def most_different(fires_a: Tensor, fires_b: Tensor, num: int) -> Tensor:
    """Return the latents whose numbers of firings a, b on the same tokens differ most.

    By |b - a| / sqrt(b + a + 1), the difference in units of its Poisson spread: neither the noise
    of the rarest latents nor the size of the most frequent ones decides.
    """
    a, b = fires_a.double(), fires_b.double()
    return ((b - a).abs() / (a + b + 1).sqrt()).topk(min(num, len(a))).indices


@torch.no_grad()
def top_contexts(
    sae: SparseAutoencoder,
    activations: Activations,
    latents: Tensor,
    tokenizer: Any,
    sources: list[str],
    num: int = 4,
    chunk: int = 2048,
) -> list[list[dict[str, Any]]]:
    """Return, for each latent, the contexts in which it fires most, one per document.

    A context is {"tokens", "activations", "peak", "source", "activation"}; see report/html.py.
    """
    pieces = (
        activations.slice(start, start + chunk).activations.float()
        for start in range(0, len(activations), chunk)
    )
    values = torch.cat([sae(x).latents.columns(latents) for x in pieces])
    everything = activations.slice(0, len(activations))
    return [
        _contexts(values[:, column], everything, tokenizer, sources, num)
        for column in range(len(latents))
    ]


def _contexts(
    values: Tensor, tokens: Tokens, tokenizer: Any, sources: list[str], num: int
) -> list[dict[str, Any]]:
    contexts, seen = [], set()
    for peak in torch.argsort(values, descending=True, stable=True)[: 50 * num].tolist():
        document = int(tokens.document_ids[peak])
        if values[peak] <= 0 or len(contexts) == num:
            break
        if document in seen:
            continue
        seen.add(document)
        window = range(max(0, peak - CONTEXT_TOKENS), min(len(values), peak + CONTEXT_TOKENS + 1))
        window = [i for i in window if int(tokens.document_ids[i]) == document]
        contexts.append(
            {
                "tokens": [tokenizer.decode([int(tokens.token_ids[i])]) for i in window],
                "activations": [round(float(values[i]), 4) for i in window],
                "peak": window.index(peak),
                "source": sources[document],
                "activation": float(values[peak]),
            }
        )
    return contexts
