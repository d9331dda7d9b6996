"""ssae train: harvest what an arm learns from, then train its SAE under Lightning.

sae.safetensors, sae.json    the SAE (ssae.load)
latents.safetensors          fire_counts, tokens_since_fired (d_sae,) at the end of training
"""

import functools
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger
from safetensors.torch import save_file

from ssae.activation.datamodule import ActivationDataModule
from ssae.activation.shards import Activations
from ssae.artifact import Artifact, build, file_sha256, locate
from ssae.harvest import harvest_for
from ssae.lit_sae import LitSAE
from ssae.ranks import rank
from ssae.sae.base import SparseAutoencoder
from ssae.sae.files import load, load_description, save
from ssae.study import Study

log = logging.getLogger(__name__)

SANITY_TOKENS = 4096

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
        return build(study.artifacts, "train", {"sae": _sae_identity(init), "format": 1}, make)
    harvested = harvest_for(study, arm_name)
    inputs = {
        "activations": harvested,
        "sae": study.sae if init is None else _sae_identity(init),
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
    sae = _initial_sae(study, init, activations)
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
    )
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
        callbacks.append(_ProgressBar())
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
        save(lit.finished_sae(), folder, metadata)
        latents = {name: value.cpu() for name, value in lit.dead_latents.named_buffers()}
        save_file(latents, folder / "latents.safetensors")
        last.unlink(missing_ok=True)
    return {"arm": arm_name, "num_tokens": num_tokens, "seconds": round(seconds, 1)}


def _initial_sae(study: Study, init: Path | None, activations: Activations) -> SparseAutoencoder:
    """Return the SAE to train: a fresh one with b_dec = mean activation, or a checked old one."""
    if init is None:
        sae: SparseAutoencoder = study.sae(d_in=activations.d_in)
        with torch.no_grad():
            sae.b_dec.copy_(activations.mean)
        return sae
    sae = load(init).train()
    _warn_of_ignored_settings(study, sae)
    if sae.d_in != activations.d_in:
        raise ValueError(
            f"the SAE in {init} reads activations of width {sae.d_in}, hookpoint "
            f"{activations.artifact.manifest['hookpoint']} gives {activations.d_in}; "
            "set hookpoint=<the one it was trained on>"
        )
    x = activations.slice(0, SANITY_TOKENS).activations.float()
    with torch.no_grad():
        fvu = float((x - sae(x).recon).square().sum() / (x - x.mean(0)).square().sum())
    log.info("starting from %s: fvu %.3f on %d tokens", init, fvu, len(x))
    if fvu > 1:
        raise ValueError(
            f"the SAE in {init} has fvu {fvu:.2f} on these activations: worse than their mean. "
            "Likely causes: another hookpoint (off by one?), another language model, bos policy, "
            "scaled inputs. Check hookpoint=, language_model=, bos="
        )
    return sae


def _warn_of_ignored_settings(study: Study, sae: SparseAutoencoder) -> None:
    """Say so when the SAE that training starts from is not the one `sae=` describes."""
    found = {"_target_": type(sae).__name__, **sae.hyperparameters}
    asked = {"_target_": getattr(study.sae.func, "__name__", ""), **study.sae.keywords}
    ignored = [f"{k}={v} (it has {found.get(k)})" for k, v in asked.items() if found.get(k) != v]
    if ignored:
        log.warning("init_from decides the SAE; ignored: sae.%s", ", sae.".join(ignored))


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
    if not (Path(init) / "sae.json").is_file():
        raise ValueError(
            f"arms.{arm_name}.init_from={init!r} is neither an arm ({', '.join(study.arms)}) nor a "
            "directory with sae.json"
        )
    return Path(init)


def _sae_identity(folder: Path) -> dict[str, Any]:
    """Return what makes it this SAE: not its metadata, which name paths and arms."""
    described = load_description(folder)
    identity = {key: described.get(key) for key in ("architecture", "hyperparameters")}
    return identity | {"weights": file_sha256(folder / "sae.safetensors")}


def _copy(init: Path, folder: Path) -> dict[str, Any]:
    metadata = load_description(init)["metadata"] | {"copied_from": str(init)}
    save(load(init), folder, metadata)
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
