"""Random SAEs of every architecture, and a comparison with what another library computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.sae.formats.content import ARCHITECTURES, with_training_defaults

D_IN, D_SAE, K = 24, 90, 7
GROUPS = [10, 30, 50]
TOLERANCE = 1e-5

OWN: dict[str, dict[str, Any]] = {
    "topk": {"k": K},
    "batchtopk": {"k": K},
    "matryoshka": {"k": K, "group_sizes": GROUPS},
}


def random_sae(architecture: str, seed: int = 0, **changes: Any) -> SparseAutoencoder:
    """An SAE whose every weight matters: no bias is zero, no decoder direction has norm 1."""
    given = {"d_in": D_IN, "d_sae": D_SAE, "subtract_b_dec": True, **OWN.get(architecture, {})}
    sae = ARCHITECTURES[architecture](**with_training_defaults(architecture, given | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.state_dict().items():
            weight.normal_(generator=generator)
            if name.startswith("W_"):
                weight.div_(D_IN**0.5)
            elif name == "threshold":
                weight.abs_().add_(0.2)
            elif name == "r_mag":
                weight.mul_(0.3)
    return sae.eval()


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., SparseAutoencoder]:
    return random_sae


@pytest.fixture(scope="session")
def x() -> Tensor:
    """Activations as language models have them: about 2 a coordinate, off centre."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(256, D_IN, generator=generator) * 2 + torch.linspace(-2, 2, D_IN)


@pytest.fixture(scope="session")
def same(x: Tensor) -> Callable[..., None]:
    """Return a function that compares an SAE of ours with another library's encode and decode."""

    def compare(
        ours: SparseAutoencoder, encode: Callable[..., Tensor], decode: Callable[..., Tensor]
    ) -> None:
        with torch.no_grad():
            latents = encode(x)
            recon = decode(latents)
            out = ours(x)
        firing = (latents > 0).float().mean().item()
        assert 0.003 < firing < 0.997  # not two SAEs that are both silent
        mine = ours.encode(x).detach()
        for name, found, wanted in (
            ("encode", mine, latents),
            ("decode", ours.decode(mine).detach(), recon),
            ("latents", out.latents.to_dense(), latents),
            ("recon", out.recon, recon),
        ):
            difference = (found - wanted).abs().max().item()
            assert difference < TOLERANCE, f"{name} differs by {difference:.2e}"

    return compare
