import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch

from ssae.theory import (
    candidates_of,
    convex,
    optimal_codes,
    solve_large_dictionary,
    wide_limit,
)
from ssae.theory.convex import largest_gamma
from tests.theory.problems import shared_tokens


def value_of(X: np.ndarray, A: np.ndarray, Z: np.ndarray, lam: float, gamma: float) -> float:
    """F, as it is written, of Z (n, num)."""
    total = np.square(X - Z @ A).sum() / 2 + lam * Z.sum()
    groups = sum(np.linalg.norm(Z[:, j]) for j in range(len(A)))
    return total / len(X) + gamma / len(X) ** 0.5 * groups


def by_cvxpy(X: np.ndarray, A: np.ndarray, lam: float, gamma: float) -> tuple[float, np.ndarray]:
    n = len(X)
    Z = cp.Variable((n, len(A)), nonneg=True)
    objective = cp.sum_squares(X - Z @ A) / (2 * n) + lam / n * cp.sum(Z)
    if gamma:
        objective += gamma / n**0.5 * cp.sum(cp.norm(Z, 2, axis=0))
    problem = cp.Problem(cp.Minimize(objective))
    with warnings.catch_warnings():  # of a last digit that it misses
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    Z = np.maximum(Z.value, 0)
    return value_of(X, A, Z, lam, gamma), Z


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return shared_tokens(30, 4, 5, noise=0.1)


def spanned(solution, num: int) -> np.ndarray:
    """Its codes of all candidates."""
    Z = np.zeros((len(solution.z), num))
    Z[:, solution.used] = solution.z
    return Z


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("gamma", [0.02, 0.08, 0.2])
def test_the_optimum_is_that_of_cvxpy_and_the_bound_is_below_it(tokens, lam, gamma):
    A = candidates_of(tokens)
    optimum, Z = by_cvxpy(tokens.numpy(), A.numpy(), lam, gamma)
    found = solve_large_dictionary(tokens, A, lam, gamma, tolerance=1e-7)
    ours = value_of(tokens.numpy(), A.numpy(), spanned(found, len(A)), lam, gamma)
    assert found.objective == pytest.approx(ours, rel=1e-10)
    assert found.bound <= optimum * (1 + 1e-9)
    assert found.objective >= optimum * (1 - 1e-8)
    assert found.objective <= optimum * (1 + 1.1e-7)
    assert 0 <= found.gap <= 1e-7
    sizes = np.linalg.norm(Z, axis=0)
    assert {int(j) for j in np.flatnonzero(sizes > 1e-2)} <= set(found.used.tolist())
    assert {int(j) for j in found.used} <= set(np.flatnonzero(sizes > 1e-6).tolist())
    assert found.num_used == len(found.used) < len(A) or gamma < 0.05
    np.testing.assert_allclose(spanned(found, len(A)), Z, atol=0.02)


@pytest.mark.parametrize("sweeps", [6, 12, 30])
def test_a_bound_is_one_wherever_the_search_ends(tokens, sweeps):
    A, lam, gamma = candidates_of(tokens), 0.1, 0.05
    optimum, _ = by_cvxpy(tokens.numpy(), A.numpy(), lam, gamma)
    found = solve_large_dictionary(tokens, A, lam, gamma, tolerance=0.0, max_sweeps=sweeps)
    assert found.num_sweeps == sweeps
    assert 0 < found.bound <= optimum * (1 + 1e-9)
    assert found.objective >= optimum * (1 - 1e-9)
    assert found.gap == pytest.approx(1 - found.bound / found.objective)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_every_residual_gives_a_bound(tokens, threshold):
    A, lam = candidates_of(tokens).numpy(), 0.15
    X, generator = tokens.numpy(), np.random.default_rng(0)
    problem = convex._Problem(X, A, lam, threshold)
    optimum, Z = by_cvxpy(X, A, lam, threshold / len(X) ** 0.5)
    best = (X - Z @ A).T
    for size in (0.0, 1e-3, 0.1, 1.0):
        R = best + size * generator.normal(size=best.shape)
        bound, scores = problem.certificate(R)
        assert bound <= optimum * (1 + 1e-8), size
        over = np.maximum(A @ R - lam, 0)
        np.testing.assert_allclose(scores, np.linalg.norm(over, axis=1), rtol=1e-12)
    assert problem.certificate(best)[0] == pytest.approx(optimum, rel=1e-5)


def test_more_candidates_than_a_working_set_are_all_considered(tokens, monkeypatch):
    monkeypatch.setattr(convex, "SMALLEST_WORKING_SET", 5)
    monkeypatch.setattr(convex, "BLOCK", 3)
    A = candidates_of(tokens)
    optimum, _ = by_cvxpy(tokens.numpy(), A.numpy(), 0.1, 0.05)
    found = solve_large_dictionary(tokens, A, 0.1, 0.05, tolerance=1e-7)
    assert found.objective == pytest.approx(optimum, rel=2e-7)


@pytest.mark.parametrize("lam", [0.1, 0.5])
def test_without_a_price_of_directions_their_own_are_the_wide_limit(tokens, lam):
    limit = wide_limit(tokens, lam)
    found = solve_large_dictionary(tokens, candidates_of(tokens), lam, 0.0, tolerance=1e-8)
    assert found.objective == pytest.approx(limit.objective, rel=2e-8)
    assert found.bound <= limit.objective * (1 + 1e-12)
    assert found.num_used <= limit.num_directions


