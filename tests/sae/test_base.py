import pytest
import torch

from ssae.sae.topk import TopKSAE

DEPENDS_ON_OTHERS = ("topk", "batchtopk", "matryoshka")
GOOD = {"d_in": 6, "d_sae": 20, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4}


def test_gradients_are_the_limits_of_differences_forwards_and_backwards(make_sae, kind, mode, path):
    """Where latents do not jump; straight-through estimates are no limits of differences."""
    sae = make_sae(kind, d_in=2, d_sae=8, k_aux=1).train(mode == "train")
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights = {n: w.detach().clone() for n, w in sae.named_parameters() if n != "threshold"}

    def outputs(x, *values):
        out = torch.func.functional_call(sae, dict(zip(weights, values, strict=True)), (x,))
        return out.recon, out.latents.to_dense()

    inputs = [tensor.requires_grad_() for tensor in (x, *weights.values())]
    assert torch.autograd.gradcheck(outputs, inputs, check_forward_ad=True)


def test_encode_and_decode_do_what_forward_does(make_sae, kind, mode, path, x):
    sae = make_sae(kind).train(mode == "train")
    out = sae(x)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(sae.encode(x), out.latents.to_dense(), **close)
    torch.testing.assert_close(sae.decode(out.latents.to_dense()), out.recon, **close)


def test_encode_and_decode_keep_leading_dimensions(make_sae, kind):
    sae = make_sae(kind).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latents = sae.encode(x)
    assert latents.shape == (2, 5, 32)
    torch.testing.assert_close(latents.flatten(0, 1), sae.encode(x.flatten(0, 1)))
    torch.testing.assert_close(sae.decode(latents).flatten(0, 1), sae(x.flatten(0, 1)).recon)


@pytest.mark.parametrize("scale", [0.01, 1.0, 37.0])
def test_the_rescaled_sae_of_scaled_activations_is_the_scaled_sae(
    make_sae, kind, mode, path, scale, x
):
    plain, rescaled = (make_sae(kind).train(mode == "train") for _ in range(2))
    rescaled.rescale_input(scale)
    found, expected = rescaled(scale * x), plain(x)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found.recon, scale * expected.recon, **close)
    latents = expected.latents.to_dense()
    torch.testing.assert_close(found.latents.to_dense(), scale * latents, **close)


@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_folding_the_decoder_norms_keeps_the_function(make_sae, kind, mode, x, subtract_b_dec):
    """A choice among latents is made by their size, so there all of them must take part."""
    own = {"k": 32} if kind in DEPENDS_ON_OTHERS else {}
    sae = make_sae(kind, subtract_b_dec=subtract_b_dec, **own).train(mode == "train")
    if kind in ("batchtopk", "matryoshka"):
        sae.threshold.zero_()
    norms = sae.W_dec.norm(dim=1).detach()
    before = sae(x)
    sae.fold_decoder_norms()
    after = sae(x)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(after.recon, before.recon, rtol=1e-10, atol=1e-12)
    scaled = before.latents.to_dense() * norms
    torch.testing.assert_close(after.latents.to_dense(), scaled, rtol=1e-10, atol=1e-12)


def test_folding_equal_norms_keeps_the_choice_too(make_sae, kind, x):
    sae = make_sae(kind).train()
    sae.normalise_decoder()
    with torch.no_grad():
        sae.W_dec.mul_(2.5)
    before = sae(x).recon
    sae.fold_decoder_norms()
    torch.testing.assert_close(sae(x).recon, before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_dead", [1, 3, 4, 5, 32])
@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_auxk_errors_equal_a_loop(make_sae, kind, num_dead, x, subtract_b_dec):
    sae = make_sae(kind, subtract_b_dec=subtract_b_dec)
    dead = torch.randperm(32, generator=torch.Generator().manual_seed(2))[:num_dead]
    residual = torch.randn_like(x)
    pre_acts = ((x - sae.b_dec if subtract_b_dec else x) @ sae.W_enc + sae.b_enc).detach()
    expected = []
    for r, row in zip(residual, pre_acts, strict=True):
        chosen = sorted(dead.tolist(), key=lambda j: -row[j].item())[: sae.k_aux]
        recon = sum(max(0.0, row[j].item()) * sae.W_dec[j].detach() for j in chosen)
        expected.append((r - recon).square().sum().item())
    assert sae.auxk_errors(x, residual, dead).tolist() == pytest.approx(expected, rel=1e-10)


def test_auxk_reaches_dead_latents_only(make_sae, x):
    sae = make_sae("topk")
    dead = torch.tensor([3, 7, 11])
    sae.auxk_errors(x, torch.randn_like(x), dead).sum().backward()
    alive = [j for j in range(32) if j not in dead]
    assert (sae.W_dec.grad[alive] == 0).all()
    assert (sae.W_enc_T.grad[alive] == 0).all()
    assert (sae.b_enc.grad[alive] == 0).all()
    assert (sae.W_dec.grad[dead].abs().sum(1) > 0).all()


def test_without_its_parallel_part_a_gradient_step_keeps_norms_to_first_order(make_sae, x):
    sae = make_sae("topk", k=8)
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32, dtype=torch.float64))
    sae(x).recon.square().sum().backward()
    gradient = sae.W_dec.grad
    before = gradient.clone()
    sae.remove_parallel_gradient()
    steps = torch.tensor([1e-3, 1e-4], dtype=torch.float64)
    directions = sae.W_dec.detach()
    change = [((directions - step * gradient).norm(dim=1) - 1).abs().max() for step in steps]
    assert change[1] / change[0] == pytest.approx(0.01, rel=0.05)  # second order
    raw = [((directions - step * before).norm(dim=1) - 1).abs().max() for step in steps]
    assert raw[1] / raw[0] == pytest.approx(0.1, rel=0.05)
    removed = before - gradient
    along = (removed * directions).sum(1, keepdim=True) * directions
    torch.testing.assert_close(removed, along, rtol=1e-10, atol=1e-12)


def test_a_fresh_sae_has_unit_directions_and_the_transposed_encoder():
    sae = TopKSAE(8, 30, k=2, auxk_coefficient=0.0, k_aux=1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(30))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()


def test_hyperparameters_are_the_arguments_of_the_constructor(make_sae, kind):
    sae = make_sae(kind)
    again = type(sae)(**sae.hyperparameters)
    assert again.hyperparameters == sae.hyperparameters
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in sae.state_dict().items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_in": 0}, "d_in must be a whole number of at least 1, got 0"),
        ({"d_sae": 0}, "d_sae must be a whole number of at least 1, got 0"),
        ({"d_sae": 20.0}, "d_sae must be a whole number of at least 1, got 20.0"),
        ({"k_aux": 0}, "k_aux must be a whole number of at least 1, got 0"),
        ({"auxk_coefficient": -1.0}, "auxk_coefficient must not be negative, got -1"),
        ({"auxk_coefficient": float("nan")}, "auxk_coefficient must not be negative, got nan"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    TopKSAE(**GOOD)
    with pytest.raises(ValueError, match=message):
        TopKSAE(**(GOOD | change))
