import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import Lasso

from ssae.theory import amortisation_gap, coded, codes, optimal_codes


def lasso(x: np.ndarray, D: np.ndarray, lam: float) -> np.ndarray:
    """Scikit-learn's objective is ||.||^2 / (2 d_in) + alpha ||z||_1: a sample is a dimension."""
    model = Lasso(
        alpha=lam / D.shape[1], positive=True, fit_intercept=False, tol=1e-14, max_iter=100_000
    )
    return np.stack([model.fit(D.T, row).coef_ for row in x])


def objectives(x: np.ndarray, z: np.ndarray, D: np.ndarray, lam: float) -> np.ndarray:
    return np.square(x - z @ D).sum(1) / 2 + lam * z.sum(1)


def violations(x: np.ndarray, z: np.ndarray, D: np.ndarray, lam: float) -> np.ndarray:
    """Of the KKT conditions, entry by entry."""
    found = np.zeros(len(x))
    for i in range(len(x)):
        for j in range(len(D)):
            slack = D[j] @ (x[i] - z[i] @ D) - lam
            found[i] = max(found[i], abs(slack) if z[i, j] > 0 else slack)
    return found / np.linalg.norm(x, axis=1)


@pytest.mark.parametrize("lam", [0.2, 0.5, 1.5])
@pytest.mark.parametrize(("d_in", "d_sae"), [(12, 8), (8, 24)])
def test_optimal_codes_are_those_of_scikit_learn(sample, lam, d_in, d_sae):
    drawn = sample(0, n=25, d_in=d_in, d_sae=d_sae)
    x, _, D, _ = drawn.arrays
    found = optimal_codes(drawn.x, drawn.W_dec, lam)
    expected = lasso(x, D, lam)
    np.testing.assert_allclose(found.z, expected, atol=2e-6)
    ours, theirs = (objectives(x, np.asarray(z), D, lam) for z in (found.z, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    if lam < 1:
        assert (expected > 0).sum() > 25


def test_without_a_price_codes_are_nonnegative_least_squares(sample):
    drawn = sample(1, n=20, d_in=9, d_sae=6)
    x, _, D, _ = drawn.arrays
    expected = np.stack([nnls(D.T, row)[0] for row in x])
    np.testing.assert_allclose(optimal_codes(drawn.x, drawn.W_dec, 0.0).z, expected, atol=1e-6)


def test_of_an_orthonormal_dictionary_codes_are_shrunk_projections(sample):
    x = sample(2, n=40, d_in=8).x
    D = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).Q[
        :5
    ]
    found = optimal_codes(x, D, 0.3)
    torch.testing.assert_close(found.z, (x @ D.T - 0.3).clamp_min(0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("coherence", [0.0, 0.95])
def test_the_kkt_conditions_hold_to_the_tolerance_and_are_reported_as_they_are(sample, coherence):
    # Directions that share one, as those of trained SAEs do, are the hard case.
    drawn = sample(3, n=30, d_in=10, d_sae=30)
    W_dec = (1 - coherence) * drawn.W_dec + coherence * drawn.W_dec[:1]
    _, _, D, _ = drawn._replace(W_dec=W_dec).arrays
    found = optimal_codes(drawn.x, W_dec, 0.2)
    expected = violations(drawn.x.numpy(), found.z.numpy(), D, 0.2)
    assert expected.max() <= 1.01e-8
    np.testing.assert_allclose(found.kkt, expected, rtol=0.05, atol=1e-14)
    assert (found.z >= 0).all()


def test_the_kkt_violation_of_any_codes_is_that_of_a_loop(sample):
    drawn = sample(4)
    x, z, D, _ = drawn.arrays
    found = codes.kkt_violation(drawn.x, torch.tensor(z), torch.tensor(D), 0.3)
    np.testing.assert_allclose(found, violations(x, z, D, 0.3), rtol=1e-10)


def test_the_norms_of_directions_do_not_matter(sample):
    drawn = sample(5, n=15)
    ours = optimal_codes(drawn.x, drawn.W_dec, 0.2).z
    unit = drawn.W_dec / drawn.W_dec.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours, optimal_codes(drawn.x, unit, 0.2).z, rtol=0, atol=1e-6)


def test_a_start_at_the_optimum_takes_fewer_steps_to_the_same_codes(sample):
    drawn = sample(6, n=30, d_in=12, d_sae=10)  # fewer directions than dimensions: one optimum
    cold = optimal_codes(drawn.x, drawn.W_dec, 0.2)
    near = optimal_codes(drawn.x, drawn.W_dec, 0.201).z
    warm = optimal_codes(drawn.x, drawn.W_dec, 0.2, initial=near)
    far = optimal_codes(drawn.x, drawn.W_dec, 0.2, initial=torch.full_like(near, 3.0))
    for other in (warm, far):
        torch.testing.assert_close(other.z, cold.z, rtol=0, atol=1e-6)
    assert optimal_codes(drawn.x, drawn.W_dec, 0.2, initial=cold.z).num_steps == 0
    assert warm.num_steps < cold.num_steps


def test_tokens_in_pieces_are_those_all_at_once(sample, monkeypatch):
    drawn = sample(7, n=23)
    whole = optimal_codes(drawn.x, drawn.W_dec, 0.2, initial=drawn.z)
    monkeypatch.setattr(codes, "CHUNK_BYTES", 8 * 10 * 5)  # five tokens
    pieces = optimal_codes(drawn.x, drawn.W_dec, 0.2, initial=drawn.z)
    torch.testing.assert_close(pieces.z, whole.z, rtol=0, atol=1e-9)
    assert pieces.num_steps == whole.num_steps
    assert len(pieces.kkt) == 23


def test_a_token_that_is_done_does_not_wait_for_the_others(sample):
    drawn = sample(8, n=20)
    alone = [optimal_codes(drawn.x[i : i + 1], drawn.W_dec, 0.2) for i in range(20)]
    together = optimal_codes(drawn.x, drawn.W_dec, 0.2)
    torch.testing.assert_close(together.z, torch.cat([one.z for one in alone]), rtol=0, atol=1e-9)
    assert together.num_steps == max(one.num_steps for one in alone)


def test_tokens_of_norm_zero_and_tokens_below_the_price_have_no_codes(sample):
    drawn = sample(9, n=6)
    x = drawn.x.clone()
    x[2] = 0
    x[4] *= 0.1 / x[4].norm()
    for initial in (None, drawn.z):
        found = optimal_codes(x, drawn.W_dec, 0.2, initial=initial)
        assert not found.z[[2, 4]].any()
        assert found.kkt[2] == 0
        assert not optimal_codes(x, drawn.W_dec, 0.0, initial=initial).z[2].any()
        assert found.kkt.max() <= 1e-8


def test_steps_end_where_they_are_told_to(sample):
    drawn = sample(10, n=10, d_in=10, d_sae=40)
    found = optimal_codes(drawn.x, drawn.W_dec, 0.05, max_steps=20)
    assert found.num_steps == 20
    assert found.kkt.max() > 1e-8
    _, _, D, _ = drawn.arrays
    expected = violations(drawn.x.numpy(), found.z.numpy(), D, 0.05)
    np.testing.assert_allclose(found.kkt, expected, rtol=1e-6, atol=1e-14)
    x = drawn.x.numpy()
    assert (objectives(x, found.z.numpy(), D, 0.05) < np.square(x).sum(1) / 2).all()
    none = optimal_codes(drawn.x, drawn.W_dec, 0.05, max_steps=0)
    assert not none.z.any()


@pytest.mark.parametrize("lam", [0.0, 0.05, 0.2])
def test_of_a_coherent_dictionary_codes_of_nearly_d_in_latents_are_those_of_scikit_learn(
    sample, lam
):
    drawn = sample(14, n=40, d_in=24, d_sae=600)
    x, _, D, _ = drawn.arrays
    found = optimal_codes(drawn.x, drawn.W_dec, lam)
    assert violations(x, found.z.numpy(), D, lam).max() <= 1.01e-8
    assert found.num_steps < 150
    if lam == 0.2:  # of less scikit-learn's do not converge
        ours, theirs = (objectives(x, z, D, lam) for z in (found.z.numpy(), lasso(x, D, lam)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)
        assert 15 < (found.z > 0).sum(1).double().mean() <= 24


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-6])
@pytest.mark.parametrize("start", ["nothing", "everything", "a little of everything"])
def test_directions_twice_or_nearly_so_are_no_obstacle(sample, apart, start):
    drawn = sample(16, n=40, d_in=16, d_sae=100)
    twin = drawn.W_dec + apart * drawn.W_dec.roll(1, 0)
    W_dec = torch.cat([drawn.W_dec, twin])
    scale = {"nothing": 0.0, "everything": 3.0, "a little of everything": 1e-3}[start]
    initial = torch.full((40, 200), scale).double()
    found = optimal_codes(drawn.x, W_dec, 0.2, initial=initial)
    _, _, D, _ = drawn._replace(z=initial, W_dec=W_dec).arrays
    x = drawn.x.numpy()
    assert violations(x, found.z.numpy(), D, 0.2).max() <= 1.01e-8
    single = D[:100]  # as good, up to the few more directions
    expected = objectives(x, lasso(x, single, 0.2), single, 0.2)
    ours = objectives(x, found.z.numpy(), D, 0.2)
    np.testing.assert_allclose(ours, expected, rtol=max(1e-8, 10 * apart))


def test_a_direction_twice_costs_nothing(sample):
    drawn = sample(11, n=15)
    single = optimal_codes(drawn.x, drawn.W_dec, 0.2).z
    double = optimal_codes(drawn.x, torch.cat([drawn.W_dec, drawn.W_dec[:3]]), 0.2)
    assert double.kkt.max() <= 1e-8
    joined = double.z[:, :10].clone()
    joined[:, :3] += double.z[:, 10:]
    torch.testing.assert_close(joined, single, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": -0.1}, "lam must be a finite number of at least 0"),
        ({"lam": float("nan")}, "lam must be"),
        ({"lam": float("inf")}, "lam must be"),
        ({"x": torch.ones(4, 3)}, r"x must have shape \(n, 7\)"),
        ({"x": torch.full((4, 7), torch.nan)}, "x must be finite"),
        ({"W_dec": torch.full((10, 7), torch.inf)}, "W_dec must be"),
        ({"initial": torch.ones(60, 9)}, r"initial must be finite nonnegative codes \(60, 10\)"),
        ({"initial": -torch.ones(60, 10)}, "initial must be finite"),
        ({"initial": torch.full((60, 10), torch.nan)}, "initial must be"),
        ({"initial": torch.full((60, 10), torch.inf)}, "initial must be"),
    ],
)
def test_what_is_no_input_is_refused(sample, changes, message):
    drawn = sample(0)
    with pytest.raises(ValueError, match=message):
        optimal_codes(**{"x": drawn.x, "W_dec": drawn.W_dec, "lam": 0.1} | changes)


