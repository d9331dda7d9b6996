"""ssae train: harvest what an arm learns from, then train its SAE under Lightning.

sae.safetensors, sae.json    the SAE (ssae.load)
latents.safetensors          fire_counts, tokens_since_fired (d_sae,) at the end of training;
                             recycled (d_sae,): started anew, at the start or since
snapshots/step_000123/       the SAE on the way, where the arm has num_snapshots (tracin.py)
manifest.json                snapshots: step and weight of each; input_scale: training saw
                             input_scale * activations
"""

import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from ssae.activation.capture import NonFinite
from ssae.activation.datamodule import ActivationDataModule
from ssae.activation.reader import Activations
from ssae.activation.rows import Rows
from ssae.artifact.store import Artifact, build, locate
from ssae.artifact.tensors import write_tensors
from ssae.artifact.together import build_together
from ssae.dead_latents.resample import resampler
from ssae.harvest import harvest_for
from ssae.mix import documents_for
from ssae.process.signals import Interrupted, StopRequest, unwrapped_interrupts
from ssae.sae import files
from ssae.study import Study
from ssae.tokenise import tokenise
from ssae.training.checkpoints import Checkpoints
from ssae.training.initialise import extra_sae, initial_sae, steering
from ssae.training.lit_sae import LitSAE
from ssae.training.logger import finish, make_logger
from ssae.training.media import log_sae
from ssae.training.optimality import Optimality
from ssae.training.snapshots import Snapshots
from ssae.training.trainer import SPEED_ONLY, make_trainer

log = logging.getLogger(__name__)


def train(study: Study, arm_name: str) -> Artifact:
    """Return the trained SAE of an arm; what it needs and is not there yet is made first."""
    arm = study.arms[arm_name]
    init = _init_folder(study, arm_name)
    if arm.num_tokens == 0:
        assert init is not None  # Arm checks it
        copy = functools.partial(_copy, init)
        return build(study.artifacts, "train", {"sae": files.identity(init), "format": 1}, copy)
    harvested = harvest_for(study, arm_name)
    recycles = arm.start == "recycle"
    inputs = {
        "activations": harvested,
        "activation": study.activation,
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
    if arm.num_snapshots > 0:  # a key more only there: SAEs without any stay where they are
        inputs["num_snapshots"] = arm.num_snapshots
    num_steps = -(-arm.num_tokens // study.training.batch_size_tokens)
    # Beside the artifact, so that there is one until the artifact is complete.
    artifact = locate(study.artifacts, "train", inputs)
    folder = artifact.path.with_suffix(".checkpoints")
    every_steps = study.training.checkpoint_every_steps
    checkpoints = Checkpoints(folder, every_steps, StopRequest())
    metadata = _metadata(study, arm_name, harvested)
    snapshots = Snapshots(artifact.partial, arm.num_snapshots, metadata, folder)
    looks = study.training.optimality_every_steps
    callbacks = [] if looks is None else [Optimality(looks)]
    trainer = make_trainer(study, arm_name, num_steps, [*callbacks, snapshots, checkpoints])

    def make(folders: list[Path]) -> list[Mapping[str, Any]]:
        # Not before it is certain that there is something to train: W&B shows every run.
        trainer.logger = make_logger(study, arm_name, inputs, checkpoints.folder)
        made = _train(study, arm_name, init, harvested, trainer, checkpoints, *folders)
        return [made | {"snapshots": snapshots.described()}]

    [artifact] = build_together(study.artifacts, [("train", inputs)], make, trainer)
    if trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
    # Not before the SAE has its final place, from which it may be uploaded much later.
    log_sae(trainer.logger, artifact, f"{study.name}-{arm_name}")
    finish(trainer.logger)
    return artifact


def _train(
    study: Study,
    arm_name: str,
    init: Path | None,
    harvested: Artifact,
    trainer: L.Trainer,
    checkpoints: Checkpoints,
    folder: Path,
) -> dict[str, Any]:
    arm, training, num_steps = study.arms[arm_name], study.training, trainer.max_steps
    activations = Activations(harvested)
    L.seed_everything(study.seed, verbose=False)
    sae, recycled = initial_sae(study, arm_name, init, activations)
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
        memory=arm.objective.memory(Rows(tokenise(study, documents_for(study, arm_name)))),
    )
    lit.dead_latents.recycled.copy_(recycled)
    source = study.activation.source(study, arm_name, activations)
    data = ActivationDataModule(source, num_steps)
    log.info(
        "%s: %d steps of %d tokens, %.1f epochs",
        arm_name,
        num_steps,
        training.batch_size_tokens,
        num_steps * training.batch_size_tokens / source.num_tokens,
    )
    with contextlib.closing(source):
        seconds = _fit(arm_name, trainer, lit, data, checkpoints)
    num_tokens = num_steps * training.batch_size_tokens
    sae = lit.finished_sae()
    if trainer.is_global_zero:
        metadata = _metadata(study, arm_name, harvested) | {"num_tokens": num_tokens}
        files.save(sae, folder, metadata=metadata)
        latents = {name: value.cpu() for name, value in lit.dead_latents.named_buffers()}
        write_tensors(latents, folder / "latents.safetensors")
    made: dict[str, Any] = {"arm": arm_name, "num_tokens": num_tokens, "seconds": round(seconds, 1)}
    made["input_scale"] = lit.input_scale
    made |= {name: lit.last_row[name] for name in ("fvu", "l0") if name in lit.last_row}
    num_recycled = int(lit.dead_latents.recycled.sum())
    return made | ({"num_recycled": num_recycled} if num_recycled else {})


def _metadata(study: Study, arm_name: str, harvested: Artifact) -> dict[str, Any]:
    return {
        "arm": arm_name,
        "hookpoint": harvested.manifest["hookpoint"],
        "language_model": study.language_model.name,
        "objective": repr(study.arms[arm_name].objective),
    }


def _fit(
    arm_name: str,
    trainer: L.Trainer,
    lit: LitSAE,
    data: L.LightningDataModule,
    checkpoints: Checkpoints,
) -> float:
    """Train to the end, from the newest checkpoint if there is one; return the seconds it took.

    Raises:
        Interrupted: a signal came; the checkpoint is that of the last step.
        NonFinite: an activation, a loss or a weight is not finite.
        ValueError: a callback ended the run, or nothing whole is left of its checkpoints.
    """
    last = checkpoints.newest()
    if last is not None:
        log.info("%s: continuing from %s", arm_name, last)
    start = time.perf_counter()
    with checkpoints.stop as stop, unwrapped_interrupts():
        try:
            trainer.fit(lit, data, ckpt_path=last, weights_only=True)
        except NonFinite as error:
            reached = f"step {trainer.global_step} of {trainer.max_steps}"
            raise NonFinite(
                f"{arm_name}: {error}. Stopped at {reached}; {checkpoints.kept()}"
            ) from error
    seconds = time.perf_counter() - start
    if stop.honoured is not None or trainer.global_step < trainer.max_steps:
        finish(trainer.logger, interrupted=stop.honoured is not None)
    if stop.honoured is not None:
        raise Interrupted(
            stop.honoured,
            f"{arm_name}: checkpoint at step {trainer.global_step} of {trainer.max_steps}; give "
            "the same command again to continue",
        )
    if trainer.global_step < trainer.max_steps:
        raise ValueError(
            f"{arm_name}: training ended at step {trainer.global_step} of {trainer.max_steps}; a "
            "callback in trainer.callbacks cut it short: remove it"
        )
    return seconds


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
