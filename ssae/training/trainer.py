"""The Lightning Trainer of a training run, and which of its options are the run's own."""

import functools
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ssae.process.signals import disarm
from ssae.training.progress import ProgressBar, ProgressLines

if TYPE_CHECKING:
    from ssae.study import Study

# Options that decide how fast the same weights appear, and what is seen meanwhile.
SPEED_ONLY = {
    "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "callbacks",
    "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler", "benchmark",
}  # fmt: skip

LENGTH = (
    "a run is as long as its arm says; set generalist.num_tokens=..., specialist.num_tokens=...; "
    "to end it early send SIGTERM, it continues when the same command is given again"
)
REFUSED = {
    "accumulate_grad_batches": "the k of a step, TERM's normaliser and the counts of dead latents "
    "are those of one batch; set training.batch_size_tokens, memory does not grow with "
    "batch_size_tokens x d_sae",
    **dict.fromkeys(
        ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs", "limit_train_batches",
         "overfit_batches", "fast_dev_run", "barebones"),
        LENGTH,
    ),
    "reload_dataloaders_every_n_epochs": "batches are a function of the step",
    "use_distributed_sampler": "each rank reads its own part of every batch already",
    "logger": "set logger=csv, logger=wandb or logger=none",
    "default_root_dir": "set artifacts=<folder>",
    "enable_checkpointing": "set training.checkpoint_every_steps",
}  # fmt: skip


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `trainer.*` before the hours that come before training.

    Raises:
        ValueError: one would be overruled, or would end a run before its end (names what to set
            instead), Lightning refuses one, or they are for other ranks than were started.
    """
    defaults = {k: v.default for k, v in inspect.signature(L.Trainer).parameters.items()}
    defaults["enable_checkpointing"] = True  # what its None means
    for name, reason in REFUSED.items():
        value = options.get(name)
        if value is not None and value != defaults[name]:
            raise ValueError(f"trainer.{name}={value!r} cannot be had: {reason}")
    tried: dict[str, Any] = {k: v for k, v in options.items() if k not in REFUSED}
    tried |= {"strategy": _strategy(options), "callbacks": None}  # Lightning would add to the list
    silent = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    tried |= dict.fromkeys(silent, False)
    try:
        trainer = L.Trainer(**tried)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(
            f"Lightning refuses the options of trainer.*: {error}; see `ssae train --cfg job`"
        ) from error
    every = options.get("log_every_n_steps")
    if every is not None and not (isinstance(every, int) and every >= 1):
        raise ValueError(
            f"trainer.log_every_n_steps must be a whole number of at least 1, got {every!r}; set "
            "trainer.log_every_n_steps=25"
        )
    # torchrun's number, or srun's: it sets that in the tasks of a step alone.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", trainer.world_size)
    launched = int(os.environ.get("WORLD_SIZE", tasks))
    if launched != trainer.world_size:
        raise ValueError(
            f"{launched} ranks were started for trainer.devices x trainer.num_nodes = "
            f"{trainer.world_size}: set trainer.devices=<ranks on a node> and "
            "trainer.num_nodes=<nodes>, or start as many"
        )


def _strategy(options: Mapping[str, Any]) -> Any:
    strategy = options.get("strategy", "auto")
    # An object serves one Trainer only.
    return strategy() if isinstance(strategy, functools.partial) else strategy


def make_trainer(
    study: "Study", arm_name: str, num_steps: int, callbacks: Sequence[L.Callback]
) -> L.Trainer:
    """Return the Trainer of a run of `num_steps` steps; whoever trains gives it a logger."""
    options = study.trainer.keywords
    log_every = options.get("log_every_n_steps")
    own = [*options.get("callbacks", []), *callbacks]
    if options.get("enable_progress_bar", True):
        shown = ProgressBar if sys.stderr.isatty() else ProgressLines
        own.append(shown(arm_name, num_steps))
    trainer = study.trainer(
        strategy=_strategy(options),
        log_every_n_steps=min(50 if log_every is None else log_every, num_steps),
        max_steps=num_steps,
        max_epochs=1,  # to Lightning; the order of batches knows the real ones
        callbacks=own,
        logger=False,
        default_root_dir=study.run_dir,  # a profiler writes there
        use_distributed_sampler=False,  # the datamodule knows its rank
        enable_model_summary=False,
    )
    disarm(trainer)
    return trainer


def predict_trainer(study: "Study") -> L.Trainer:
    """Return a Trainer of the study's ranks for `predict`, which adds nothing of its own to it."""
    options = study.trainer.keywords
    trainer = L.Trainer(
        **{k: options[k] for k in ("accelerator", "devices", "num_nodes") if k in options},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # models enter it themselves
        default_root_dir=study.artifacts,
    )
    disarm(trainer)
    return trainer
