import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from ssae.theory import coded, optimal_codes, residual_structure
from ssae.theory.residual import ResidualSums, in_span


def projections(drawn) -> np.ndarray:
    """Of r on the span of each token's active directions, one pseudo-inverse per token."""
    _, z, D, r = drawn.arrays
    found = np.zeros_like(r)
    for i in range(len(r)):
        own = D[z[i] > 0]
        if len(own):
            found[i] = r[i] @ np.linalg.pinv(own) @ own
    return found


@pytest.mark.parametrize("d_sae", [5, 10, 30])
def test_the_part_in_the_span_is_that_of_a_pseudo_inverse(sample, d_sae):
    drawn = sample(0, d_sae=d_sae)  # 30: more active directions than dimensions on most tokens
    expected = projections(drawn)
    np.testing.assert_allclose(in_span(coded(*drawn)), expected, atol=1e-8)
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("angle", [1e-2, 1e-4])
def test_directions_that_are_nearly_the_same_span_what_they_span(sample, angle):
    drawn = sample(1, d_sae=6, rate=0.9)
    W_dec = drawn.W_dec.clone()
    W_dec[3] = W_dec[0] + angle * W_dec[3]
    drawn = drawn._replace(W_dec=W_dec)
    np.testing.assert_allclose(in_span(coded(*drawn)), projections(drawn), atol=1e-6)


def test_a_direction_twice_spans_no_more(sample):
    drawn = sample(2, d_sae=5)
    twice = drawn._replace(
        z=torch.cat([drawn.z / 2, drawn.z / 2], 1), W_dec=torch.cat([drawn.W_dec, drawn.W_dec])
    )
    once, double = in_span(coded(*drawn)), in_span(coded(*twice))
    torch.testing.assert_close(double, once, rtol=0, atol=1e-9)


def test_of_optimal_codes_the_part_in_the_span_is_what_the_price_takes(sample):
    # r = lam D_S^T (D_S D_S^T)^-1 1 + r_perp, so the first part depends on the active set alone.
    drawn, lam = sample(3, d_in=9, d_sae=7), 0.3
    z = optimal_codes(drawn.x, drawn.W_dec, lam, tolerance=1e-12).z
    batch = coded(drawn.x, z, drawn.W_dec / drawn.W_dec.norm(dim=1, keepdim=True))
    D, found = batch.directions.numpy(), in_span(batch).numpy()
    for i in range(len(z)):
        own = D[z[i].numpy() > 0]
        expected = lam * own.T @ np.linalg.solve(own @ own.T, np.ones(len(own)))
        np.testing.assert_allclose(found[i], expected, atol=1e-9)


def structure_by_hand(drawn):
    x, _, _, r = drawn.arrays
    inside = projections(drawn)
    perp = r - inside
    share = np.square(inside).sum() / np.square(r).sum()
    values = np.sort(np.linalg.eigvalsh(np.cov(perp.T, bias=True)))[::-1]
    spectrum = values / values.sum()
    half = len(x) // 2
    error = total = 0.0
    for train, test in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        model = LinearRegression().fit(x[train], r[train])
        error += np.square(r[test] - model.predict(x[test])).sum()
        total += np.square(r[test] - r[train].mean(0)).sum()
    return share, spectrum, 1 - error / total, np.square(perp).sum(1)


@pytest.mark.parametrize("seed", range(3))
def test_shares_spectrum_and_regression_are_those_by_hand(sample, seed):
    drawn = sample(seed, n=81)
    share, spectrum, linear, errors = structure_by_hand(drawn)
    ids = torch.randint(0, 9, (81,), generator=torch.Generator().manual_seed(seed))
    ids[0] = 11  # 9 and 10 never occur
    found = residual_structure(*drawn, ids)
    assert found.shrinkage_share == pytest.approx(share, rel=1e-8)
    assert found.orthogonal_share == pytest.approx(1 - share, rel=1e-8)
    np.testing.assert_allclose(found.spectrum, spectrum, atol=1e-9)
    assert found.effective_dimensions == pytest.approx(1 / np.square(spectrum).sum(), rel=1e-8)
    assert found.linear_share == pytest.approx(linear, abs=1e-6)
    assert found.linear_share > 0.1  # codes that are optimal for nothing leave much of x
    by_type = [errors[ids.numpy() == v].sum() for v in range(12)]
    np.testing.assert_allclose(found.type_errors, by_type, atol=1e-8)
    assert found.type_counts.tolist() == np.bincount(ids, minlength=12).tolist()
    vectors = found.components.numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(7), atol=1e-10)
    perp = drawn.arrays[3] - projections(drawn)
    rotated = np.cov((perp @ vectors.T).T, bias=True)
    np.testing.assert_allclose(np.diag(rotated) / np.trace(rotated), spectrum, atol=1e-9)


