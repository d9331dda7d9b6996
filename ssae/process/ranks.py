"""The ranks of a distributed run; everything here is the identity when there is only one."""

import os

import torch
import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor


def rank() -> int:
    """Return this process's rank: known from the launcher's environment before torch starts."""
    return dist.get_rank() if _initialised() else getattr(rank_zero_only, "rank", 0)


def local_rank() -> int:
    """Return this process's number on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def world_size() -> int:
    """Return the number of ranks that take part in collectives."""
    return dist.get_world_size() if _initialised() else 1


def all_reduce(value: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Return `value` (without gradient) reduced over all ranks; the argument is left alone."""
    if not _initialised():
        return value
    value = value.clone()
    dist.all_reduce(value, operation)
    return value


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of ranks; every rank has as many."""
    if not _initialised():
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
