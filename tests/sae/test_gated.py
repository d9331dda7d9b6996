import pytest
import torch


def reference(sae, x):
    """arXiv 2404.16014, equations 4 to 8, with both encoders written out."""
    shifted = x - sae.b_dec if sae.subtract_b_dec else x
    pi_gate = shifted @ sae.W_enc + sae.b_enc
    pi_mag = shifted @ (sae.W_enc * sae.r_mag.exp()) + sae.b_mag
    latents = torch.where((pi_gate > 0) & (pi_mag > 0), pi_mag, 0.0)
    recon = latents @ sae.W_dec + sae.b_dec
    gates = pi_gate.clamp_min(0)
    gate_recon = gates @ sae.W_dec.detach() + sae.b_dec.detach()
    losses = ((x - recon) ** 2).sum(1) + ((x - gate_recon) ** 2).sum(1)
    lengths = sae.W_dec.square().sum(1).sqrt()
    return latents, recon, losses + sae.l1_coefficient * (gates * lengths).sum(1)


@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_it_is_what_the_equations_say(make_sae, check_against, x, mode, path, subtract_b_dec):
    sae = make_sae("gated", subtract_b_dec=subtract_b_dec).train(mode == "train")
    grads = check_against(sae, x, reference)
    assert all(grad.abs().sum() > 0 for grad in grads.values())


def test_the_gate_decides_what_is_active_and_not_how_strongly(make_sae, x):
    sae = make_sae("gated")
    before = sae.encode(x)
    with torch.no_grad():
        sae.r_mag.add_(0.5)
        sae.b_mag.add_(0.1)
    after = sae.encode(x)
    open_gates = sae.pre_acts(x) > 0
    assert (after[~open_gates] == 0).all()
    assert (before[open_gates] != after[open_gates]).any()


def test_only_the_second_error_and_the_penalty_train_the_gate_bias(make_sae, x):
    sae = make_sae("gated", l1_coefficient=0.0)
    (x - sae(x).recon).square().sum().backward()
    torch.testing.assert_close(sae.b_enc.grad, torch.zeros_like(sae.b_enc), rtol=0, atol=1e-12)
