"""Training steps of other libraries, as their own trainers make them.

Each step is: gradients to zero, forward, backward, what that library does to gradients and weights,
fused Adam. `mode` "bf16" is the library's own mixed precision: autocast around the forward pass.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], Any]


def autocast(mode: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the precision context of a mode, fp32 or bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mode == "bf16")


def sparsify_topk(d_in: int, d_sae: int, k: int, mode: str, device: torch.device) -> Step:
    """Return sparsify's step.

    Raises:
        ImportError: eai-sparsify is not installed.
    """
    if device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), device=device)
    optimizer = torch.optim.Adam(sae.parameters(), 1e-4, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        with autocast(mode, device):
            loss = sae(x).fvu
        loss.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        sae.set_decoder_norm_to_unit_norm()

    return step


def saelens(
    architecture: str, d_in: int, d_sae: int, k: int, mode: str, device: torch.device
) -> Step:
    """Return SAELens' step for topk, batchtopk, jumprelu or standard.

    Raises:
        ImportError: sae-lens is not installed.
    """
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    names = {
        "topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "standard": "Standard"
    }  # fmt: skip
    name = f"{names[architecture]}TrainingSAE"
    module = __import__(f"sae_lens.saes.{architecture}_sae", fromlist=[name])
    own: dict[str, dict[str, Any]] = {
        "topk": {"k": k}, "batchtopk": {"k": k}, "jumprelu": {"l0_coefficient": 1.0},
        "standard": {"l1_coefficient": 1.0},
    }  # fmt: skip
    config = getattr(module, f"{name}Config")(
        d_in=d_in, d_sae=d_sae, device=str(device), **own[architecture]
    )
    sae = getattr(module, name)(config)
    optimizer = torch.optim.Adam(sae.parameters(), 1e-4, fused=True)
    coefficients = {"jumprelu": {"l0": 1.0}, "standard": {"l1": 1.0}}.get(architecture, {})
    assert sae_lens.__version__

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        given = TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=None, n_training_steps=0,
            is_logging_step=False,
        )  # fmt: skip
        with autocast(mode, device):
            loss = sae.training_forward_pass(given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step
