import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE

D_IN, D_SAE, NUM_TOKENS = 6, 20, 9


def make_sae(kind: str, k: int = 3) -> TopKSAE | ReLUSAE:
    """A float64 SAE in which no weight has a special value."""
    torch.manual_seed(0)
    own = {"k": k} if kind == "topk" else {"l1_coefficient": 0.7}
    sae = {"topk": TopKSAE, "relu": ReLUSAE}[kind](
        D_IN, D_SAE, auxk_coefficient=0.1, k_aux=4, **own
    ).double()
    with torch.no_grad():
        for weight in sae.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return sae


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_TOKENS, D_IN, dtype=torch.float64, generator=generator)


def naive_pre_acts(sae, x):
    """Loops over tokens, latents and inputs."""
    return torch.stack(
        [
            torch.stack(
                [
                    sum((row[i] - sae.b_dec[i]) * sae.W_enc[i, j] for i in range(D_IN))
                    + sae.b_enc[j]
                    for j in range(D_SAE)
                ]
            )
            for row in x
        ]
    )


def naive_latents(sae, pre_acts):
    rows = []
    for row in pre_acts:
        kept = range(D_SAE)
        if isinstance(sae, TopKSAE):
            kept = sorted(kept, key=lambda j: -row[j].item())[: sae.k]
        rows.append(
            torch.stack([row[j] if j in kept and row[j] > 0 else 0 * row[j] for j in range(D_SAE)])
        )
    return torch.stack(rows)


def naive_decode(sae, latents):
    return torch.stack(
        [sum(row[j] * sae.W_dec[j] for j in range(D_SAE)) + sae.b_dec for row in latents]
    )


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_forward_equals_the_equations_written_as_loops(kind, x):
    sae = make_sae(kind)
    out = sae(x)
    pre_acts = naive_pre_acts(sae, x)
    latents = naive_latents(sae, pre_acts)
    assert 0 < (latents > 0).double().mean() < 1
    torch.testing.assert_close(out.pre_acts, pre_acts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.latents, latents, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.recon, naive_decode(sae, latents), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.encode(x), out.latents, rtol=0, atol=0)
    torch.testing.assert_close(sae.decode(out.latents), out.recon, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_gradients_equal_autograd_of_the_equations_written_as_loops(kind, x):
    def gradients(forward):
        sae = make_sae(kind)
        recon, latents = forward(sae)
        loss = (x - recon).square().sum(1).mean()
        if kind == "relu":
            loss = loss + 0.7 * (latents * sae.W_dec.norm(dim=1)).sum(1).mean()
        loss.backward()
        return [weight.grad for weight in sae.parameters()]

    def ours(sae):
        out = sae(x)
        return out.recon, out.latents

    def naive(sae):
        latents = naive_latents(sae, naive_pre_acts(sae, x))
        return naive_decode(sae, latents), latents

    for found, expected in zip(gradients(ours), gradients(naive), strict=True):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_gradients_equal_finite_differences(kind, x):
    sae = make_sae(kind)
    names = [name for name, _ in sae.named_parameters()]

    def errors(x, *weights):
        out = torch.func.functional_call(sae, dict(zip(names, weights, strict=True)), (x,))
        return out.recon, out.latents

    weights = [weight.detach().clone().requires_grad_() for weight in sae.parameters()]
    assert torch.autograd.gradcheck(errors, (x.requires_grad_(), *weights), fast_mode=True)


def test_the_l1_penalty_is_the_weighted_sum_of_latents(x):
    sae = make_sae("relu")
    latents = sae.encode(x).detach()
    norms = sae.W_dec.detach().square().sum(1).sqrt()
    expected = [0.7 * sum(float(row[j]) * float(norms[j]) for j in range(D_SAE)) for row in latents]
    assert sae.penalty(latents).tolist() == pytest.approx(expected, rel=1e-12)
    assert make_sae("topk").penalty(latents) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(-3, 3), min_size=D_SAE, max_size=D_SAE), st.integers(1, D_SAE))
def test_topk_keeps_the_k_largest_positive_ones_also_among_ties(values, k):
    pre_acts = torch.tensor([values], dtype=torch.float64)
    latents = make_sae("topk", k).nonlinearity(pre_acts)[0]
    kept = latents[latents != 0].tolist()
    assert sorted(kept, reverse=True) == [v for v in sorted(values, reverse=True)[:k] if v > 0]
    assert all(latent in (0, value) for latent, value in zip(latents.tolist(), values, strict=True))


def test_topk_fills_up_with_zeros_and_never_with_negative_latents():
    pre_acts = torch.tensor([[-5.0, 2.0, -1.0, 0.0, 1.0] + [-1.0] * (D_SAE - 5), [-1.0] * D_SAE])
    latents = make_sae("topk", k=7).nonlinearity(pre_acts)
    expected = torch.zeros(2, D_SAE)
    expected[0, 1], expected[0, 4] = 2, 1
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("num_dead", [1, 3, 4, 5, D_SAE])
def test_auxk_errors_equal_a_loop(num_dead, x):
    sae = make_sae("topk")
    dead = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(2))[:num_dead]
    pre_acts, residual = sae.pre_acts(x), torch.randn_like(x)
    expected = []
    for r, row in zip(residual, pre_acts, strict=True):
        chosen = sorted(dead.tolist(), key=lambda j: -row[j].item())[: sae.k_aux]
        recon = sum(max(0.0, row[j].item()) * sae.W_dec[j] for j in chosen)
        expected.append((r - recon).square().sum().item())
    found = sae.auxk_errors(residual, pre_acts, dead)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


