"""The optimiser of a training run, in one pass over the weights where there is such a version."""

import functools
import inspect
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision

from ssae.process.fsdp import can_fuse
from ssae.sae.base import SparseAutoencoder


def make_optimizer(
    sae: SparseAutoencoder,
    make: functools.partial[Any],
    lr: float,
    trainer: L.Trainer | None,
) -> torch.optim.Optimizer:
    """Return the optimiser of an SAE, fused where it can be.

    Args:
        sae: knows its parameter groups.
        make: takes parameters and lr.
        lr: peak learning rate.
        trainer: that will run it, if one will.
    """
    able = "fused" in inspect.signature(make.func).parameters and can_fuse(sae, make.func)
    if trainer is not None and trainer.gradient_clip_val:
        # A fused step unscales the gradients itself, after they have been clipped.
        able = able and not isinstance(trainer.precision_plugin, MixedPrecision)
    fused = {"fused": True} if able and "fused" not in make.keywords else {}
    return make(sae.parameter_groups(lr), lr=lr, **fused)