def test_without_a_price_of_directions_codes_are_optimal_codes(tokens, unit):
    A = unit(1, 12, 5)
    found = solve_large_dictionary(tokens, A, 0.2, 0.0, tolerance=1e-9)
    codes = optimal_codes(tokens, A, 0.2).z.numpy()
    expected = value_of(tokens.numpy(), A.numpy(), codes, 0.2, 0.0)
    assert found.objective == pytest.approx(expected, rel=1e-8)


def test_from_the_largest_gamma_on_no_direction_is_used(tokens):
    A, lam = candidates_of(tokens), 0.1
    top = largest_gamma(tokens, A, lam)
    X, D = tokens.numpy(), A.numpy()
    by_hand = max(
        np.sqrt(sum(max(0.0, X[i] @ D[j] - lam) ** 2 for i in range(30))) for j in range(30)
    )
    assert top == pytest.approx(by_hand / 30**0.5, rel=1e-12)
    above, below = (
        solve_large_dictionary(tokens, A, lam, factor * top, tolerance=1e-9)
        for factor in (1.001, 0.98)
    )
    assert above.num_used == 0
    assert above.z.shape == (30, 0)
    assert above.objective == pytest.approx(np.square(X).sum() / 60, rel=1e-12)
    assert below.num_used > 0


def test_a_start_from_another_gamma_gives_the_same(tokens):
    A = candidates_of(tokens)
    cold = solve_large_dictionary(tokens, A, 0.1, 0.05, tolerance=1e-7)
    near = solve_large_dictionary(tokens, A, 0.1, 0.051, tolerance=1e-7)
    kept = near.z.copy()
    warm = solve_large_dictionary(tokens, A, 0.1, 0.05, initial=near, tolerance=1e-7)
    assert warm.objective == pytest.approx(cold.objective, rel=2e-7)
    np.testing.assert_array_equal(near.z, kept)
    again = solve_large_dictionary(tokens, A, 0.1, 0.05, initial=cold, tolerance=1e-7)
    assert again.num_sweeps == 0


def test_the_norm_of_candidates_does_not_matter(tokens):
    A = candidates_of(tokens)
    scales = torch.linspace(0.01, 30, 30).double()[:, None]
    one, other = (
        solve_large_dictionary(tokens, rows, 0.1, 0.05, tolerance=1e-7) for rows in (A, scales * A)
    )
    assert one.objective == pytest.approx(other.objective, rel=2e-7)


def test_tokens_of_norm_zero_and_candidates_without_a_direction_change_nothing(tokens):
    A = candidates_of(tokens)
    x = torch.cat([tokens, torch.zeros(2, 5)])
    assert len(candidates_of(x)) == 30
    wide = torch.cat([A, torch.zeros(3, 5)])
    found = solve_large_dictionary(x, wide, 0.1, 0.05 * (30 / 32) ** 0.5, tolerance=1e-8)
    expected = solve_large_dictionary(tokens, A, 0.1, 0.05, tolerance=1e-8)
    assert 32 * found.objective == pytest.approx(30 * expected.objective, rel=1e-7)
    assert not found.z[30:].any()
    assert found.used.max() < 30
    silent = solve_large_dictionary(torch.zeros(4, 5), A, 0.1, 0.05)
    assert (silent.objective, silent.num_used, silent.gap) == (0, 0, 0)


def test_candidates_are_those_of_tokens_and_of_saes(tokens, relu_sae, unit):
    sae = relu_sae(3 * unit(2, 8, 5))
    found = candidates_of(tokens, [sae, sae])
    assert found.shape == (46, 5)
    torch.testing.assert_close(found[:30], tokens / tokens.norm(dim=1, keepdim=True))
    torch.testing.assert_close(found[30:38], unit(2, 8, 5))
    assert torch.equal(found[38:], found[30:38])
    assert torch.equal(candidates_of(saes=[sae]), found[30:38])
    assert not found.requires_grad
    for nothing in ({}, {"saes": []}):
        with pytest.raises(ValueError, match="candidates are directions of tokens"):
            candidates_of(**nothing)


def test_a_perfect_fit_without_prices_ends(tokens):
    found = solve_large_dictionary(tokens, candidates_of(tokens), 0.0, 0.0)
    assert found.objective < 1e-12
    assert found.num_sweeps < 5000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": -1.0}, "lam must be"),
        ({"lam": float("nan")}, "lam must be"),
        ({"gamma": -1.0}, "finite number of at least 0"),
        ({"gamma": float("inf")}, "finite number of at least 0"),
        ({"x": torch.ones(3, 4)}, r"x must have shape \(n, 5\)"),
        ({"x": torch.full((3, 5), torch.nan)}, "x must be finite"),
        ({"candidates": torch.full((3, 5), torch.nan)}, "W_dec must be a finite"),
        pytest.param(
            {"gamma": -1.0},
            "gamma must be",
        ),
    ],
)
def test_what_is_no_problem_is_refused(tokens, changes, message):
    given = {"x": tokens, "candidates": torch.eye(5), "lam": 0.1, "gamma": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        solve_large_dictionary(**given)
