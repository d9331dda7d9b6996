"""Polish a trained SAE: alternate what P's optimum asks for, choose the best round.

One round, from the SAE as it is:

    codes        the best ones for its directions: of the nonnegative lasso at lam for a ReLU SAE
                 (active_codes.py), nonnegative least squares on the SAE's own active set for all
                 others, which choose their latents and pay nothing for z: lam = 0
    directions   each turns to its minimiser for these codes, as far as the tokens tell (turning.py)
    encoder      learns to give good codes for the new directions (refit.py)

b_dec stays: every token of training has pulled on it, these few would only add noise, and the
encoder reads x - b_dec. Codes start from the encoder's, which has just been fitted, and not from
those of the round before: fewer growths, and nothing of size (n, d_sae) is kept.

A gated SAE prices its gate, not z: the median of d_j . r on active pairs is about 0, and it counts
among those that choose.

Rounds are compared by the objective on other tokens with the SAE's *own* encoder, P's (with the
mean error over prefixes, for Matryoshka). The best one is returned; if none is better than the SAE
itself, that is what is returned, the same object. The best of a few is better than it is: by how
much it helps, only tokens tell that chose nothing.
"""

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.theory.active_codes import CHUNK_TOKENS, best_codes, encoded
from ssae.theory.coded import check_lam
from ssae.theory.penalty import PRICED
from ssae.theory.refit import hold_l0, refit_encoder
from ssae.theory.turning import Statistics, statistics_of, total, turned

L0_SLACK = 1.01
"""By which l0 may rise without a price on z: thresholds are held on training tokens."""

Progress = Callable[[float, str], None]
"""Is told how many rounds are done, and what is being done."""


class Score(NamedTuple):
    """An SAE with its own encoder, token by token, float64."""

    cost: Tensor
    """(n,) 1/2 error_i + lam sum_j z_ij ||W_dec_j||."""
    residual_sq: Tensor
    """(n,) ||x_i - recon_i||^2."""
    deviation_sq: Tensor
    """(n,) ||x_i - mu||^2, mu the mean of these tokens."""
    active: Tensor
    """(n,) active latents."""

    @property
    def objective(self) -> float:
        """Mean cost."""
        return float(self.cost.mean())

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return float(self.residual_sq.sum() / self.deviation_sq.sum())

    @property
    def l0(self) -> float:
        """Active latents per token."""
        return float(self.active.mean())


class Round(NamedTuple):
    """One round."""

    number: int
    """From 1."""
    codes_objective: float
    """On the tokens learnt from, with the best codes for the directions before."""
    turned_objective: float
    """With the same codes, and the directions turned."""
    objective: float
    """On the tokens that choose, with the refitted encoder; fvu and l0 likewise."""
    fvu: float
    l0: float
    helps: bool
    """Whether it is better than all before."""


class Polished(NamedTuple):
    """What polishing gave."""

    sae: SparseAutoencoder
    """The best one; the one that was given, if nothing is better."""
    before: Score
    """On the tokens that choose."""
    after: Score
    rounds: list[Round]

    @property
    def num_rounds(self) -> int:
        """Rounds that made `sae`; 0: it is the one that was given."""
        return max((r.number for r in self.rounds if r.helps), default=0)


def polish_sae(
    sae: SparseAutoencoder,
    x: Tensor,
    choosing: Tensor,
    lam: float,
    *,
    rounds: int,
    encoder_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    progress: Progress = lambda rounds, what: None,
) -> Polished:
    """Return the SAE after the best of some rounds; see the module.

    Args:
        sae: any architecture but residual, on the CPU; it is not changed.
        x: (n, d_in) activations that are learnt from.
        choosing: (m, d_in) others, which alone decide which round is the best.
        lam: price of a unit of z, in units of x; 0 for all but ReLU SAEs.
        rounds: at most; the first that does not help is the last.
        encoder_steps: of Adam in each.
        batch_size: tokens of such a step.
        lr: of Adam, for activations of mean norm sqrt(d_in).
        seed: of the order of tokens.
        progress: see `Progress`.

    Raises:
        ValueError: the SAE cannot be polished, or the price does not fit it.
    """
    check_polishable(sae.architecture, lam)
    x, choosing = x.float(), choosing.float()
    before = best = score(sae, choosing, lam)
    l0 = score(sae, x[: 4 * CHUNK_TOKENS], lam).l0
    chosen, current, done = sae, copy.deepcopy(sae), []
    current.fold_decoder_norms()
    for number in range(1, rounds + 1):
        tell = functools.partial(_tell, progress, number)
        before_turn, after_turn = _turn(current, x, lam, tell)
        refit_encoder(
            current, x, lam, l0, num_steps=encoder_steps, batch_size=batch_size, lr=lr,
            seed=seed + number, progress=functools.partial(tell, "encoder", 0.5),
        )  # fmt: skip
        hold_l0(current, x, l0)
        own = score(current, choosing, lam)
        helps = holds_l0(before.l0, own.l0, lam) and own.objective < best.objective
        numbers = own.objective, own.fvu, own.l0
        done.append(Round(number, before_turn, after_turn, *numbers, helps))
        if not helps:
            break
        chosen, best = copy.deepcopy(current), own
    return Polished(chosen, before, best, done)


