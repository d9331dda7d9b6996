"""The latents in which the studied arm and the arm it started from differ most, with contexts."""

from typing import TYPE_CHECKING, Any

import datasets
import torch

from ssae.activation.reader import Activations
from ssae.metric.latents import most_different, top_contexts
from ssae.sae.base import SparseAutoencoder

if TYPE_CHECKING:
    from ssae.study import Study

NUM_DIFFERING = 10


def differing_latents(
    study: "Study",
    saes: dict[str, SparseAutoencoder],
    fires: dict[str, torch.Tensor],
    activations: Activations,
    documents: datasets.Dataset,
    recycled: torch.Tensor,
) -> list[dict[str, Any]]:
    """Return the latents in which the studied arm and the arm it started from differ most.

    Empty when the arm did not start from an arm: then latent j of one is not latent j of the other.
    The same goes for latents whose `origin` is not "kept": "recycled" ones were started anew, and
    "extra" ones (start=residual) have no counterpart.
    """
    after = study.arm
    before = study.arms[after].init_from
    if before is None or before not in saes:
        return []
    num_old = saes[before].d_sae
    padded = torch.zeros_like(fires[after])
    padded[:num_old] = fires[before]
    fires = {before: padded, after: fires[after]}
    chosen = most_different(padded, fires[after], NUM_DIFFERING)
    tokenizer, sources = study.language_model.tokenizer, list(documents["source"])
    contexts: dict[str, dict[int, Any]] = {}
    for name in (before, after):
        known = chosen[chosen < saes[name].d_sae]
        found = top_contexts(saes[name].cpu(), activations, known, tokenizer, sources)
        contexts[name] = dict(zip(known.tolist(), found, strict=True))
    old_directions, directions = (saes[name].W_dec.detach() for name in (before, after))
    rows = []
    for latent in chosen.tolist():
        counts = {name: int(fires[name][latent]) for name in (before, after)}
        ratio = torch.tensor((counts[after] + 0.5) / (counts[before] + 0.5)).log()
        cosine, origin = None, "extra"
        if latent < num_old:
            pair = old_directions[latent], directions[latent]
            cosine = float(torch.cosine_similarity(*pair, dim=0))
            origin = "recycled" if latent < len(recycled) and recycled[latent] else "kept"
        rows.append(
            {
                "latent": latent,
                "origin": origin,
                "log_ratio": float(ratio),
                "decoder_cosine": cosine,
                "firing_rates": {name: n / len(activations) for name, n in counts.items()},
                "contexts": {name: contexts[name].get(latent, []) for name in (before, after)},
            }
        )
    return rows
