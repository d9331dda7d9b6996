"""A callback that says, now and then, how far the dictionary is from stationary."""

from typing import Any

import lightning as L
import torch

from ssae.sae.relu import ReLUSAE
from ssae.theory.antipodal import opposite_directions
from ssae.theory.coded import Coded, coded
from ssae.theory.residual import in_span
from ssae.theory.violations import Violations
from ssae.training.lit_sae import LitSAE
from ssae.training.logger import log_metrics

NUM_BATCHES = 8
"""Batches of a look: a latent of a batch of 1024 tokens fires on too few of them alone."""
MIN_FIRES = 10


class Optimality(L.Callback):
    """Logs a cheap part of `ssae diagnose` while an SAE trains.

        train/violation_p50, _p90   quantiles over latents of `excess` (theory/violations.py), in
                                    units of lam, of E||r|| for SAEs without a penalty
        train/antipodal_pairs       pairs of living latents with d_j . d_k < -0.9
        train/shrinkage_share       of ||r||^2, in the span of the active directions

    Every `every_steps` steps the last few batches before are encoded once more; it changes nothing
    that is trained. Under DDP the numbers are those of rank 0's part of the batches; under FSDP,
    where no rank has all directions, there are none.

    Args:
        every_steps: steps from one look to the next.
    """

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self._violations: Violations | None = None

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take in a batch if a look is near; log where it is due."""
        assert isinstance(pl_module, LitSAE)
        if not trainer.is_global_zero or pl_module.device_mesh is not None:
            return
        before = -trainer.global_step % self.every_steps
        if before >= min(NUM_BATCHES, self.every_steps):
            return
        sae = pl_module.sae
        x = pl_module.input_scale * batch.activations.to(sae.b_dec.dtype)
        own = coded(x - sae.b_dec, sae(x).latents, sae.W_dec)
        if self._violations is None:
            self._violations = Violations(own.directions)
        self._violations.directions = own.directions
        self._violations.update(own)
        if before == 0:
            # Training minimises ||x - recon||^2 + l1_coefficient sum z: twice P.
            lam = float(sae.l1_coefficient) / 2 if type(sae) is ReLUSAE else 0.0
            lam *= pl_module.penalty_share(trainer.global_step)
            self._log(trainer, self._violations, lam, own)
            self._violations = None

    def _log(self, trainer: L.Trainer, violations: Violations, lam: float, own: Coded) -> None:
        found = violations.result(lam)
        counted = found.excess[(found.fires >= MIN_FIRES) & found.excess.isfinite()]
        row: dict[str, float] = {}
        if len(counted):
            p50, p90 = counted.quantile(counted.new_tensor([0.5, 0.9])).tolist()
            row = {"violation_p50": p50, "violation_p90": p90}
        living = violations.directions[found.fires > 0]
        row["antipodal_pairs"] = float(len(opposite_directions(living)))
        total = own.residual.square().sum().clamp_min(1e-300)
        row["shrinkage_share"] = float(in_span(own).square().sum() / total)
        for logger in trainer.loggers:
            log_metrics(logger, {f"train/{k}": v for k, v in row.items()}, trainer.global_step - 1)
            logger.save()