def holds_l0(before: float, after: float, lam: float) -> bool:
    """Return whether l0 has not risen, or is paid for."""
    return lam > 0 or after <= L0_SLACK * before


def check_polishable(architecture: str, lam: float) -> None:
    """Refuse what cannot be polished.

    Raises:
        ValueError: part of the SAE is frozen, or it has no price on z and lam is one.
    """
    if architecture == "residual":
        raise ValueError(
            "a residual SAE cannot be polished: the generalist in it is frozen; polish that before "
            "training the extra latents, e.g. arm=generalist"
        )
    if check_lam(lam) > 0 and architecture not in PRICED:
        raise ValueError(
            f"lam is the price of a unit of z; a {architecture} SAE chooses its latents and pays "
            f"none, got {lam}; set polish.lam=null"
        )


@torch.no_grad()
def score(sae: SparseAutoencoder, x: Tensor, lam: float) -> Score:
    """Return what an SAE with its own encoder makes of tokens x (n, d_in)."""
    norms = sae.W_dec.norm(dim=1)
    parts = []
    for piece in x.split(CHUNK_TOKENS):
        out = sae.eval()(piece)
        active, values = out.latents
        residual_sq = (piece - out.recon).double().square().sum(1)
        errors = residual_sq if out.prefix_recons is None else sae.errors(piece, out).double()
        price = lam * active.sum_per_token(values * active.take(norms)).double()
        parts.append((errors / 2 + price, residual_sq, out.latents.num_active().double()))
    cost, residual_sq, active = (torch.cat(column) for column in zip(*parts, strict=True))
    deviation_sq = (x.double() - x.double().mean(0)).square().sum(1)
    return Score(cost, residual_sq, deviation_sq, active)


def _tell(progress: Progress, number: int, what: str, start: float, share: float) -> None:
    """Say that `share` of a half of a round is done."""
    progress(number - 1 + start + share / 2, f"round {number}: {what}")


def _turn(
    sae: SparseAutoencoder, x: Tensor, lam: float, tell: Callable[[str, float, float], None]
) -> tuple[float, float]:
    """Turn the directions in place; return the objective of the best codes before and after."""
    statistics = _statistics(sae, x, lam, functools.partial(tell, "codes", 0.0))
    D = sae.W_dec.detach().double().numpy()
    found = turned(statistics, D, statistics.shares(D))
    alive = torch.from_numpy(statistics.alive)
    with torch.no_grad():
        # The encoder turns along: what a latent read off its direction, it reads off the new one.
        change = torch.from_numpy(found - D).float()[alive]
        along = (sae.W_enc_T[alive] * sae.W_dec[alive]).sum(1, keepdim=True)
        sae.W_enc_T[alive] += along * change
        sae.W_dec[alive] = torch.from_numpy(found).float()[alive]
    return statistics.objective(D), statistics.objective(found)


def _statistics(
    sae: SparseAutoencoder, x: Tensor, lam: float, progress: Callable[[float], None]
) -> Statistics:
    """Return the statistics of the best codes of all tokens."""
    ends = [sae.d_sae]
    if isinstance(sae, MatryoshkaSAE):
        ends = torch.tensor(sae.group_sizes).cumsum(0).tolist()
    D = torch.nn.functional.normalize(sae.W_dec.detach())
    grows = sae.architecture in PRICED and lam > 0
    parts, done = [], 0
    for piece, z in encoded(sae, x):
        z = best_codes(piece, z, D, lam, ends, grows=grows)
        parts.append(statistics_of(piece, z, D, lam, ends))
        done += len(piece)
        progress(done / len(x))
    return total(parts)
