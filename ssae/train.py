"""ssae train: harvest what an arm learns from, then train its SAE under Lightning.

sae.safetensors, sae.json    the SAE (ssae.load)
latents.safetensors          fire_counts, tokens_since_fired (d_sae,) at the end of training;
                             recycled (d_sae,): started anew, at the start or since
"""

import functools
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger
from safetensors.torch import save_file

from ssae.activation.datamodule import ActivationDataModule
from ssae.activation.shards import Activations
from ssae.artifact import Artifact, build, locate
from ssae.harvest import harvest_for
from ssae.initialise import extra_sae, initial_sae, steering
from ssae.lit_sae import LitSAE
from ssae.ranks import rank
from ssae.resample import resampler
from ssae.sae import files
from ssae.study import Study

log = logging.getLogger(__name__)

# Trainer options that decide how fast the same weights appear, and what is seen meanwhile.
SPEED_ONLY = {
    "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "callbacks",
    "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler", "benchmark",
}  # fmt: skip


def train(study: Study, arm_name: str) -> Artifact:
    """Return the trained SAE of an arm; what it needs and is not there yet is made first."""
    arm = study.arms[arm_name]
    init = _init_folder(study, arm_name)
    if arm.num_tokens == 0:
        assert init is not None  # Arm checks it
        make = functools.partial(_copy, init)
        return build(study.artifacts, "train", {"sae": files.identity(init), "format": 1}, make)
    harvested = harvest_for(study, arm_name)
    recycles = arm.start == "recycle"
    inputs = {
        "activations": harvested,
        "sae": study.sae if init is None else files.identity(init),
        "steering": None if init is None or arm.start == "residual" else steering(study),
        "start": arm.start,
        # What only some starts read does not touch the other arms.
        "recycle_firing_rate": study.training.recycle_firing_rate if recycles else None,
        "extra_sae": extra_sae(study) if arm.start == "residual" else None,
        "objective": arm.objective,
        "num_tokens": arm.num_tokens,
        "lr": arm.lr,
        "training": study.training,
        "trainer": {k: v for k, v in study.trainer.keywords.items() if k not in SPEED_ONLY},
        "seed": study.seed,
        "format": 1,
    }
    make = functools.partial(_train, study, arm_name, init, harvested)
    if rank() == 0:
        return build(study.artifacts, "train", inputs, make, resumable=True)
    # The other ranks train along; rank 0 writes the artifact they then wait for.
    artifact = locate(study.artifacts, "train", inputs)
    if not artifact.path.exists():
        make(artifact.partial)
    while not artifact.path.exists():
        time.sleep(0.1)
    return artifact


