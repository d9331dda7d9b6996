import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from ssae.theory import (
    OptimalityGap,
    Scale,
    amortisation_gap,
    candidates_of,
    coded,
    optimal_codes,
    optimality_gap,
    solve_large_dictionary,
    wide_limit,
)
from ssae.theory.coarsening import at_most


def test_the_wide_limit_is_the_best_code_of_each_token_in_its_own_direction(sample):
    x, lam = sample(0, n=30).x, 2.0
    values, codes = [], []
    for row in x.numpy():
        size = np.linalg.norm(row)
        best = minimize_scalar(
            lambda s, size=size: (size - s) ** 2 / 2 + lam * s, bounds=(0, size), method="bounded",
            options={"xatol": 1e-10},
        )  # fmt: skip
        ends = [(size**2 / 2, 0.0), (best.fun, best.x)]
        value, code = min(ends)
        values.append(value)
        codes.append(code)
    found = wide_limit(x, lam)
    assert found.objective == pytest.approx(np.mean(values), rel=1e-10)
    np.testing.assert_allclose(found.z, codes, atol=1e-5)
    assert found.num_directions == (x.norm(dim=1) > lam).sum()
    assert 0 < found.num_directions < 30


def test_the_wide_limit_is_the_objective_of_tokens_as_a_dictionary(sample):
    x, lam = sample(1, n=25).x, 0.4
    batch = coded(x, torch.diag(wide_limit(x, lam).z), candidates_of(x))
    found = batch.objective(lam).mean().item()
    assert wide_limit(x, lam).objective == pytest.approx(found, rel=1e-12)
    solved = solve_large_dictionary(x, candidates_of(x), lam, 0.0, tolerance=1e-8)
    assert solved.objective == pytest.approx(found, rel=2e-8)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 25), st.floats(0.01, 3))
def test_no_dictionary_falls_below_the_wide_limit(seed, d_sae, lam):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    W_dec = torch.randn(d_sae, 4, generator=generator, dtype=torch.float64)
    if seed % 2:  # one that holds tokens
        W_dec = torch.cat([W_dec, x[:3]])
    unit = W_dec / W_dec.norm(dim=1, keepdim=True)
    best = coded(x, optimal_codes(x, unit, lam).z, unit).objective(lam).tolist()
    for row, value in zip(x, best, strict=True):
        assert value >= wide_limit(row[None], lam).objective - 1e-9


def test_tokens_of_norm_zero_cost_nothing_and_get_no_direction():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.3, 0.4]])
    found = wide_limit(x, 1.0)
    assert found.objective == pytest.approx((0 + 4.5 + 0.125) / 3, rel=1e-6)
    np.testing.assert_allclose(found.z, [0, 4, 0], atol=1e-6)
    assert found.num_directions == 1


def saes(relu_sae, topk_sae, sample):
    drawn = sample(2, n=60, d_in=6, d_sae=9)
    b_dec = torch.linspace(-0.5, 0.5, 6)
    return drawn.x, [
        relu_sae(2 * drawn.W_dec, -0.5, b_dec=b_dec),
        topk_sae(drawn.W_dec, 2, b_dec=b_dec),
    ]


@pytest.mark.parametrize("lam", [0.1, 0.6])
@pytest.mark.parametrize("kind", [0, 1])
def test_the_scale_is_in_order_and_each_value_is_what_it_says(
    relu_sae, topk_sae, sample, lam, kind
):
    x, both = saes(relu_sae, topk_sae, sample)
    sae = both[kind]
    held_out = sample(3, n=40, d_in=6).x
    found = optimality_gap(sae, x, lam, held_out)
    for tokens, scale in ((x, found.scale), (held_out, found.held_out)):
        shifted = tokens - sae.b_dec.detach()
        assert scale.wide_limit == pytest.approx(wide_limit(shifted, lam).objective, rel=1e-12)
        expected = amortisation_gap(sae, tokens, lam)
        assert scale.sae == pytest.approx(expected.objective, rel=1e-12)
        assert scale.optimal_codes == pytest.approx(expected.optimal, rel=1e-3)
        assert scale.wide_limit <= scale.optimal_codes <= scale.sae
        assert scale.wide_limit <= scale.convex_path
        assert scale.optimal_codes <= scale.own_path * (1 + 1e-3)
        assert scale.share == pytest.approx((scale.sae - scale.wide_limit) / scale.wide_limit)
    assert found.lam == lam
    own = amortisation_gap(sae, x, lam)
    assert found.l0 == own.l0
    assert found.optimal_l0 == pytest.approx(own.optimal_l0, abs=0.2)
    assert found.num_convex <= found.num_directions <= 9
    assert found.num_convex >= 1
    assert found.gamma > 0


