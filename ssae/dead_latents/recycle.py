"""Recycling: latents of a generalist that never fire in the subdomain learn something of it.

A latent that is silent on everything an arm learns from gets no gradient there but by auxk. It is
given a token that the generalist reconstructs badly, the rarest token types first; all other
latents keep their weights, so that latent j of the specialist compares with latent j of the
generalist.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.sae.base import SparseAutoencoder
from ssae.sae.sparse import SparseLatents

log = logging.getLogger(__name__)

CHUNK_TOKENS = 4096
CANDIDATE_SHARE = 0.1
"""Tokens of the largest residuals, as a share of all, that latents may be made from."""
MIN_OCCURRENCES = 5
"""Rarer token types come last: what occurs so seldom has nothing to be learnt from."""
SPARE = 4
"""Tokens to choose from for each latent."""
LEAST_RISE = 0.5
"""From where a latent begins to fire to its token, along its direction, in units of ||residual||;
0.67 is typical."""
MAX_SHARE = 0.2
"""A token is passed over whose latent would fire on a larger share of all."""
MARGIN = 1.1
"""How far above the weakest active latent of its token a new latent starts at least."""


class Pass(NamedTuple):
    """What an SAE does on all tokens."""

    fires: Tensor
    """(d_sae,) number of tokens on which each latent is active."""
    residual_sq: Tensor
    """(n,) ||x - recon||^2."""
    token_ids: Tensor
    """(n,)."""
    weakest: float
    """The smallest active latent anywhere."""


@torch.no_grad()
def recycle(
    sae: SparseAutoencoder, activations: Activations, max_firing_rate: float, device: torch.device
) -> Tensor:
    """Start the latents that never fire on `activations` anew; return which, (d_sae,) bool.

    With r = x - recon the residual of the token that a latent is made from,

        W_dec_j = r / ||r||      pre_act_j(x) = max(||r||, 1.1 of x's weakest active latent)

    and W_enc_j = slope W_dec_j, with slope and b_enc_j such that the latent fires on about as large
    a share of these tokens as other latents do. Tokens whose direction does not single them out so
    are passed over; latents for which no token is left stay as they are.

    Args:
        sae: of unscaled activations, on the CPU.
        activations: what is going to be learnt from.
        max_firing_rate: share of tokens on which a latent may fire and yet count as silent.
        device: where to compute.
    """
    training = sae.training
    sae.to(device).eval()
    seen = _pass(sae, activations, device)
    silent = seen.fires <= max_firing_rate * len(activations)
    silent[: sae.num_frozen] = False
    latents = silent.nonzero()[:, 0]
    num_silent = len(latents)
    if num_silent:
        num = SPARE * num_silent
        tokens = candidates(seen.residual_sq, seen.token_ids, activations.token_counts, num)
        starts = _starts(sae, activations, tokens, num_silent, seen)
        latents = latents[: len(starts[0])]
        sae.reset_latents(latents, *starts, activations.mean_norm / activations.d_in**0.5)
    sae.cpu().train(training)
    log.info(
        "recycled %d of %d latents that fire on at most %g of %s tokens",
        len(latents), num_silent, max_firing_rate, f"{len(activations):,}",
    )  # fmt: skip
    recycled = torch.zeros(sae.d_sae, dtype=torch.bool)
    recycled[latents.cpu()] = True
    return recycled


def candidates(residual_sq: Tensor, token_ids: Tensor, counts: Tensor, num: int) -> Tensor:
    """Return `num` tokens (fewer if there are fewer) to make latents from, the best first.

    Among the tenth of largest residual: one per token type, the rarest type of the harvest first
    and its token of largest residual; when every type has been taken, a second one of each, ...
    Types of under MIN_OCCURRENCES come after all others.

    Args:
        residual_sq: (n,) of each token.
        token_ids: (n,) its type.
        counts: (vocab_size,) occurrences of each type.
        num: how many.
    """
    num = min(num, len(residual_sq))
    pool = max(num, int(CANDIDATE_SHARE * len(residual_sq)))
    tokens = residual_sq.topk(pool).indices.sort().values
    descending = torch.argsort(residual_sq[tokens], descending=True, stable=True)
    tokens = tokens[descending]
    types = token_ids[tokens].long()
    by_type = torch.argsort(types, stable=True)
    first = torch.searchsorted(types[by_type], types[by_type])
    turn = torch.empty_like(by_type)
    turn[by_type] = torch.arange(pool) - first
    occurrences = counts[types].numpy()
    order = np.lexsort((occurrences, turn.numpy(), occurrences < MIN_OCCURRENCES))  # last key first
    return tokens[torch.from_numpy(order)[:num]]


def _pass(sae: SparseAutoencoder, activations: Activations, device: torch.device) -> Pass:
    fires = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    residual_sq, token_ids, weakest = [], [], torch.tensor(float("inf"), device=device)
    for start in track(
        range(0, len(activations), CHUNK_TOKENS), "finding silent latents", transient=True
    ):
        tokens = activations.slice(start, start + CHUNK_TOKENS)
        token_ids.append(tokens.token_ids)
        x = tokens.activations.to(device).float()
        out = sae(x)
        fires += out.latents.fire_counts()
        residual_sq.append((x - out.recon).square().sum(1).cpu())
        weakest = torch.minimum(weakest, _weakest(out.latents).amin())
    smallest = float(weakest) if weakest.isfinite() else 0.0
    return Pass(fires, torch.cat(residual_sq), torch.cat(token_ids), smallest)


def _weakest(latents: SparseLatents) -> Tensor:
    """Return the smallest active latent (n,) of each token; infinity where none is active."""
    active, values = latents
    infinity = torch.full((active.num_tokens,), float("inf"), device=values.device)
    positive = torch.where(values > 0, values, float("inf"))
    return infinity.scatter_reduce(0, active.tokens, positive.to(infinity), "amin")


def _starts(
    sae: SparseAutoencoder, activations: Activations, tokens: Tensor, num: int, seen: Pass
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (directions, slopes, b_enc) of up to `num` latents, each made from one of `tokens`."""
    device = seen.fires.device
    rate = float(seen.fires.sum()) / len(activations) / sae.d_sae
    rank = max(1, round(rate * CHUNK_TOKENS))
    sample = torch.linspace(0, len(activations) - 1, CHUNK_TOKENS, dtype=torch.float64).long()
    others = sae.encoder_input(activations.rows(sample).activations.to(device).float())
    found, starts = 0, []
    for some in tokens.split(CHUNK_TOKENS):
        x = activations.rows(some).activations.to(device).float()
        out = sae(x)
        residual = x - out.recon
        length = torch.linalg.vector_norm(residual, dim=1)
        directions = residual / length[:, None].clamp_min(1e-12)
        cut = _weakest(out.latents)
        cut = torch.where(cut.isfinite(), cut, seen.weakest)
        wanted = torch.maximum(length, MARGIN * cut)
        here = (sae.encoder_input(x) * directions).sum(1)
        # The latent begins to fire at what `rank` of the sampled tokens exceed, unless its own
        # token exceeds that by so little that it would fire steeply, on noise: then earlier.
        projected = others @ directions.T
        there = projected.topk(rank, dim=0).values[-1]
        there = torch.minimum(there, here - LEAST_RISE * length)
        slopes = wanted / (here - there).clamp_min(1e-12)
        fit = (projected > there).float().mean(0) <= MAX_SHARE
        starts.append([t[fit] for t in (directions, slopes, wanted - slopes * here)])
        found += int(fit.sum())
        if found >= num:
            break
    directions, slopes, b_enc = (torch.cat(parts)[:num] for parts in zip(*starts, strict=True))
    return directions, slopes, b_enc
