"""What runs on a GPU equals what runs on the CPU; absent without one."""

import copy

import pytest
import torch

from ssae.sae import screen
from ssae.sae.jvp import jvp, token_losses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.usefixtures("always_sparse")
def test_losses_and_gradients_on_the_gpu_are_those_of_the_cpu(make_sae, kind, mode, x):
    found = {}
    for device in ("cpu", "cuda"):
        sae = copy.deepcopy(make_sae(kind)).to(device).train(mode == "train")
        losses = token_losses(sae, x.to(device))
        losses.sum().backward()
        gradients = {n: p.grad for n, p in sae.named_parameters() if p.grad is not None}
        found[device] = {"losses": losses.detach(), **gradients}
    assert found["cpu"].keys() == found["cuda"].keys()
    for name, expected in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][name].cpu(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("always_sparse")
def test_directional_derivatives_on_the_gpu_are_those_of_the_cpu(make_sae, kind, x):
    sae = make_sae(kind)
    direction = {name: torch.randn_like(p) for name, p in sae.named_parameters()}
    _, expected = jvp(sae, x, direction)
    moved = {name: d.cuda() for name, d in direction.items()}
    _, found = jvp(sae.cuda(), x.cuda(), moved)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-11)


def test_the_screen_in_bfloat16_chooses_the_exact_top_k_on_the_gpu():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator).cuda()
    W_enc_T = torch.nn.functional.normalize(torch.randn(4096, 64, generator=generator)).cuda()
    b_enc = 0.1 * torch.randn(4096, generator=generator).cuda()
    exact, _ = screen.top_k(x, W_enc_T, b_enc, 32, None)
    found, values = screen.top_k(x, W_enc_T, b_enc, 32, torch.bfloat16)
    assert values.dtype == torch.float32
    chosen = [
        set(zip(active.tokens.tolist(), active.indices.tolist(), strict=True))
        for active in (exact, found)
    ]
    assert len(chosen[0] & chosen[1]) >= 0.999 * len(chosen[0])
