"""What each candidate reads: its numbers, and the texts on which it is most active."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ssae.activation.reader import Activations
from ssae.artifact.store import Artifact
from ssae.labelled.base import LabelledTexts
from ssae.metric.latents import top_contexts
from ssae.probe.candidates import Judge
from ssae.probe.dictionary import Dictionary, Key
from ssae.probe.documents import NUM_SHOWN
from ssae.probe.judge import cosines
from ssae.probe.read import Directions
from ssae.probe.trial import Outcome
from ssae.report.contexts import peak_tokens
from ssae.study import Study


def sections_of(
    study: Study,
    harvested: Mapping[str, Artifact],
    groups: LabelledTexts,
    dictionaries: Mapping[Key, Dictionary],
    outcomes: Sequence[Outcome],
    judgement: Judge,
    directions: Directions,
) -> list[dict[str, Any]]:
    """Return what is known of the candidates of every SAE, the largest effect first.

    `harvested` are the activations of the documents that are shown, by hookpoint.
    """
    first = np.flatnonzero(groups.is_ambiguous)[:NUM_SHOWN]
    sources = [groups.names[group] for group in groups.group[first]]
    effects = {key: own for outcome in outcomes for key, own in outcome.effects.items()}
    sections = []
    for key, dictionary in dictionaries.items():
        own_effects = effects[key]
        mean = {latent: sum(found) / len(found) for latent, found in own_effects.items()}
        ranked = np.array(sorted(mean, key=lambda latent: -mean[latent]), dtype=np.int64)
        ablate = judgement(dictionary, ranked)
        for place, (site, own) in enumerate(
            zip(dictionary.sites, dictionary.places(ranked), strict=True)
        ):
            start = dictionary.starts[place]
            along = np.full(site.sae.d_sae, np.nan)
            if site.hookpoint in directions:
                along = cosines(site.sae.W_dec, *directions[site.hookpoint])
            contexts = top_contexts(
                site.sae.cpu(), Activations(harvested[site.hookpoint]), torch.from_numpy(own),
                study.language_model.tokenizer, sources, study.shift.num_contexts,
            )  # fmt: skip
            latents = [
                {
                    "latent": latent,
                    "ablate": bool(start + latent in ablate),
                    "effect": mean[start + latent],
                    "folds": len(own_effects[start + latent]),
                    "selectivity": float(dictionary.selectivity[start + latent]),
                    "auroc": float(dictionary.aurocs[start + latent]),
                    "cosine": None if np.isnan(along[latent]) else float(along[latent]),
                    "tokens": peak_tokens(shown),
                    "contexts": shown,
                }
                for latent, shown in zip(own.tolist(), contexts, strict=True)
            ]
            sections.append({**key._asdict(), "hookpoint": site.hookpoint, "latents": latents})
    return sections