def test_a_start_that_is_no_tensor_is_refused(sample):
    drawn = sample(0)
    with pytest.raises(TypeError, match="initial must be a torch.Tensor, got numpy.ndarray"):
        optimal_codes(drawn.x, drawn.W_dec, 0.1, initial=np.ones((60, 10)))


@pytest.mark.parametrize("lam", [0.05, 0.5])
def test_the_amortisation_gap_is_what_the_encoder_loses(sample, relu_sae, topk_sae, lam):
    drawn = sample(12, n=30)
    b_dec = torch.linspace(-1, 1, 7).double()
    for sae in (relu_sae(drawn.W_dec, -0.5, b_dec=b_dec), topk_sae(drawn.W_dec, 3, b_dec=b_dec)):
        found = amortisation_gap(sae, drawn.x, lam)
        with torch.no_grad():
            z = (sae.encode(drawn.x) * sae.W_dec.norm(dim=1)).numpy()
        x, (_, _, D, _) = (drawn.x - b_dec).numpy(), drawn.arrays
        best = lasso(x, D, lam)
        assert found.objective == pytest.approx(objectives(x, z, D, lam).mean(), rel=1e-10)
        assert found.optimal == pytest.approx(objectives(x, best, D, lam).mean(), rel=1e-8)
        assert found.l0 == pytest.approx((z > 0).sum(1).mean())
        assert found.optimal_l0 == pytest.approx((best > 1e-9).sum(1).mean(), abs=1e-9)
        assert found.gap == found.objective - found.optimal > 0.01
        assert found.kkt <= 1e-8


