"""One rank of what the fixture `launch` starts: torchrun rank.py runs.pickle.

Trains arms of studies. Beside the logs of a study it leaves <arm>_rank<r>.json: the first step of
this run, the bytes this rank keeps between steps, and the error that ended it.
"""

import dataclasses
import functools
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch.distributed.tensor import DTensor

from ssae.process.ranks import rank
from ssae.study import Study
from ssae.train import train


class Stopped(Exception):
    pass


class Watch(lightning.Callback):
    """Takes notes; ends the run at a step as a crash of every rank would."""

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at = stop_at
        self.notes: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.notes.setdefault("first_step", trainer.global_step)
        if trainer.global_step == self.stop_at:
            raise Stopped

    def on_before_zero_grad(self, trainer: lightning.Trainer, *_: Any) -> None:
        [optimizer] = trainer.optimizers
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.notes["weights"] = num_bytes(weights)
        self.notes["gradients"] = num_bytes([weight.grad for weight in weights])
        state = [value for own in optimizer.state.values() for value in own.values()]
        self.notes["state"] = num_bytes([value for value in state if value.ndim])


def num_bytes(tensors: list[Any]) -> int:
    own = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if torch.is_tensor(t)]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def run(study: Study, arm: str, stop_at: int | None) -> None:
    watch = Watch(stop_at)
    trainer = functools.partial(study.trainer, callbacks=[watch])
    try:
        train(dataclasses.replace(study, trainer=trainer), arm)
    except (Stopped, ValueError) as error:
        watch.notes["error"] = f"{type(error).__name__}: {error}"
    study.run_dir.mkdir(parents=True, exist_ok=True)
    (study.run_dir / f"{arm}_rank{rank()}.json").write_text(json.dumps(watch.notes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Lightning keeps float64 from ModelParallelStrategy; in float64 only real differences show.
    _AcceleratorConnector._validate_precision_choice = lambda self: None
    for what in pickle.loads(Path(sys.argv[1]).read_bytes()):
        run(*what)
