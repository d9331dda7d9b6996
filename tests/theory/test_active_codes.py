import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize, nnls

from ssae.theory import optimal_codes
from ssae.theory.active_codes import best_codes
from tests.theory.problems import objective, problem


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_codes_on_an_active_set_are_nonnegative_least_squares_on_it(sample, lam):
    x, z, D = problem(sample, d_in=20, d_sae=14)
    given = z.toarray()
    found = best_codes(x, z, D, lam, [14], grows=False, tolerance=1e-10).toarray()
    assert np.array_equal(z.toarray(), given)
    for i in range(len(x)):
        own = z[i].indices
        if not len(own):  # scipy's aborts
            continue
        A, b = D[own].numpy(), x[i].numpy()
        # lam sum z completes the square: ||b - A^T z||^2 + 2 lam 1.z, with a row for the price.
        gram = np.linalg.cholesky(A @ A.T).T
        best, _ = nnls(gram, np.linalg.solve(gram.T, A @ b - lam))
        np.testing.assert_allclose(found[i, own], best, atol=1e-7)
        assert not np.delete(found[i], own).any()


@pytest.mark.parametrize("start", ["nothing", "random"])
def test_codes_that_may_grow_are_the_optimal_ones(sample, start):
    x, z, D = problem(sample, d_in=8, d_sae=30)
    z = z if start == "random" else sparse.csr_matrix(z.shape)
    found = best_codes(x, z, D, 0.4, [30], grows=True, tolerance=1e-9)
    np.testing.assert_allclose(found.toarray(), optimal_codes(x, D, 0.4).z, atol=1e-6)


def test_nested_codes_are_where_no_entry_can_improve(sample):
    ends = [4, 10, 16]
    x, z, D = problem(sample, d_in=9, d_sae=16, n=20)
    found = best_codes(x, z, D, 0.0, ends, grows=False, tolerance=1e-10).toarray()
    for i in range(len(x)):
        own = z[i].indices

        def cost(values, i=i, own=own):
            codes = np.zeros((1, 16))
            codes[0, own] = values
            return objective(x[i : i + 1].numpy(), codes, D.numpy(), 0.0, ends)

        best = minimize(cost, z[i].data, bounds=[(0, None)] * len(own), tol=1e-14)
        assert cost(found[i, own]) <= best.fun + 1e-8


def test_the_default_tolerance_costs_less_than_a_thousandth_of_the_objective(sample):
    x, z, D = problem(sample, d_in=8, d_sae=30, n=300)
    rough, fine = (
        objective(x.numpy(), best_codes(x, z, D, 0.2, [30], grows=True, **how).toarray(),
                  D.numpy(), 0.2, [30])
        for how in ({}, {"tolerance": 1e-10})
    )  # fmt: skip
    assert fine <= rough <= fine * (1 + 1e-3)
