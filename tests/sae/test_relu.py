import pytest
import torch

from ssae.sae.relu import ReLUSAE


def reference(sae, x):
    """Bricken et al. 2023; the penalty of the April-2024 update."""
    shift = sae.b_dec if sae.subtract_b_dec else 0
    latents = ((x - shift) @ sae.W_enc + sae.b_enc).clamp_min(0)
    recon = latents @ sae.W_dec + sae.b_dec
    lengths = torch.stack([direction.square().sum().sqrt() for direction in sae.W_dec])
    losses = ((x - recon) ** 2).sum(1) + sae.l1_coefficient * (latents * lengths).sum(1)
    return latents, recon, losses


@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_it_is_what_the_equations_say(make_sae, check_against, x, mode, path, subtract_b_dec):
    sae = make_sae("relu", subtract_b_dec=subtract_b_dec).train(mode == "train")
    grads = check_against(sae, x, reference)
    assert all(grad.abs().sum() > 0 for grad in grads.values())


def test_it_equals_loops_over_tokens_and_latents(make_sae, x):
    sae = make_sae("relu").requires_grad_(False)
    losses = []
    for token in x.tolist():
        recon, penalty = sae.b_dec.tolist(), 0.0
        for j in range(sae.d_sae):
            column, direction = sae.W_enc[:, j].tolist(), sae.W_dec[j].tolist()
            terms = zip(token, sae.b_dec.tolist(), column, strict=True)
            latent = max(0.0, sum((t - b) * w for t, b, w in terms) + float(sae.b_enc[j]))
            recon = [r + latent * d for r, d in zip(recon, direction, strict=True)]
            penalty += 0.7 * latent * sum(d * d for d in direction) ** 0.5
        losses.append(sum((t - r) ** 2 for t, r in zip(token, recon, strict=True)) + penalty)
    out = sae(x)
    found = sae.errors(x, out) + sae.penalty(out)
    assert found.tolist() == pytest.approx(losses, rel=1e-12)


def test_a_negative_l1_coefficient_is_refused():
    with pytest.raises(ValueError, match="l1_coefficient must not be negative, got -1"):
        ReLUSAE(6, 20, l1_coefficient=-1, auxk_coefficient=0.1, k_aux=4)
