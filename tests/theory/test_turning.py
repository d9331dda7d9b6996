import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import minimize

from ssae.theory.turning import statistics_of, total, turned
from tests.theory.problems import objective, problem


@pytest.mark.parametrize("ends", [[10], [3, 6, 10]])
def test_a_direction_turns_to_where_the_objective_is_least(sample, ends):
    x, z, D = problem(sample, n=40)
    lam = 0.2
    statistics = statistics_of(x, z, D, lam, ends)
    codes, before = z.toarray(), D.numpy()
    assert statistics.objective(before) == pytest.approx(
        objective(x.numpy(), codes, before, lam, ends)
    )
    after = turned(statistics, before)
    for j in (0, 5, 9):
        mixed = np.concatenate([after[:j], before[j:]])  # as it was when j's turn came

        def cost(direction, j=j, mixed=mixed):
            own = mixed.copy()
            own[j] = direction / np.linalg.norm(direction)
            return objective(x.numpy(), codes, own, lam, ends)

        tries = [
            minimize(cost, start).fun for start in np.random.default_rng(j).normal(size=(5, 7))
        ]
        assert cost(after[j]) == pytest.approx(min(tries), abs=1e-7)
    assert np.linalg.norm(after, axis=1) == pytest.approx(np.ones(10))


def test_every_share_of_the_way_lowers_the_objective(sample):
    x, z, D = problem(sample, n=40)
    statistics = statistics_of(x, z, D, 0.2, [10])
    values = [
        statistics.objective(turned(statistics, D.numpy(), np.full(10, share)))
        for share in (0.0, 0.3, 0.7, 1.0)
    ]
    assert values[0] == pytest.approx(statistics.objective(D.numpy()))
    assert values == sorted(values, reverse=True)
    assert values[3] < values[0] - 0.1


def test_a_latent_that_never_fires_stays(sample):
    x, z, D = problem(sample)
    z = z.toarray()
    z[:, 4] = 0
    found = turned(statistics_of(x, sparse.csr_matrix(z), D, 0.0, [10]), D.numpy())
    assert np.array_equal(found[4], D[4])


def test_statistics_add_up_over_parts(sample):
    x, z, D = problem(sample, n=50)
    whole = statistics_of(x, z, D, 0.1, [3, 10])
    parts = [statistics_of(x[i : i + 7], z[i : i + 7], D, 0.1, [3, 10]) for i in range(0, 50, 7)]
    added = total(parts)
    np.testing.assert_allclose(added.A.toarray(), whole.A.toarray())
    np.testing.assert_allclose(added.B, whole.B)
    np.testing.assert_allclose(added.noise, whole.noise)
    assert added.objective(D.numpy()) == pytest.approx(whole.objective(D.numpy()))


def test_directions_turn_where_tokens_agree_and_not_where_noise_pulls():
    """Two latents of a true dictionary; of a third the direction is wrong."""
    generator = torch.Generator().manual_seed(0)
    D = torch.eye(30, dtype=torch.float64)[:3]
    wrong = D.clone()
    wrong[2] = torch.nn.functional.normalize(
        D[2] + 0.2 * torch.eye(30, dtype=torch.float64)[7], dim=0
    )
    z = torch.rand(900, 3, generator=generator, dtype=torch.float64) + 1
    z *= torch.arange(900)[:, None] % 3 == torch.arange(3)
    x = z @ D + 0.5 * torch.randn(900, 30, generator=generator, dtype=torch.float64)
    codes = sparse.csr_matrix(z.numpy())
    shares = statistics_of(x, codes, wrong, 0.0, [3]).shares(wrong.numpy())
    assert shares[2] > 0.8
    assert shares[:2].max() < 0.5
