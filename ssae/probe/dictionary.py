"""The SAEs of one arm, at one width and seed, as `ssae shift` uses them."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ssae.activation.rows import Batch, Rows
from ssae.artifact.store import Artifact
from ssae.language_model.frozen import LanguageModel
from ssae.probe.represent import Edit, Site, represent
from ssae.study import Study
from ssae.train import train


class Key(NamedTuple):
    """Which SAEs: all hookpoints of an arm."""

    arm: str
    width: float
    """Share of sae.d_sae."""
    seed: int


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """The SAEs of all hookpoints; their latents are numbered through, site after site.

    Args:
        key: which they are.
        hookpoint: where the probe reads.
        sites: SAEs that read there or before.
        latents: (n, num_latents) pooled latents of the documents.
        selectivity: (num_latents,) see judge.py.
        aurocs: (num_latents,) likewise.
    """

    key: Key
    hookpoint: str
    sites: Sequence[Site]
    latents: sparse.csr_array
    selectivity: np.ndarray
    aurocs: np.ndarray

    @property
    def is_linear(self) -> bool:
        """Whether ablating is arithmetic: every SAE reads where the probe does."""
        return all(site.hookpoint == self.hookpoint for site in self.sites)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """(num_sites + 1,) number of the first latent of each site."""
        return np.cumsum([0, *(site.sae.d_sae for site in self.sites)])

    def places(self, latents: np.ndarray) -> list[np.ndarray]:
        """Return the latents of each site, by their numbers within it."""
        bounds = zip(self.starts[:-1], self.starts[1:], strict=True)
        return [latents[(latents >= low) & (latents < high)] - low for low, high in bounds]

    @functools.cached_property
    def W_dec(self) -> Tensor:
        """(num_latents, d_in) where every SAE reads at one hookpoint, float64."""
        return torch.cat([site.sae.W_dec.detach().double().cpu() for site in self.sites])

    def ablate(
        self,
        lm: LanguageModel,
        rows: Rows,
        x: Tensor,
        latents: np.ndarray,
        batch_tokens: int,
        documents: np.ndarray | None = None,
    ) -> Tensor:
        """Return pooled activations (n, d_in) with some latents at 0 and the errors kept.

            x' = x - sum_{j in latents} z_j W_dec[j]      at every token of text

        which is decode(z with those at 0) + (x - recon). Where every SAE reads where the probe
        does, the same holds of pooled activations and latents, and no model runs; else it does,
        with the SAEs that lose a latent.

        Args:
            lm: the model.
            rows: of the documents.
            x: (n, d_in) their pooled activations.
            latents: numbers, all sites together.
            batch_tokens: of a forward pass.
            documents: that are needed, where the model runs; those of others may be anything.
        """
        if not len(latents):
            return x
        if self.is_linear:
            values = torch.from_numpy(self.latents[:, latents].toarray()).double()
            return (x.double() - values @ self.W_dec[latents]).float()
        edits = {
            site.hookpoint: zero_latents(site, chosen)
            for site, chosen in zip(self.sites, self.places(latents), strict=True)
            if len(chosen)
        }
        return represent(
            lm, rows, self.hookpoint, batch_tokens, edits, "reading, ablated", documents
        )


def zero_latents(site: Site, latents: np.ndarray) -> Edit:
    """Return the edit that takes latents of one SAE out of the activations of text."""
    chosen = torch.from_numpy(latents)

    @torch.no_grad()
    def edit(x: Tensor, batch: Batch) -> Tensor:
        text = batch.text.to(x.device)
        own = x[text].float()
        numbers = chosen.to(x.device)
        lost = site.sae(own).latents.columns(numbers) @ site.sae.W_dec[numbers]
        x = x.clone()
        x[text] = (own - lost).to(x)
        return x

    return edit


def train_dictionary(study: Study, key: Key, hookpoint: str) -> Artifact:
    """Return the trained SAE of one arm, width, seed and hookpoint."""
    return train(narrowed(study, key, hookpoint), key.arm)


def narrowed(study: Study, key: Key, hookpoint: str, others: Sequence[str] = ()) -> Study:
    """Return the study with the key's seed and width, at one hookpoint.

    "{hookpoint}" in the init_from of an arm stands for the hookpoint: a folder of SAEs of all
    layers. Retrieved and random documents are those of the study's own seed. `others` are
    hookpoints to harvest with it.

    Raises:
        ValueError: the arm takes a saved SAE, which has the width it has.
    """
    arms = {}
    for name, arm in study.arms.items():
        init = arm.init_from
        if init is not None and init not in study.arms:
            init = init.replace("{hookpoint}", hookpoint)
            if key.width != 1 and name in (key.arm, study.arms[key.arm].init_from):
                raise ValueError(
                    f"arms.{name} starts from the saved SAE {init}, which cannot be trained at "
                    f"{key.width:g} of its width; set shift.widths=[1]"
                )
        arms[name] = dataclasses.replace(arm, init_from=init)
    label = f"{hookpoint}_width{key.width:g}_seed{key.seed}"
    sae, extra = study.sae, study.extra_sae
    if key.width != 1:
        sae = functools.partial(sae.func, **_scaled(sae.keywords, key.width))
        if extra is not None:
            extra = functools.partial(extra.func, **_scaled(extra.keywords, key.width))
    return dataclasses.replace(
        study, seed=key.seed, hookpoint=hookpoint, hookpoints=list(others) or None, sae=sae,
        extra_sae=extra, arms=arms, run_dir=Path(study.run_dir) / "arms" / label,
    )  # fmt: skip


def _scaled(keywords: dict[str, Any], width: float) -> dict[str, Any]:
    """Return an SAE's arguments with counts of latents at a share of the width."""
    d_sae = max(keywords.get("k", 1), round(keywords["d_sae"] * width))
    scaled = {**keywords, "d_sae": d_sae}
    if keywords.get("group_sizes"):
        sizes = [max(1, round(size * width)) for size in keywords["group_sizes"]]
        scaled["group_sizes"] = [*sizes[:-1], d_sae - sum(sizes[:-1])]
    return scaled
