"""Everything that is said of one SAE on one test split, in one pass over its activations."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.diagnosis.settings import Diagnose
from ssae.sae.base import SparseAutoencoder
from ssae.theory.antipodal import AntipodalPair, pairs_of
from ssae.theory.coded import Coded, coded_by
from ssae.theory.cone import Cone, cone_condition
from ssae.theory.penalty import Penalty, penalty_of
from ssae.theory.residual import ResidualStructure, ResidualSums
from ssae.theory.violations import Stationarity, Violations

BATCH = 4096
MAX_PARTNERS = 64


class Sample(NamedTuple):
    """Evenly spaced tokens of a split with their codes."""

    batch: Coded
    token_ids: Tensor
    """(n,) on the CPU."""


class Diagnosis(NamedTuple):
    """What is said of one SAE on one split."""

    penalty: Penalty
    stationarity: Stationarity
    residual: ResidualStructure
    pairs: list[AntipodalPair]
    cones: list[Cone]
    rarity: np.ndarray
    """(d_sae,) mean log10 of how often a latent's tokens occur per million of the pool."""
    fvu: float
    l0: float
    num_tokens: int
    sample: Sample


@torch.no_grad()
def diagnose_split(
    sae: SparseAutoencoder,
    activations: Activations,
    log_frequency: Tensor,
    settings: Diagnose,
    input_scale: float | None,
) -> Diagnosis:
    """Return what the theory says of an SAE on a split.

    Args:
        sae: on the device that is to be used.
        activations: of the split.
        log_frequency: (vocab_size,) log10 of how often each type occurs per million in the pool.
        settings: what is looked at.
        input_scale: by which training scaled activations, if that is known.

    Raises:
        ValueError: no latent fires on the split.
    """
    device = sae.b_dec.device
    sample = _sample(sae, activations, settings.sample_tokens)
    directions = sample.batch.directions
    violations = Violations(directions)
    residual = ResidualSums(sae.d_in, len(log_frequency), device)
    rarity = directions.new_zeros(len(directions))
    active = residual_sq = 0.0
    for start in range(0, len(activations), BATCH):
        tokens = activations.slice(start, start + BATCH)
        batch = coded_by(sae, tokens.activations.to(device))
        ids = tokens.token_ids.long()
        violations.update(batch, documents=tokens.document_ids)
        residual.update(batch, tokens.document_ids.to(device) % 2 == 1, ids.to(device))
        logs = log_frequency[ids].to(batch.x)
        rarity += batch.masses(batch.z.values * logs[batch.z.active.tokens])
        active += float(batch.z.num_active().sum())
        residual_sq += float(batch.residual.square().sum())
    penalty = penalty_of(sae, sample.batch, input_scale)
    stationarity = violations.result(penalty.lam)
    chosen = spread_over(stationarity.fires, settings.cone_latents, settings.min_fires)
    return Diagnosis(
        penalty=penalty,
        stationarity=stationarity,
        residual=residual.result(),
        pairs=pairs_of(sample.batch),
        cones=cone_condition(
            sample.batch.z, directions, latents=chosen, max_partners=MAX_PARTNERS,
            min_fires=settings.min_fires,
        ),
        rarity=(rarity / violations.columns[0]).cpu().numpy(),
        fvu=residual_sq / len(activations) / activations.variance,
        l0=active / len(activations),
        num_tokens=len(activations),
        sample=sample,
    )  # fmt: skip


def spread_over(fires: Tensor, num: int, min_fires: int) -> list[int]:
    """Return `num` latents from the rarest to the most frequent, evenly spaced among them.

    Args:
        fires: (d_sae,) tokens on which each fires.
        num: how many; all where there are no more.
        min_fires: on which a latent must fire.
    """
    order = torch.argsort(fires, stable=True)
    order = order[fires[order] >= min_fires].cpu()
    if len(order) > num:
        order = order[torch.linspace(0, len(order) - 1, num).round().long()] if num else order[:0]
    return order.tolist()


def _sample(sae: SparseAutoencoder, activations: Activations, num_tokens: int) -> Sample:
    every = -(-len(activations) // num_tokens)
    tokens = activations.rows(torch.arange(0, len(activations), every))
    batch = coded_by(sae, tokens.activations.to(sae.b_dec.device))
    return Sample(batch, tokens.token_ids.long())