def test_the_path_is_the_directions_of_tokens_with_optimal_codes(relu_sae, topk_sae, sample):
    x, both = saes(relu_sae, topk_sae, sample)
    found = optimality_gap(both[0], x, 0.3)
    assert found.held_out is None
    # Of its 9 as many as the convex path ended up with.
    assert 1 <= found.num_own <= found.num_convex < found.num_directions == 9
    assert found.scale.own_path > found.scale.optimal_codes
    shifted = x - both[0].b_dec.detach()
    candidates = candidates_of(shifted[shifted.norm(dim=1) > 0.3])
    gamma, solved = at_most(shifted, candidates, 0.3, found.num_directions)
    assert gamma == found.gamma
    assert solved.num_used == found.num_convex
    D = candidates[solved.used]
    best = coded(shifted, optimal_codes(shifted, D, 0.3).z, D).objective(0.3).mean()
    assert found.scale.convex_path == pytest.approx(best.item(), rel=1e-4)
    # Optimal codes without the price of directions are better than those that chose them.
    paid = coded(shifted, torch.from_numpy(solved.z), D).objective(0.3).mean()
    assert found.scale.convex_path < paid


def test_where_the_sae_uses_many_directions_both_paths_have_one_for_four_tokens(
    relu_sae, sample, unit
):
    x = sample(4, n=40, d_in=6).x
    sae = relu_sae(unit(0, 200, 6), -0.2)
    found = optimality_gap(sae, x, 0.2)
    assert found.num_directions > 40
    assert 8 <= found.num_own <= 10
    assert 8 <= found.num_convex <= 10
    best = coded(x, optimal_codes(x, sae.W_dec, 0.2).z, sae.W_dec)
    used = best.directions[best.z.fire_counts() > 0]
    _, solved = at_most(x.double(), used, 0.2, 10)
    D = used[solved.used]
    expected = coded(x, optimal_codes(x, D, 0.2).z, D).objective(0.2).mean().item()
    assert found.scale.own_path == pytest.approx(expected, rel=1e-4)
    # Fewer of the same directions cost more.
    assert found.scale.own_path > found.scale.optimal_codes


def test_an_sae_of_the_tokens_themselves_is_at_the_limit(relu_sae):
    # Orthogonal tokens: each direction is one, and the encoder is optimal.
    x = torch.diag(torch.tensor([2.0, 3.0, 1.5, 4.0])).double()
    found = optimality_gap(relu_sae(torch.eye(4).double(), -0.5), x, 0.5)
    assert found.scale.share == pytest.approx(0, abs=1e-6)
    assert found.scale.optimal_codes == pytest.approx(found.scale.wide_limit, rel=1e-6)
    assert (found.l0, found.num_directions) == (1, 4)


def test_a_price_above_every_norm_leaves_no_direction(relu_sae, sample, unit):
    x = sample(5, n=10, d_in=6).x
    found = optimality_gap(relu_sae(unit(0, 9, 6), -0.2), x, 100.0)
    assert (found.num_directions, found.num_convex) == (0, 0)
    half = x.square().sum(1).mean().item() / 2
    assert found.scale.wide_limit == pytest.approx(half)
    assert found.scale.convex_path == found.scale.optimal_codes == pytest.approx(half)


def test_the_scale_needs_a_price_and_tokens(relu_sae, sample):
    sae, x = relu_sae(torch.eye(4).double()), torch.ones(3, 4).double()
    for lam, message in ((0.0, "lam > 0; got 0"), (-1.0, "lam must be"), (float("nan"), "lam")):
        with pytest.raises(ValueError, match=message):
            optimality_gap(sae, x, lam)
    with pytest.raises(ValueError, match="x must have shape"):
        optimality_gap(sae, x[:, :3], 0.1)
    with pytest.raises(ValueError, match="lam must be"):
        wide_limit(x, -0.1)


@pytest.mark.parametrize("x", [torch.full((3, 2), torch.nan), torch.zeros(0, 2), torch.ones(3)])
def test_the_wide_limit_refuses_what_are_no_tokens(x):
    with pytest.raises(ValueError, match="x must"):
        wide_limit(x, 1.0)


def test_a_share_is_relative_to_the_wide_limit():
    assert Scale(2.0, 2.5, 2.4, 2.2, 3.0).share == pytest.approx(0.5)
    assert OptimalityGap._fields[0] == "lam"
