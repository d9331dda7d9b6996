"""One maker of SAEs for all tests of ssae/sae, and the comparison with a reference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ssae.sae import screen
from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.jvp import token_losses
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE

D_IN, D_SAE, NUM_TOKENS = 6, 32, 9

MAKERS: dict[str, tuple[type[SparseAutoencoder], dict[str, Any]]] = {
    "relu": (ReLUSAE, {"l1_coefficient": 0.7}),
    "gated": (GatedSAE, {"l1_coefficient": 0.7}),
    "topk": (TopKSAE, {"k": 3}),
    "batchtopk": (BatchTopKSAE, {"k": 3}),
    "jumprelu": (
        JumpReLUSAE,
        {
            "l0_coefficient": 0.4, "target_l0": None, "bandwidth": 0.6, "initial_threshold": 0.5,
            "threshold_lr": None,
        },
    ),
    "matryoshka": (MatryoshkaSAE, {"k": 3, "group_sizes": [5, 11, 16]}),
}  # fmt: skip


def make(kind: str, *, d_in: int = D_IN, d_sae: int = D_SAE, **changes: Any) -> SparseAutoencoder:
    """A float64 SAE in which no weight has a special value, nor the same as another."""
    torch.manual_seed(0)
    cls, own = MAKERS[kind]
    if kind == "matryoshka" and d_sae != D_SAE:
        own = own | {"group_sizes": [d_sae // 4, d_sae - d_sae // 4]}
    sae = cls(d_in, d_sae, **({"auxk_coefficient": 0.1, "k_aux": 4} | own | changes)).double()
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.add_((0.1 if name == "threshold" else 0.3) * torch.randn_like(weight))
        if isinstance(sae, BatchTopKSAE):
            sae.threshold.fill_(1.1)
    return sae


@pytest.fixture(params=list(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture."""
    return request.param


@pytest.fixture(params=["train", "eval"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["sparse", "dense"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two equal computations `forward` is; SAEs of tests are dense by nature."""
    monkeypatch.setattr(screen, "DENSE_SHARE", 1.0)
    if request.param == "dense":
        monkeypatch.setattr(SparseAutoencoder, "forward", SparseAutoencoder.forward_dense)
    return request.param


@pytest.fixture
def always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "DENSE_SHARE", 1.0)


@pytest.fixture
def make_sae() -> Callable[..., Any]:
    return make


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_TOKENS, D_IN, dtype=torch.float64, generator=generator)


class Expected(NamedTuple):
    """What a reference computes from sae and x, differentiable in both."""

    latents: Tensor
    """(n, d_sae)."""
    recon: Tensor
    """(n, d_in)."""
    losses: Tensor
    """(n,) errors + penalty."""


def token_weights(n: int) -> Tensor:
    """No token counts the same, so that a gradient given to the wrong one shows."""
    return torch.linspace(0.5, 2.0, n, dtype=torch.float64)


def gradients(sae: SparseAutoencoder, x: Tensor, losses: Tensor) -> dict[str, Tensor]:
    """Return the gradients of weighted losses; zeros where there are none."""
    inputs = {"x": x, **dict(sae.named_parameters())}
    loss = (token_weights(len(x)) * losses).mean()
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(inputs.items(), grads, strict=True)
    }


def check(
    sae: SparseAutoencoder, x: Tensor, reference: Callable[[Any, Tensor], tuple[Tensor, ...]]
) -> dict[str, Tensor]:
    """Compare latents, recon, losses and all gradients; return the expected gradients."""
    x = x.clone().requires_grad_()
    expected = Expected(*reference(sae, x))
    assert 0 < (expected.latents > 0).double().mean() < 1
    out = sae(x)
    close = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(out.latents.to_dense(), expected.latents, **close)
    torch.testing.assert_close(out.recon, expected.recon, **close)
    losses = token_losses(sae, x)
    torch.testing.assert_close(losses, expected.losses, **close)
    wanted = gradients(sae, x, expected.losses)
    for name, grad in gradients(sae, x, losses).items():
        torch.testing.assert_close(grad, wanted[name], **close, msg=lambda m, n=name: f"{n}: {m}")
    return wanted


@pytest.fixture
def check_against() -> Callable[..., dict[str, Tensor]]:
    return check


@pytest.fixture
def gradients_of() -> Callable[..., dict[str, Tensor]]:
    return gradients
