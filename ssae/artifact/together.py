"""Artifacts that the ranks of one run make together: rank 0 decides, all make, rank 0 seals.

Every rank calls `build_together` with the same inputs, in the same order of calls. A rank on which
`make` fails does not wait for the others, who may be in a collective that it will never reach: its
error ends its process, the others' next collective fails or the launcher ends them, and nothing is
sealed. What is in the partial folders stays there for the next run.
"""

import atexit
import contextlib
import datetime
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist

from ssae.artifact.lease import lease
from ssae.artifact.store import Artifact, check, locate, partial_folder, seal

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=365)
"""Another job's lease, or a slower rank, is waited for; a rank that dies is the launcher's."""
VISIBLE_SECONDS = 120
"""How long the file system of another node may take to show a new name."""


def build_together(
    root: Path,
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
    make: Callable[[list[Path]], list[Mapping[str, Any]]],
    trainer: L.Trainer,
) -> list[Artifact]:
    """Return the artifacts that are wanted, made by all ranks.

    Args:
        root: the artifacts folder; all nodes see it.
        wanted: (verb, inputs) of each: its sub-folder, and what decides its content; all different.
        make: called by every rank with the partial folders of the artifacts that are missing, in
            the order of `wanted`; continues what it finds there. What it returns on rank 0 is
            added to their manifests; it is sealed when all ranks have returned.
        trainer: whose ranks take part.

    Raises:
        ValueError: a finished directory is damaged, the folder cannot be written, or the ranks
            were not started by a launcher.
    """
    connect(trainer)
    artifacts = [locate(root, verb, inputs) for verb, inputs in wanted]
    with contextlib.ExitStack() as leases:
        missing = from_rank_zero(lambda: _lease_missing(artifacts, leases))
        if missing:
            with contextlib.ExitStack() as begun:  # on rank 0: another must not remove them
                folders = from_rank_zero(
                    lambda: [begun.enter_context(partial_folder(artifacts[i])) for i in missing]
                )
                extras = make(folders)
            barrier()

            def seal_all() -> None:
                for index, extra in zip(missing, extras, strict=True):
                    seal(artifacts[index], wanted[index][1], extra)

            from_rank_zero(seal_all)
    for artifact in artifacts:
        _await(artifact)
    return artifacts


def connect(trainer: L.Trainer) -> None:
    """Start the process group of the trainer's ranks, unless there is one rank or one group.

    Lightning finds it there. It would start it itself, but only after the artifacts that are to be
    made have been decided on, and without gloo for what lies on the CPU.

    Raises:
        ValueError: Lightning would have to start the ranks itself.
    """
    if trainer.world_size == 1 or dist.is_initialized():
        return
    strategy: Any = trainer.strategy
    environment = strategy.cluster_environment
    if not environment.creates_processes_externally:
        raise ValueError(
            f"{trainer.world_size} ranks are started by torchrun or SLURM, not by ssae itself: "
            f"torchrun --nproc-per-node {trainer.world_size} -m ssae <verb> "
            f"trainer.devices={trainer.world_size} ..."
        )
    on_cuda = strategy.root_device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(strategy.root_device)
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    dist.init_process_group(
        strategy.process_group_backend or ("cpu:gloo,cuda:nccl" if on_cuda else "gloo"),
        rank=environment.global_rank(),
        world_size=trainer.world_size,
        timeout=getattr(strategy, "_timeout", None),
    )
    atexit.register(_disconnect)  # as Lightning does for groups that it starts


def _disconnect() -> None:
    """End the process group before the interpreter ends, which gloo's threads may not survive."""
    _control.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Return when all ranks are here, however long that takes."""
    if dist.is_initialized():
        dist.barrier(_control())


def from_rank_zero(work: Callable[[], T]) -> T:
    """Return on every rank what `work` gives on rank 0, which alone calls it.

    Raises:
        ValueError: on the other ranks, when it failed there.
    """
    if not dist.is_initialized():
        return work()
    message: list[Any] = [None, None]
    try:
        if dist.get_rank() == 0:
            message[0] = work()
    except BaseException as error:
        message[1] = str(error) or type(error).__name__
        raise
    finally:  # nobody waits elsewhere: the others are in this broadcast
        dist.broadcast_object_list(message, 0, _control(), torch.device("cpu"))
    if message[1] is not None:
        raise ValueError(f"rank 0 failed: {message[1]}")
    return message[0]


def from_all_ranks(value: T) -> list[T]:
    """Return the values of all ranks, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, _control())
    return values


@functools.cache
def _control() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _lease_missing(artifacts: list[Artifact], leases: contextlib.ExitStack) -> list[int]:
    """Lease, in an order all jobs share, what is missing; return it when that is settled."""
    for artifact in sorted(artifacts, key=lambda artifact: artifact.path):
        if not artifact.path.exists():
            leases.enter_context(lease(artifact.path))
    missing = [i for i, artifact in enumerate(artifacts) if not artifact.path.exists()]
    for index in set(range(len(artifacts))) - set(missing):
        check(artifacts[index])
    return missing


def _await(artifact: Artifact) -> None:
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not artifact.path.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"rank 0 made {artifact.path}, but this rank does not see it; set artifacts="
                "<a folder on a file system that all nodes share>"
            )
        time.sleep(0.1)
