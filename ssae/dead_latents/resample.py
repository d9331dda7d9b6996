"""Resampling of dead latents in training (Bricken et al. 2023, appendix "Neuron resampling")."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ssae.arm import Training
from ssae.dead_latents.silence import DeadLatents
from ssae.process.fsdp import give_back, set_rows
from ssae.process.ranks import all_gather, all_reduce, rank
from ssae.sae.base import SAEOutput, SparseAutoencoder

ENCODER_SHARE = 0.2
"""Norm of a resampled encoder row, in units of the mean norm of those of living latents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampler:
    """Starts dead latents anew at tokens of the current global batch.

        P(token i) ~ error_i^2                        without replacement: no two latents alike
        W_dec_j = (x_i - b_dec) / ||x_i - b_dec||     W_enc_j = 0.2 mean_living||W_enc|| W_dec_j
        pre_act_j(b_dec) = 0                          (b_enc_j = 0 if the SAE subtracts b_dec)

    Latents that learn a generalist's residual take that in place of x_i - b_dec. What is drawn is a
    function of the seed, the step, the weights and the batch, so that a resumed run repeats it, and
    the same on every rank.

    The recipe is for penalties: a top k lets few latents with so small an encoder through (two in
    three died again in a test with k 8 of 8192), there auxk is the better remedy.

    Args:
        every_steps: how often.
        last_step: none later, so that what is new has time to settle.
        seed: of the draws.
    """

    every_steps: int
    last_step: int
    seed: int

    def is_due(self, step: int) -> bool:
        """Whether the training step number `step`, from 0, begins with resampling."""
        return 0 < step <= self.last_step and step % self.every_steps == 0

    @torch.no_grad()
    def resample(
        self,
        sae: SparseAutoencoder,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        dead_latents: DeadLatents,
        step: int,
    ) -> int:
        """Resample the dead latents, forget their optimiser state; return how many they were.

        With more dead latents than tokens to draw, the first of them.

        Args:
            sae: is changed in place.
            optimizer: state tensors shaped like a parameter lose the latents' rows.
            x: (n, d_in) this rank's batch; every rank must call.
            dead_latents: the latents count as having just fired.
            step: of the run.
        """
        dead = dead_latents.dead.nonzero()[:, 0]
        if not len(dead):
            return 0
        out = sae(x)
        chosen = self._draw(all_gather(sae.errors(x, out)), len(dead), step).to(dead.device)
        dead = dead[: len(chosen)]
        rows = _rows_of_all_ranks(_wanted(sae, x, out), chosen)
        directions = torch.nn.functional.normalize(rows, dim=1)
        living = torch.ones(sae.d_sae, dtype=torch.bool, device=dead.device)
        living[dead] = False
        norms = torch.linalg.vector_norm(sae.W_enc_T, dim=1)
        scale = ENCODER_SHARE * (norms[living] if living.any() else norms).mean()
        b_enc = -scale * (directions @ sae.encoder_input(sae.b_dec[None])[0])
        give_back(sae)  # what is changed is what each rank keeps
        sae.reset_latents(dead, directions, scale, b_enc, 1.0)
        _forget(sae, optimizer, dead - sae.num_frozen)
        dead_latents.restart(dead)
        return len(dead)

    def _draw(self, errors: Tensor, num: int, step: int) -> Tensor:
        """Return up to `num` distinct tokens of the global batch."""
        weights = errors.double().cpu().square()
        mixed = (self.seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 1) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        num = min(num, int(weights.count_nonzero()))
        if not num:
            return torch.empty(0, dtype=torch.int64)
        return torch.multinomial(weights, num, replacement=False, generator=generator)


def resampler(training: Training, num_steps: int, seed: int) -> Resampler | None:
    """Return what resamples in a run of `num_steps` steps, or None."""
    every = training.resample_every_steps
    if every is None:
        return None
    last = round(training.resample_share * num_steps)
    return Resampler(every_steps=every, last_step=last, seed=seed)


def _wanted(sae: SparseAutoencoder, x: Tensor, out: SAEOutput) -> Tensor:
    """Return (n, d_in) what the trained latents are there to reconstruct, less their mean."""
    if out.extra is None:
        return x - sae.b_dec
    return x - (out.recon - out.extra.recon)


def _rows_of_all_ranks(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return rows `chosen` of the global batch, of which rank r holds the r-th slice."""
    local = chosen - rank() * len(rows)
    mine = (local >= 0) & (local < len(rows))
    found = rows.new_zeros(len(chosen), rows.shape[1])
    found[mine] = rows[local[mine]]
    return all_reduce(found)


def _forget(sae: SparseAutoencoder, optimizer: torch.optim.Optimizer, latents: Tensor) -> None:
    """Zero the optimiser state of latents: rows of every trained parameter but b_dec."""
    for name, parameter in sae.named_parameters():
        if name.rpartition(".")[2] == "b_dec":
            continue
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        for value in state.values():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                set_rows(value, latents, 0)
