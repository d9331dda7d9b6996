"""AuxK against the code of EleutherAI's sparsify.

    sparsify   min(1, num_dead / k_aux) sum ||r - z_aux W_dec||^2 / sum ||x - mean x||^2
    ssae       sum ||r - z_aux W_dec||^2 / sum ||r||^2                 (arXiv 2406.04093, A.2)

so ours is theirs / (min(1, num_dead / k_aux) fvu): the same z_aux, another unit. sparsify fixes
k_aux = d_in / 2. Its fused encoder passes no gradient on from dead pre-activations, so that there
auxk moves W_dec only, and that is the gradient to compare.
"""

import pytest
import torch

from ssae.sae.topk import TopKSAE

D_IN, D_SAE, K = 24, 90, 7


@pytest.fixture
def both(monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    sparsify = pytest.importorskip("sparsify", reason="needs the extra peers: pip install .[peers]")
    torch.manual_seed(0)
    ours = TopKSAE(D_IN, D_SAE, k=K, auxk_coefficient=1.0, k_aux=D_IN // 2)
    with torch.no_grad():
        ours.b_enc.normal_(std=0.3)
        ours.b_dec.normal_()
    theirs = sparsify.SparseCoder(D_IN, sparsify.SparseCoderConfig(num_latents=D_SAE, k=K))
    with torch.no_grad():
        theirs.encoder.weight.copy_(ours.W_enc_T)
        theirs.encoder.bias.copy_(ours.b_enc)
        theirs.W_dec.copy_(ours.W_dec)
        theirs.b_dec.copy_(ours.b_dec)
    return ours.double(), theirs.double()


@pytest.mark.parametrize("num_dead", [1, 5, 12, 13, 40])
def test_auxk_is_that_of_sparsify_in_the_unit_of_the_residual(both, num_dead):
    ours, theirs = both
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, D_IN, dtype=torch.float64, generator=generator)
    dead = torch.randperm(D_SAE, generator=generator)[:num_dead]
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[dead] = True

    expected = theirs(x, dead_mask=mask)
    unit = min(1, num_dead / (D_IN // 2)) * expected.fvu.detach()
    (expected.auxk_loss / unit).backward()

    residual = (x - ours(x).recon).detach()
    auxk = ours.auxk_errors(x, residual, dead).sum() / residual.square().sum()
    auxk.backward()
    assert auxk.item() == pytest.approx((expected.auxk_loss / unit).item(), rel=1e-10)
    torch.testing.assert_close(ours.W_dec.grad, theirs.W_dec.grad, rtol=1e-9, atol=1e-12)
    assert ours.W_enc_T.grad.abs().sum() > 0
    assert theirs.encoder.weight.grad.abs().sum() == 0