def _train(
    study: Study, arm_name: str, init: Path | None, harvested: Artifact, folder: Path
) -> dict[str, Any]:
    arm, training = study.arms[arm_name], study.training
    activations = Activations(harvested)
    L.seed_everything(study.seed, verbose=False)
    sae, recycled = initial_sae(study, arm_name, init, activations)
    num_steps = -(-arm.num_tokens // training.batch_size_tokens)
    lit = LitSAE(
        sae,
        arm.objective,
        optimizer=training.optimizer,
        lr=arm.lr,
        warmup_steps=training.warmup_steps,
        decay_share=training.decay_share,
        num_steps=num_steps,
        mean_norm=activations.mean_norm,
        variance=activations.variance,
        dead_after_tokens=training.dead_after_tokens,
        sparsity_warmup_steps=training.sparsity_warmup_steps,
        screening=training.screening,
        resampler=resampler(training, num_steps, study.seed),
    )
    lit.dead_latents.recycled.copy_(recycled)
    data = ActivationDataModule(
        activations,
        batch_size_tokens=training.batch_size_tokens,
        seed=study.seed,
        num_steps=num_steps,
    )
    checkpoints = ModelCheckpoint(
        folder,
        save_last=True,
        save_top_k=0,
        every_n_train_steps=training.checkpoint_every_steps,
    )
    logger = None
    if study.logger is not None:
        logger = study.logger(save_dir=study.run_dir / "logs", name=arm_name)
    callbacks: list[L.Callback] = [checkpoints, *study.trainer.keywords.get("callbacks", [])]
    if study.trainer.keywords.get("enable_progress_bar", True):
        # In a file, where a line cannot be written over, twenty lines do.
        rate = 1 if sys.stderr.isatty() else max(1, num_steps // 20)
        callbacks.append(_ProgressBar(refresh_rate=rate))
    trainer = study.trainer(
        max_steps=num_steps,
        max_epochs=1,  # to Lightning; the order of batches knows the real ones
        callbacks=callbacks,
        logger=logger or False,
        default_root_dir=folder,
        use_distributed_sampler=False,  # the datamodule knows its rank
        enable_model_summary=False,
    )
    _check_launch(trainer)
    last = folder / "last.ckpt"
    if last.exists():
        log.info("%s: continuing from %s", arm_name, last)
    log.info(
        "%s: %d steps of %d tokens, %.1f epochs",
        arm_name,
        num_steps,
        training.batch_size_tokens,
        num_steps * training.batch_size_tokens / len(activations),
    )
    start = time.perf_counter()
    try:
        trainer.fit(lit, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except SystemExit:  # Lightning's answer to SIGINT and SIGTERM, after closing down
        raise KeyboardInterrupt from None
    seconds = time.perf_counter() - start
    if isinstance(logger, WandbLogger) and trainer.is_global_zero:
        logger.experiment.finish()  # one W&B run per arm
    if trainer.global_step < num_steps:  # e.g. accumulate_grad_batches, limit_train_batches
        raise ValueError(
            f"{arm_name}: training ended at step {trainer.global_step} of {num_steps}; a trainer "
            "option cut it short, see trainer.* in `ssae train --cfg job`"
        )
    num_tokens = num_steps * training.batch_size_tokens
    if trainer.is_global_zero:
        metadata = {
            "arm": arm_name,
            "hookpoint": harvested.manifest["hookpoint"],
            "language_model": study.language_model.name,
            "num_tokens": num_tokens,
            "objective": repr(arm.objective),
        }
        files.save(lit.finished_sae(), folder, metadata=metadata)
        latents = {name: value.cpu() for name, value in lit.dead_latents.named_buffers()}
        save_file(latents, folder / "latents.safetensors")
        last.unlink(missing_ok=True)
    made = {"arm": arm_name, "num_tokens": num_tokens, "seconds": round(seconds, 1)}
    num_recycled = int(lit.dead_latents.recycled.sum())
    return made | ({"num_recycled": num_recycled} if num_recycled else {})


class _ProgressBar(TQDMProgressBar):
    """Lightning's, on one line: without the logger's version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def _init_folder(study: Study, arm_name: str) -> Path | None:
    init = study.arms[arm_name].init_from
    if init is None:
        return None
    if init in study.arms:
        return train(study, init).path
    try:
        folder = files.locate(init)
        files.detect(folder)
    except ValueError as error:
        raise ValueError(
            f"arms.{arm_name}.init_from={init!r} is neither an arm ({', '.join(study.arms)}) nor a "
            f"saved SAE: {error}"
        ) from error
    return folder


def _copy(init: Path, folder: Path) -> dict[str, Any]:
    content = files.read(init)
    metadata = content.metadata | {"copied_from": str(init)}
    files.write(content._replace(metadata=metadata), folder, "ssae")
    if (init / "latents.safetensors").exists():
        shutil.copy(init / "latents.safetensors", folder)
    return {"num_tokens": 0}


def _check_launch(trainer: L.Trainer) -> None:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size > 1 and not getattr(environment, "creates_processes_externally", True):
        raise ValueError(
            f"{trainer.world_size} ranks are started by torchrun or SLURM, not by ssae itself: "
            f"torchrun --nproc-per-node {trainer.world_size} -m ssae train "
            f"trainer.devices={trainer.world_size} ..."
        )