def test_an_encoder_that_is_optimal_loses_nothing(sample, relu_sae):
    # Of orthonormal directions the ReLU of x . d - lam is the optimum itself.
    x = sample(13, n=30, d_in=6).x
    D = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()).Q
    found = amortisation_gap(relu_sae(D, -0.4), x, 0.4)
    assert found.gap == pytest.approx(0, abs=1e-10)
    assert found.l0 == found.optimal_l0 > 0
    worse = coded(x, (x @ D.T - 0.3).clamp_min(0), D).objective(0.4).mean()
    assert worse > found.objective + 1e-3


def test_a_dictionary_without_directions_has_codes_without_latents(sample):
    found = optimal_codes(sample(0).x, torch.zeros(0, 7), 0.1)
    assert found.z.shape == (60, 0)


@pytest.mark.parametrize("lam", [1e-300, 1e-5, 1e-3])
def test_a_small_price_is_no_long_way(lam):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 48, generator=generator, dtype=torch.float64)
    D = torch.nn.functional.normalize(
        torch.randn(600, 48, generator=generator, dtype=torch.float64)
    )
    found = optimal_codes(x, D, lam)
    assert found.kkt.max() <= 1e-8
    assert (found.z > 0).sum(1).max() <= 60  # hardly more than dimensions
    direct = optimal_codes(x, D, lam, initial=torch.zeros(3, 600))
    value, other = ((x - z @ D).square().sum(1) / 2 + lam * z.sum(1) for z in (found.z, direct.z))
    torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-14)
    if lam > 1e-100:
        assert found.num_steps < direct.num_steps


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_that_none_meets_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must lie in"):
        optimal_codes(torch.eye(2), torch.eye(2), 0.1, tolerance=tolerance)


def test_the_gap_of_chunks_is_that_of_all_tokens(relu_sae, sample, monkeypatch):
    drawn = sample(9, n=50)
    sae = relu_sae(drawn.W_dec, -0.3)
    whole = amortisation_gap(sae, drawn.x, 0.2)
    monkeypatch.setattr("ssae.theory.codes.CHUNK_BYTES", 8 * 10 * 7)
    assert amortisation_gap(sae, drawn.x, 0.2) == pytest.approx(whole, rel=1e-10, abs=1e-8)