def test_auxk_reaches_dead_latents_only(x):
    sae = make_sae("topk")
    dead = torch.tensor([3, 7, 11])
    sae.auxk_errors(torch.randn_like(x), sae.pre_acts(x), dead).sum().backward()
    alive = [j for j in range(D_SAE) if j not in dead]
    assert sae.W_dec.grad is not None
    assert sae.W_enc.grad is not None
    assert (sae.W_dec.grad[alive] == 0).all()
    assert (sae.W_enc.grad[:, alive] == 0).all()
    assert (sae.W_dec.grad[dead].abs().sum(1) > 0).all()


def test_without_its_parallel_part_a_gradient_step_keeps_norms_to_first_order(x):
    sae = make_sae("topk", k=8)
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))
    sae(x).recon.square().sum().backward()
    gradient = sae.W_dec.grad
    assert gradient is not None
    before = gradient.clone()
    sae.remove_parallel_gradient()
    steps = torch.tensor([1e-3, 1e-4], dtype=torch.float64)
    directions = sae.W_dec.detach()
    change = [((directions - step * gradient).norm(dim=1) - 1).abs().max() for step in steps]
    assert change[1] / change[0] == pytest.approx(0.01, rel=0.05)  # second order
    raw = [((directions - step * before).norm(dim=1) - 1).abs().max() for step in steps]
    assert raw[1] / raw[0] == pytest.approx(0.1, rel=0.05)
    removed = before - gradient
    along = (removed * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
    torch.testing.assert_close(removed, along, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["topk", "relu"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 37.0])
def test_the_rescaled_sae_of_scaled_activations_is_the_scaled_sae(kind, scale, x):
    plain, rescaled = make_sae(kind), make_sae(kind)
    rescaled.rescale_input(scale)
    for found, expected in zip(rescaled(scale * x), plain(x), strict=True):
        torch.testing.assert_close(found, scale * expected, rtol=1e-10, atol=1e-12)


def test_a_fresh_sae_has_unit_directions_and_the_transposed_encoder():
    sae = TopKSAE(8, 30, k=2, auxk_coefficient=0.0, k_aux=1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(30))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must lie in 1 .. d_sae=20, got 0"),
        ({"k": 21}, "k must lie in 1 .. d_sae=20, got 21"),
        ({"d_in": 0}, "d_in must be a whole number"),
        ({"d_sae": 0}, "d_sae must be a whole number"),
        ({"k_aux": 0}, "k_aux must be a whole number"),
        ({"auxk_coefficient": -1.0}, "auxk_coefficient must not be negative"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    good = {"d_in": D_IN, "d_sae": D_SAE, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4}
    TopKSAE(**good)
    with pytest.raises(ValueError, match=message):
        TopKSAE(**(good | change))


def test_a_negative_l1_coefficient_is_refused():
    with pytest.raises(ValueError, match="l1_coefficient must not be negative"):
        ReLUSAE(D_IN, D_SAE, l1_coefficient=-1, auxk_coefficient=0.1, k_aux=4)


def test_topk_recovers_a_planted_dictionary():
    generator = torch.Generator().manual_seed(0)
    num_concepts, d_in, active = 32, 16, 2
    concepts = torch.nn.functional.normalize(torch.randn(num_concepts, d_in, generator=generator))

    def draw(num_tokens):
        chosen = torch.rand(num_tokens, num_concepts, generator=generator).argsort(1)[:, :active]
        values = torch.rand(num_tokens, active, generator=generator) + 0.5
        latents = torch.zeros(num_tokens, num_concepts).scatter(1, chosen, values)
        return latents @ concepts

    torch.manual_seed(1)
    sae = TopKSAE(d_in, 2 * num_concepts, k=active, auxk_coefficient=0.0, k_aux=1)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)

    def mean_max_cosine():
        return float((concepts @ sae.W_dec.detach().T).amax(1).mean())

    untrained = mean_max_cosine()
    for _ in range(1500):
        x = draw(256)
        optimizer.zero_grad()
        (x - sae(x).recon).square().sum(1).mean().backward()
        sae.remove_parallel_gradient()
        optimizer.step()
        sae.normalise_decoder()
    assert untrained < 0.75
    assert mean_max_cosine() > 0.9


def test_leading_dimensions_are_kept():
    sae = TopKSAE(8, 16, k=3, auxk_coefficient=0.0, k_aux=1)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    out = sae(x)
    torch.testing.assert_close(out.recon.flatten(0, 1), sae(x.flatten(0, 1)).recon)
    assert out.latents.shape == (2, 5, 16)