def test_batch_by_batch_is_all_at_once_and_lists_are_dense_codes(sample, listed):
    drawn = sample(4, n=50)
    ids = torch.arange(50) % 4
    expected = residual_structure(*drawn, ids)
    sums, half = ResidualSums(7, 4), torch.arange(50) >= 25
    for piece in (slice(0, 3), slice(3, 40), slice(40, 50)):
        z = listed(drawn.z[piece], drawn.z[piece] == 0)
        sums.update(coded(drawn.x[piece], z, drawn.W_dec), half[piece], ids[piece])
    found = sums.result()
    for name, value in expected._asdict().items():
        own = getattr(found, name)
        if name == "components":  # their signs are free
            own, value = own.abs(), value.abs()
        np.testing.assert_allclose(own, value, atol=1e-8, err_msg=name)


def test_a_missing_concept_is_the_one_dimension_that_is_left(unit):
    generator = torch.Generator().manual_seed(0)
    D = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    fires = torch.rand(400, 6, generator=generator) < 0.3
    strength = fires * (1 + torch.rand(400, 6, generator=generator, dtype=torch.float64))
    x = strength @ D[:6] + 0.01 * torch.randn(400, 12, generator=generator, dtype=torch.float64)
    known = optimal_codes(x, D[:5], 0.1).z
    found = residual_structure(x, known, D[:5])
    assert found.effective_dimensions < 1.1
    assert found.spectrum[0] > 0.95
    assert abs(found.components[0] @ D[5]) > 0.999
    # With nothing missing what is left is noise in the six dimensions that no direction has.
    whole = residual_structure(x, optimal_codes(x, D[:6], 0.1).z, D[:6])
    assert 5 < whole.effective_dimensions < 12
    assert whole.orthogonal_share < 0.2 * found.orthogonal_share


def test_a_residual_that_is_linear_in_x_is_found_and_noise_is_not(sample):
    x = sample(5, n=400).x
    nothing = torch.zeros(400, 3, dtype=torch.float64)
    D = sample(5, d_sae=3).W_dec
    assert residual_structure(x, nothing, D).linear_share == pytest.approx(1, abs=1e-6)
    # x @ D^T is decoded except for noise that x does not hold: x = z @ D + noise, D of full rank.
    generator = torch.Generator().manual_seed(1)
    W = 30 * torch.eye(7, dtype=torch.float64)
    z = torch.rand(400, 7, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, 7, generator=generator, dtype=torch.float64)
    found = residual_structure(z @ W + noise, z, W)
    assert -0.1 < found.linear_share < 0.05


def test_latents_that_never_fire_and_tokens_of_norm_zero_change_no_share(sample):
    drawn = sample(6)
    expected = residual_structure(*drawn)
    z = torch.cat([drawn.z, torch.zeros(60, 3, dtype=torch.float64)], 1)
    W_dec = torch.cat([drawn.W_dec, drawn.W_dec[:3] + 1])
    found = residual_structure(drawn.x, z, W_dec)
    assert found.shrinkage_share == pytest.approx(expected.shrinkage_share, rel=1e-12)
    torch.testing.assert_close(found.spectrum, expected.spectrum)
    padded = (torch.cat([part, torch.zeros_like(part[:5])]) for part in drawn[:2])
    found = residual_structure(*padded, drawn.W_dec)
    assert found.shrinkage_share == pytest.approx(expected.shrinkage_share, rel=1e-12)
    silent = residual_structure(drawn.x, torch.zeros_like(drawn.z), drawn.W_dec)
    assert (silent.shrinkage_share, silent.orthogonal_share) == (0, 1)
    assert silent.type_errors.shape == (0,)


def test_one_token_has_no_linear_share(sample):
    drawn = sample(7, n=1)
    found = residual_structure(*drawn)
    assert np.isnan(found.linear_share)
    assert 0 < found.shrinkage_share <= 1


def test_where_nothing_is_orthogonal_there_are_no_effective_dimensions():
    found = residual_structure(torch.rand(20, 3) + 1, torch.rand(20, 3), torch.eye(3))
    assert found.orthogonal_share == 0
    assert not found.effective_dimensions > 3


def test_what_is_no_input_is_refused(sample):
    drawn = sample(0)
    with pytest.raises(ValueError, match="z must have shape"):
        residual_structure(drawn.x, drawn.z[:, :5], drawn.W_dec)
    with pytest.raises(ValueError, match="x must be finite"):
        residual_structure(drawn.x * torch.nan, drawn.z, drawn.W_dec)
    with pytest.raises(ValueError, match="nowhere negative"):
        residual_structure(drawn.x, -drawn.z, drawn.W_dec)


@pytest.mark.parametrize("ids", [torch.zeros(59).long(), torch.full((60,), -1)])
def test_token_ids_that_are_none_are_refused(sample, ids):
    with pytest.raises(ValueError, match="token_ids"):
        residual_structure(*sample(0), ids)
