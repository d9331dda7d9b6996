import pytest
import torch

from ssae.sae.base import SparseAutoencoder
from ssae.sae.jvp import jvp, token_losses


def direction_of(sae, only=None):
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
        for name, weight in sae.named_parameters()
        if only is None or name == only
    }


def per_token(sae, x, direction):
    """The inner product of the direction with the gradient of every token's loss, one by one."""
    losses = token_losses(sae, x)
    weights = dict(sae.named_parameters())
    found = []
    for loss in losses:
        grads = torch.autograd.grad(
            loss, list(weights.values()), retain_graph=True, allow_unused=True
        )
        pairs = zip(weights, grads, strict=True)
        found.append(
            sum((g * direction[n]).sum() for n, g in pairs if g is not None and n in direction)
        )
    return losses.detach(), torch.stack(found)


@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_it_is_the_product_with_the_gradient_of_each_token(
    make_sae, kind, mode, path, x, subtract_b_dec
):
    sae = make_sae(kind, subtract_b_dec=subtract_b_dec).train(mode == "train")
    direction = direction_of(sae)
    losses, derivatives = jvp(sae, x, direction)
    expected = per_token(sae, x, direction)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(derivatives, expected[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["W_dec", "W_enc_T", "b_enc", "b_dec"])
def test_parameters_that_are_left_out_stay_fixed(make_sae, kind, mode, path, x, name):
    sae = make_sae(kind).train(mode == "train")
    direction = direction_of(sae, only=name)
    _, derivatives = jvp(sae, x, direction)
    torch.testing.assert_close(derivatives, per_token(sae, x, direction)[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["threshold", "r_mag", "b_mag"])
def test_so_do_those_that_not_every_architecture_has(make_sae, mode, path, x, name):
    sae = make_sae("jumprelu" if name == "threshold" else "gated").train(mode == "train")
    direction = direction_of(sae, only=name)
    _, derivatives = jvp(sae, x, direction)
    expected = torch.zeros(len(x), dtype=x.dtype)
    if mode == "train" or name != "threshold":
        expected = per_token(sae, x, direction)[1]
        assert expected.abs().sum() > 0
    torch.testing.assert_close(derivatives, expected, rtol=1e-10, atol=1e-11)


def test_targets_of_the_batch_count_for_every_token_of_it(make_sae, path, x):
    sae = make_sae("jumprelu", target_l0=4.0).train()
    direction = direction_of(sae)
    _, derivatives = jvp(sae, x, direction)
    torch.testing.assert_close(derivatives, per_token(sae, x, direction)[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_it_is_the_closed_formula_for_codes_on_a_fixed_active_set(make_sae, kind, mode, path, x):
    sae = make_sae(kind).train(mode == "train").requires_grad_(False)
    d = direction_of(sae)
    latents = sae(x).latents.to_dense()
    on = latents > 0
    residual = x - latents @ sae.W_dec - sae.b_dec
    dW_enc, W_enc = d["W_enc_T"].T, sae.W_enc
    d_latents = ((x - sae.b_dec) @ dW_enc + d["b_enc"] - d["b_dec"] @ W_enc) * on
    d_recon = d_latents @ sae.W_dec + latents @ d["W_dec"] + d["b_dec"]
    expected = -2 * (residual * d_recon).sum(1)
    torch.testing.assert_close(jvp(sae, x, d)[1], expected, rtol=1e-10, atol=1e-11)


def test_sparse_and_dense_agree(make_sae, kind, mode, always_sparse, x, monkeypatch):
    sae = make_sae(kind).train(mode == "train")
    direction = direction_of(sae)
    sparse = jvp(sae, x, direction)
    monkeypatch.setattr(SparseAutoencoder, "forward", SparseAutoencoder.forward_dense)
    for found, expected in zip(sparse, jvp(sae, x, direction), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_it_leaves_the_sae_as_it_was(make_sae, kind, x):
    sae = make_sae(kind)
    before = {name: weight.clone() for name, weight in sae.state_dict().items()}
    jvp(sae, x, direction_of(sae))
    assert all(torch.equal(before[name], weight) for name, weight in sae.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in sae.parameters())


@pytest.mark.parametrize(
    "direction",
    [{"W_enc": torch.zeros(6, 32)}, {"W_dec": torch.zeros(6, 32)}, {"b": torch.ones(1)}],
)
def test_a_direction_that_does_not_fit_is_refused(make_sae, x, direction):
    with pytest.raises(ValueError, match=r"direction has .*; the parameters of this SAE are"):
        jvp(make_sae("topk"), x, direction)
