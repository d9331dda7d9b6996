"""LitSAE: an SAE, its objective, its optimiser and what is logged, as one LightningModule."""

import functools
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ssae.activation.shards import Tokens
from ssae.dead_latents.resample import Resampler
from ssae.dead_latents.silence import DeadLatents
from ssae.objective.base import Losses, Memory, Objective
from ssae.process.fsdp import check_dtypes, gathered, share_out
from ssae.process.ranks import all_reduce, world_size
from ssae.sae.base import SAEOutput, SparseAutoencoder
from ssae.sae.scores import fast_dtype
from ssae.training import divergence
from ssae.training.logger import log_metrics
from ssae.training.narrow import NarrowWeights
from ssae.training.optimizer import make_optimizer


class LitSAE(L.LightningModule):
    """One training step: forward, objective, log.

        x      = input_scale * activations           mean norm sqrt(d_in)
        loss_i = (error_i + penalty_i) / variance   error_i = ||x_i - recon_i||^2 for most SAEs
        loss   = objective(losses) + auxk_coefficient * auxk

    The SAE learns on scaled activations so that one learning rate serves every model;
    `finished_sae` folds the scale back into its biases.

    Args:
        sae: an SAE of unscaled activations.
        objective: reduces per-token losses.
        optimizer: partial that takes parameters and lr.
        lr: peak learning rate.
        warmup_steps: linear rise.
        decay_share: linear fall to 0 over this share of `num_steps`, at the end.
        num_steps: length of the run.
        mean_norm: E||activation||.
        variance: E||activation - mean||^2.
        dead_after_tokens: silence that counts as death.
        sparsity_warmup_steps: the penalty rises linearly from 0 over these steps.
        screening: precision in which active latents are searched (sae/screen.py).
        resampler: starts dead latents anew; None: auxk alone revives them.
        memory: the objective's; None for one that does not ask for counts of the text.
    """

    num_resampled: Tensor
    """() int64: latents, since the last log."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        objective: Objective,
        *,
        optimizer: functools.partial[Any],
        lr: float,
        warmup_steps: int,
        decay_share: float,
        num_steps: int,
        mean_norm: float,
        variance: float,
        dead_after_tokens: int,
        sparsity_warmup_steps: int,
        screening: str,
        resampler: Resampler | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        self.sae, self.objective = sae, objective
        self.memory = objective.memory(None) if memory is None else memory
        self.optimizer, self.lr = optimizer, lr
        self.warmup_steps, self.num_steps = warmup_steps, num_steps
        self.sparsity_warmup_steps, self.screening = sparsity_warmup_steps, screening
        self.decay_steps = max(1, round(decay_share * num_steps))
        self.input_scale = sae.d_in**0.5 / mean_norm
        self.variance = variance * self.input_scale**2
        self.dead_latents = DeadLatents(sae.d_sae, dead_after_tokens, sae.num_frozen)
        self.resampler = resampler
        self.register_buffer("num_resampled", torch.zeros((), dtype=torch.int64))
        sae.rescale_input(self.input_scale)
        self._last_log = 0, time.perf_counter()
        self.last_row: dict[str, float] = {}

    def configure_model(self) -> None:
        """Share the weights out over the ranks, under a strategy that wants it (fsdp.py)."""
        if self.device_mesh is not None:
            share_out(self.sae, self.device_mesh)

    def training_step(self, batch: Tokens, step: int) -> Tensor:
        """Return the loss of one batch."""
        x = self.input_scale * batch.activations.to(self.sae.b_dec.dtype)
        self._resample(x)
        loss, out, logged = self.loss(x, batch)
        self._log(loss.detach(), x, out, logged)
        return loss

    def loss(
        self, x: Tensor, tokens: Tokens | None = None
    ) -> tuple[Tensor, SAEOutput, dict[str, Tensor]]:
        """Return (loss, output, what to log), and count who fired.

        Args:
            x: (n, d_in), scaled.
            tokens: where x comes from, for objectives over groups.

        Raises:
            ValueError: the loss is not finite, on this rank or another.
        """
        out = self.sae(x)
        losses = self._losses(x, out, tokens)
        loss, logged = self.objective(losses, self.memory)
        is_dead = self.dead_latents.dead  # before this batch
        has_failed = self.dead_latents.update(out.latents, ~torch.isfinite(loss.detach()))
        # The one host-device sync of a step; without it every latent would pay for the dead ones.
        # A loss that is not finite makes it longer than there are latents.
        dead = torch.cat([is_dead, has_failed.expand(len(is_dead) + 1)]).nonzero()[:, 0]
        if len(dead) > len(is_dead):
            raise divergence.of_batch(x, losses.totals, self.global_step, self.lr, self._where)
        logged["dead"] = dead.new_tensor(len(dead))
        if self.sae.auxk_coefficient > 0 and len(dead):
            auxk = self._auxk(x, out, dead)
            loss = loss + self.sae.auxk_coefficient * auxk
            logged["auxk"] = auxk.detach()
        self.sae.update_statistics(out)
        return loss, out, logged

    def penalty_share(self, num_steps: int) -> float:
        """Return what share of the penalty the last step paid: with all at once latents die."""
        return min(1.0, num_steps / max(1, self.sparsity_warmup_steps))

    def _losses(self, x: Tensor, out: SAEOutput, tokens: Tokens | None) -> Losses:
        penalties = self.sae.penalty(out)
        if penalties is not None:
            penalties = self.penalty_share(self.global_step + 1) / self.variance * penalties
        errors, unscaled = self.sae.errors(x, out), self.variance / self.input_scale**2
        progress = self.global_step / self.num_steps
        return Losses(errors / self.variance, penalties, tokens, progress, unscaled)

    def _resample(self, x: Tensor) -> None:
        if self.resampler is None or not self.resampler.is_due(self.global_step):
            return
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        step, dead_latents = self.global_step, self.dead_latents
        self.num_resampled += self.resampler.resample(self.sae, optimizer, x, dead_latents, step)

    def configure_optimizers(self) -> Any:
        """Return the optimiser with linear warm-up and decay."""
        optimizer = make_optimizer(self.sae, self.optimizer, self.lr, self._trainer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        scheduler = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def lr_factor(self, step: int) -> float:
        """Return the learning rate of a step, in units of its peak."""
        rise = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        return max(0.0, min(1.0, rise, (self.num_steps - step) / self.decay_steps))

    def on_fit_start(self) -> None:
        """Refuse weights that the strategy cannot train."""
        check_dtypes(self.sae)

    def on_train_start(self) -> None:
        """Start the clock of tokens_per_second, and the watch over the weights."""
        self._log_every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        self._narrow = NarrowWeights(self.num_steps // self._log_every)
        if self.screening == "auto":
            self.sae.screen_dtype = fast_dtype(self.device)
        self._last_log = self.global_step, time.perf_counter()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the update of W_dec on the unit spheres."""
        self.sae.remove_parallel_gradient()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and return the decoder directions to norm 1, before a checkpoint is written."""
        super().optimizer_step(*args, **kwargs)
        self.sae.normalise_decoder()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to replace a good checkpoint by a diverged one."""
        divergence.check_weights(self.sae, self.global_step, self.lr)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become float64 before float64 is loaded: Lightning does so only afterwards."""
        saved = {v.dtype for k, v in checkpoint["state_dict"].items() if k.startswith("sae.")}
        if self.sae.b_dec.dtype != torch.float64 and torch.float64 in saved:
            self.double()

    def finished_sae(self) -> SparseAutoencoder:
        """Return the SAE for unscaled activations; training must not go on afterwards.

        Every rank must call.

        Raises:
            ValueError: a weight is not finite.
        """
        divergence.check_weights(self.sae, self.global_step, self.lr)
        self.sae.rescale_input(1 / self.input_scale)
        self.sae.screen_dtype = None  # exact from now on
        return gathered(self.sae).cpu().eval()

    def _where(self, row: int) -> str:
        """Return which token a row of this rank's batch is."""
        data: Any = None if self._trainer is None else self._trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        return f"row {row} of the batch" if data is None else data.where(self.global_step, row)

    def _auxk(self, x: Tensor, out: SAEOutput, dead: Tensor) -> Tensor:
        """Return auxk = sum ||r - z_aux W_dec||^2 / sum ||r||^2, both over the global batch."""
        residual = x - out.recon.detach()
        errors = self.sae.auxk_errors(x, residual, dead)
        scale = all_reduce(residual.square().sum()) / (len(residual) * world_size())
        return errors.mean() / scale.clamp_min(1e-12)

    def _log(self, loss: Tensor, x: Tensor, out: SAEOutput, logged: dict[str, Tensor]) -> None:
        # Reading values back costs a device sync: only do it at the steps that the logger takes.
        steps = self.global_step + 1
        if steps % self._log_every:
            return
        now = time.perf_counter()
        num_tokens = (steps - self._last_log[0]) * len(x) * self.trainer.world_size
        rate = num_tokens / (now - self._last_log[1])
        self._last_log = steps, now
        values = {
            "loss": loss,
            "fvu": (x - out.recon.detach()).square().sum() / len(x) / self.variance,
            "l0": out.latents.num_active().float().mean(),
            **logged,
        }
        if self.resampler is not None:
            values["resampled"] = self.num_resampled
        local = torch.stack([value.detach().float() for value in values.values()])
        means = (all_reduce(local) / world_size()).tolist()
        row = dict(zip(values, means, strict=True)) | {"tokens_per_second": rate}
        self.num_resampled.zero_()
        self.last_row = row
        self._narrow.watch(row)
        # Not through self.log, which comes to the loggers after a checkpoint of this step.
        for logger in self.trainer.loggers:
            log_metrics(logger, {f"train/{k}": v for k, v in row.items()}, self.global_step)
            logger.save()
        shown = {"fvu": row["fvu"], "l0": row["l0"], "dead": row["dead"], "tokens/s": rate}
        self.log_dict(shown, prog_bar=True, logger=False, rank_zero_only=True)
