"""Everything that is said of one SAE on one test split, in one pass over its activations."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.diagnosis.risk import Risk
from ssae.diagnosis.settings import Diagnose
from ssae.metric.represented import RepresentedTypes, TypesFound
from ssae.sae.base import SparseAutoencoder
from ssae.theory.antipodal import AntipodalPair, pairs_of
from ssae.theory.coded import Coded, coded_by
from ssae.theory.cone import Cone, cone_condition
from ssae.theory.pairs import PairIdentity, pair_identity
from ssae.theory.penalty import Penalty, penalty_of
from ssae.theory.residual import ResidualStructure, ResidualSums
from ssae.theory.violations import Stationarity, Violations

BATCH = 4096
MAX_PARTNERS = 64
NUM_IDENTITY = 256
"""Latents whose identity with others is looked at."""


class Types(NamedTuple):
    """What is known of token types."""

    log_frequency: Tensor
    """(vocab_size,) log10 of how often each occurs per million in the pool."""
    tail: np.ndarray
    """(num_tail,) the rare ones of the split (metric/tail.py)."""


class Sample(NamedTuple):
    """Evenly spaced tokens of a split with their codes."""

    batch: Coded
    token_ids: Tensor
    """(n,) on the CPU."""


class Diagnosis(NamedTuple):
    """What is said of one SAE on one split."""

    penalty: Penalty
    stationarity: Stationarity
    own_risk: Stationarity | None
    """Under the weights of its own objective, where that is not the plain mean."""
    residual: ResidualStructure
    pairs: list[AntipodalPair]
    identity: PairIdentity | None
    """Of latents and those of the nearest and the most opposite direction; with a price alone."""
    cones: list[Cone]
    rarity: np.ndarray
    """(d_sae,) mean log10 of how often a latent's tokens occur per million of the pool."""
    finds_tail: np.ndarray
    """(d_sae,) whether the latent represents a rare type, F1 >= 0.5 (metric/represented.py)."""
    fvu: float
    l0: float
    num_tokens: int
    sample: Sample


@torch.no_grad()
def diagnose_split(
    sae: SparseAutoencoder,
    activations: Activations,
    types: Types,
    settings: Diagnose,
    input_scale: float | None,
    risk: Risk | None,
) -> Diagnosis:
    """Return what the theory says of an SAE on a split.

    Args:
        sae: on the device that is to be used.
        activations: of the split.
        types: of tokens.
        settings: what is looked at.
        input_scale: by which training scaled activations, if that is known.
        risk: what training minimised, if that is not the plain mean.

    Raises:
        ValueError: no latent fires on the split.
    """
    device = sae.b_dec.device
    sample = _sample(sae, activations, settings.sample_tokens)
    directions = sample.batch.directions
    penalty = penalty_of(sae, sample.batch, input_scale)
    violations, weighted = Violations(directions), Violations(directions)
    residual = ResidualSums(sae.d_in, len(types.log_frequency), device)
    represented = RepresentedTypes(sae.d_sae, len(types.log_frequency))
    rarity = directions.new_zeros(len(directions))
    active = residual_sq = 0.0
    for start in range(0, len(activations), BATCH):
        tokens = activations.slice(start, start + BATCH)
        batch = coded_by(sae, tokens.activations.to(device))
        ids = tokens.token_ids.long()
        violations.update(batch, documents=tokens.document_ids)
        if risk is not None:
            weights = risk.weights(batch, tokens, penalty.lam)
            weighted.update(batch, weights, tokens.document_ids)
        residual.update(batch, tokens.document_ids.to(device) % 2 == 1, ids.to(device))
        represented.update(batch.z, ids, tokens.document_ids)
        logs = types.log_frequency[ids].to(batch.x)
        rarity += batch.masses(batch.z.values * logs[batch.z.active.tokens])
        active += float(batch.z.num_active().sum())
        residual_sq += float(batch.residual.square().sum())
    stationarity = violations.result(penalty.lam)
    chosen = spread_over(stationarity.fires, settings.cone_latents, settings.min_fires)
    return Diagnosis(
        penalty=penalty,
        stationarity=stationarity,
        own_risk=None if risk is None else weighted.result(penalty.lam),
        residual=residual.result(),
        pairs=pairs_of(sample.batch),
        identity=_identity(sample.batch, penalty.lam, settings.min_fires),
        cones=cone_condition(
            sample.batch.z, directions, latents=chosen, max_partners=MAX_PARTNERS,
            min_fires=settings.min_fires,
        ),
        rarity=(rarity / violations.columns[0]).cpu().numpy(),
        finds_tail=_finders(represented.compute(), types.tail, sae.d_sae),
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


def _identity(batch: Coded, lam: float, min_fires: int) -> PairIdentity | None:
    """Return the identity of NUM_IDENTITY latents with two others each."""
    chosen = torch.tensor(spread_over(batch.z.fire_counts(), NUM_IDENTITY, min_fires))
    if not lam > 0 or not len(chosen):
        return None
    chosen = chosen.to(batch.x.device)
    cosines = batch.directions[chosen] @ batch.directions.T
    cosines[torch.arange(len(chosen)), chosen] = torch.nan
    others = (cosines.nan_to_num(-2).argmax(1), cosines.nan_to_num(2).argmin(1))
    return pair_identity(batch, torch.cat([torch.stack([chosen, k], 1) for k in others]), lam)


def _finders(found: TypesFound, tail: np.ndarray, d_sae: int) -> np.ndarray:
    """Return which latents (d_sae,) represent one of the types of the tail."""
    mask = np.zeros(d_sae, bool)
    mask[found.best_latent[tail[found.represented[tail]]]] = True
    return mask
