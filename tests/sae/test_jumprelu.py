import pytest
import torch

from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.jvp import jvp, token_losses


def reference(sae, x):
    """arXiv 2407.14435, equations 8 to 12.

    A step with value s and pseudo-gradient g with respect to the threshold t is s + g (t - t0)
    with s, g and t0 constant.
    """
    shifted = x - sae.b_dec if sae.subtract_b_dec else x
    pre_acts = shifted @ sae.W_enc + sae.b_enc
    threshold = sae.threshold
    moved = threshold - threshold.detach()  # is 0 and has a gradient
    if not sae.training:
        threshold, moved = threshold.detach(), moved.detach()
    active = ((pre_acts > threshold) & (pre_acts > 0)).double()
    near = ((pre_acts - threshold).abs() < sae.bandwidth / 2).double()
    latents = pre_acts * active - (threshold.detach() / sae.bandwidth) * near * moved
    l0 = (active - near / sae.bandwidth * moved).sum(1)
    recon = latents @ sae.W_dec + sae.b_dec
    errors = ((x - recon) ** 2).sum(1)
    if sae.target_l0 is None:
        return latents, recon, errors + sae.l0_coefficient * l0
    excess = l0.detach().mean() / sae.target_l0 - 1
    each = excess**2 + 2 * excess * (l0 - l0.detach()) / sae.target_l0
    return latents, recon, errors + sae.l0_coefficient * sae.d_in * each


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("target_l0", [None, 4.0])
def test_it_is_what_the_equations_say(
    make_sae, check_against, x, mode, path, subtract_b_dec, target_l0
):
    sae = make_sae("jumprelu", target_l0=target_l0, subtract_b_dec=subtract_b_dec)
    sae.train(mode == "train")
    grads = check_against(sae, x, reference)
    reached = {name for name, grad in grads.items() if grad.abs().sum() > 0}
    assert reached == grads.keys() - (set() if mode == "train" else {"threshold"})


def test_the_gradient_of_the_threshold_is_the_straight_through_formula(make_sae, x, path):
    sae = make_sae("jumprelu").train()
    out = sae(x)
    (sae.errors(x, out) + sae.penalty(out)).sum().backward()
    sae.requires_grad_(False)
    pre_acts = sae.pre_acts(x)
    recon = sae.forward_dense(x).recon
    expected = torch.zeros(sae.d_sae, dtype=torch.float64)
    for i in range(len(x)):
        for j in range(sae.d_sae):
            if abs(float(pre_acts[i, j] - sae.threshold[j])) < 0.3:
                by_latent = float(-2 * (x[i] - recon[i]) @ sae.W_dec[j])
                expected[j] -= (float(sae.threshold[j]) * by_latent + 0.4) / 0.6
    torch.testing.assert_close(sae.threshold.grad, expected, rtol=1e-10, atol=1e-12)


def test_the_mean_penalty_towards_a_target_is_the_squared_relative_excess(make_sae, x, path):
    sae = make_sae("jumprelu", target_l0=4.0).train()
    out = sae(x)
    l0 = float(out.latents.num_active().double().mean())
    expected = 0.4 * 6 * (l0 / 4 - 1) ** 2
    assert sae.penalty(out).mean().item() == pytest.approx(expected, rel=1e-12)


def test_thresholds_below_zero_let_nothing_negative_through(make_sae, x, path, mode):
    sae = make_sae("jumprelu", initial_threshold=0.0).train(mode == "train")
    with torch.no_grad():
        sae.threshold.fill_(-0.2)
    latents = sae(x).latents
    torch.testing.assert_close(latents.to_dense(), sae.pre_acts(x).relu())


def test_a_narrow_sae_keeps_its_threshold_in_float32(make_sae, path, mode):
    sae = make_sae("jumprelu").bfloat16().train(mode == "train")
    assert sae.W_dec.dtype == sae.b_enc.dtype == torch.bfloat16
    assert sae.threshold.dtype == torch.float32
    before = sae.threshold.detach().clone()
    with torch.no_grad():
        for _ in range(100):
            sae.threshold.add_(1e-5)
    torch.testing.assert_close(
        sae.threshold.detach() - before, torch.full((32,), 1e-3), rtol=0.01, atol=0
    )
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    direction = {name: torch.ones_like(weight) for name, weight in sae.named_parameters()}
    token_losses(sae, x).sum().backward()
    expected = sum(w.grad.float().sum() for w in sae.parameters() if w.grad is not None)
    found = jvp(sae, x, direction)[1].float().sum()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1.0)
    assert make_sae("jumprelu").double().threshold.dtype == torch.float64


def test_only_the_threshold_has_the_learning_rate_of_the_threshold():
    common = {
        "l0_coefficient": 1.0, "target_l0": None, "bandwidth": 0.1, "initial_threshold": 0.1,
        "auxk_coefficient": 0.1, "k_aux": 4,
    }  # fmt: skip
    for threshold_lr, expected in ((None, 1e-3), (0.02, 0.02)):
        sae = JumpReLUSAE(6, 20, threshold_lr=threshold_lr, **common)
        weights, threshold = sae.parameter_groups(1e-3)
        assert (weights["lr"], threshold["lr"]) == (1e-3, expected)
        assert [id(p) for p in threshold["params"]] == [id(sae.threshold)]
        assert len(weights["params"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be positive, got 0"),
        ({"target_l0": 0.0}, "target_l0 must be positive"),
        ({"threshold_lr": -1.0}, "threshold_lr must be positive"),
        ({"l0_coefficient": -1.0}, "l0_coefficient must not be negative"),
        ({"initial_threshold": float("nan")}, "initial_threshold must not be negative, got nan"),
    ],
)
def test_values_out_of_range_are_refused(make_sae, change, message):
    with pytest.raises(ValueError, match=message):
        make_sae("jumprelu", **change)
