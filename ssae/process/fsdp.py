"""SAEs whose weights and optimiser state are shared out over ranks: FSDP2, `trainer=fsdp`.

Rank r of R keeps the r-th block of ceil(d_sae / R) rows of every parameter of d_sae rows, its
gradient and its optimiser state: whole latents, so that what is done latent by latent (norm 1, a
threshold's sign) needs no other rank. A step gathers the weights before the forward pass and frees
them after the backward pass, which leaves each rank the mean over ranks of its rows' gradients.
Between the two every parameter is whole, so what training does with them outside of `forward`
(auxk, penalties) is part of that.

    in bytes of the weights                      one device    DDP    FSDP
    between steps (weights, gradients, Adam)     4             5      4 / R
    at the peak of a step                        4             5      2 + 4 / R
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ssae.process.ranks import rank

if TYPE_CHECKING:
    from ssae.sae.base import SparseAutoencoder


class FSDP(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all ranks, with the checkpoints of a single device.

    So a run continues under any strategy. (Lightning's own numbers optimiser state by the position
    of a parameter among all, frozen ones too, and cannot read a checkpoint of plain SGD.)
    """

    def __init__(self) -> None:
        super().__init__(
            data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    def setup_environment(self) -> None:
        """Let all ranks share; how many there are is known here and not before."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return every weight, whole, on rank 0; every rank must call."""
        assert self.lightning_module is not None
        return _whole(self.lightning_module.state_dict(), keep=rank() == 0)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return what `optimizer.state_dict()` is on one device; every rank must call."""
        return _whole(optimizer.state_dict(), keep=rank() == 0)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint, mapped: a rank reads its rows only."""
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's rows of the weights."""
        assert self.lightning_module is not None
        for name, tensor in self.lightning_module.state_dict().items():
            _copy_own_rows(tensor, checkpoint["state_dict"][name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's rows of the optimiser state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                number: {key: _shared_like(weight, t) for key, t in saved["state"][number].items()}
                for number, weight in zip(numbers, weights, strict=True)
                if number in saved["state"]
            }
            groups = [  # whether there is a fused version depends on the strategy
                saved_group | {"fused": group["fused"]} if "fused" in group else saved_group
                for saved_group, group in zip(
                    saved["param_groups"], optimizer.param_groups, strict=True
                )
            ]
            optimizer.load_state_dict({"state": state, "param_groups": groups})


def share_out(sae: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each rank its rows of the weights.

    Args:
        sae: has the same weights on every rank; is changed in place.
        mesh: what Lightning's ModelParallelStrategy gives.

    Raises:
        ValueError: the mesh asks for tensor parallelism too.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            "ranks share an SAE by rows alone, got tensor_parallel_size "
            f"{mesh['tensor_parallel'].size()}; set trainer=fsdp"
        )
    if not isinstance(sae, FSDPModule):
        # Outputs of the dense path are views; nothing changes them in place.
        warnings.filterwarnings("ignore", message=".*returned a view tensor")
        fully_shard(sae, mesh=mesh["data_parallel"])


def check_dtypes(sae: nn.Module) -> None:
    """Refuse weights of several dtypes, which FSDP2 cannot reduce together.

    Raises:
        ValueError: names them, and the precision to use instead.
    """
    dtypes = {name: weight.dtype for name, weight in sae.named_parameters()}
    if isinstance(sae, FSDPModule) and len(set(dtypes.values())) > 1:
        raise ValueError(
            f"trainer=fsdp needs weights of one dtype, got {dtypes}; set trainer.precision=32-true"
        )


def can_fuse(sae: nn.Module, optimizer: Any) -> bool:
    """Return whether torch has the fused version of an optimiser for these weights."""
    return not isinstance(sae, FSDPModule) or optimizer in (torch.optim.Adam, torch.optim.AdamW)


def give_back(sae: nn.Module) -> None:
    """Free the gathered weights after a forward pass that no backward pass follows."""
    if isinstance(sae, FSDPModule):
        sae.reshard()


@torch.no_grad()
def own_rows(tensor: Tensor) -> Tensor:
    """Return this rank's rows, as a view without gradient; all of what is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def set_rows(tensor: Tensor, rows: Tensor, values: Tensor | float) -> None:
    """Do `tensor[rows] = values`, each rank for what it has of them.

    Args:
        tensor: (num_rows, ...), shared out or not.
        rows: (num,) indices.
        values: (num, ...), or one number.
    """
    own = own_rows(tensor)
    if isinstance(tensor, DTensor):
        rows = rows - _first_row(tensor)
        mine = (rows >= 0) & (rows < len(own))
        rows = rows[mine]
        values = values[mine] if isinstance(values, Tensor) and values.ndim else values
    own[rows] = values.to(own) if isinstance(values, Tensor) else values


def gathered(sae: "SparseAutoencoder") -> "SparseAutoencoder":
    """Return the SAE with all its weights, on every rank; every rank must call.

    One weight at a time is whole on the device, all of them are on the CPU.
    """
    if not isinstance(sae, FSDPModule):
        return sae
    from ssae.sae.formats.content import skeleton  # which imports this, through the SAEs

    whole = skeleton(sae.architecture, sae.hyperparameters, where="the trained SAE")
    whole.load_state_dict(_whole(sae.state_dict(), keep=True), assign=True)
    return whole.train(sae.training)


def _whole(tensors: Any, keep: bool) -> Any:
    """Return nested dictionaries of tensors, whole and on the CPU; None for those not to keep."""

    def gather(tensor: Tensor) -> Tensor | None:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return whole.detach().cpu() if keep else None

    return apply_to_collection(tensors, Tensor, gather, include_none=True)


def _first_row(tensor: DTensor) -> int:
    """Return which row of the whole is this rank's first: blocks are those of torch.chunk."""
    mesh = tensor.device_mesh
    return mesh.get_local_rank() * -(-len(tensor) // mesh.size())


@torch.no_grad()
def _copy_own_rows(tensor: Tensor, whole: Tensor) -> None:
    own = own_rows(tensor)
    if isinstance(tensor, DTensor):
        whole = whole.narrow(0, min(_first_row(tensor), len(whole)), len(own))
    own.copy_(whole)


def _shared_like(weight: Tensor, value: Any) -> Any:
    """Return what the optimiser keeps of a weight, shared out as that is; a scalar as it is."""
    if not torch.is_tensor(value) or value.shape != weight.shape:
        return value
    shared = torch.empty_like(weight, dtype=value.dtype, requires_grad=False)
    _copy_own_rows(shared, value)
    return shared
