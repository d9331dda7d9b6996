import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.sae.topk import TopKSAE

D_SAE = 20


def reference(sae, x):
    """arXiv 2406.04093, section 2.3, one token at a time."""
    shifted = x - sae.b_dec if sae.subtract_b_dec else x
    rows = []
    for token in shifted:
        pre_acts = token @ sae.W_enc + sae.b_enc
        kept = sorted(range(sae.d_sae), key=lambda j: -pre_acts[j].item())[: sae.k]
        latents = [pre_acts[j] if j in kept and pre_acts[j] > 0 else 0 * pre_acts[j]
                   for j in range(sae.d_sae)]  # fmt: skip
        rows.append(torch.stack(latents))
    latents = torch.stack(rows)
    recon = torch.stack([sum(z * d for z, d in zip(row, sae.W_dec, strict=True)) for row in rows])
    recon = recon + sae.b_dec
    return latents, recon, ((x - recon) ** 2).sum(1)


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("k", [1, 3, 31])
def test_it_is_what_the_equations_say(make_sae, check_against, x, mode, path, subtract_b_dec, k):
    sae = make_sae("topk", k=k, subtract_b_dec=subtract_b_dec).train(mode == "train")
    grads = check_against(sae, x, reference)
    assert all(grad.abs().sum() > 0 for grad in grads.values())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(-3, 3), min_size=D_SAE, max_size=D_SAE), st.integers(1, D_SAE))
def test_it_keeps_the_k_largest_positive_ones_also_among_ties(values, k):
    """x picks its row of the encoder, so that pre_acts are whatever one wants."""
    sae = TopKSAE(1, D_SAE, k=k, auxk_coefficient=0.0, k_aux=1)
    with torch.no_grad():
        sae.W_enc_T.copy_(torch.tensor(values)[:, None])
    wanted = [v for v in sorted(values, reverse=True)[:k] if v > 0]
    for latents in (sae(torch.ones(1, 1)).latents.to_dense()[0], sae.encode(torch.ones(1))):
        assert sorted(latents[latents != 0].tolist(), reverse=True) == wanted
        assert all(z in (0, value) for z, value in zip(latents.tolist(), values, strict=True))


def test_it_fills_up_with_zeros_and_never_with_negative_latents(make_sae):
    pre_acts = torch.tensor([[-5.0, 2.0, -1.0, 0.0, 1.0] + [-1.0] * (D_SAE - 5), [-1.0] * D_SAE])
    latents = make_sae("topk", k=7, d_sae=D_SAE).nonlinearity(pre_acts)
    expected = torch.zeros(2, D_SAE)
    expected[0, 1], expected[0, 4] = 2, 1
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("k", [0, 21, True, 2.5])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be a whole number in 1 .. 20, got .*sae.k=32"):
        TopKSAE(6, 20, k=k, auxk_coefficient=0.1, k_aux=4)
