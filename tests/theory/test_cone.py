import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from ssae.theory import cone, cone_condition
from ssae.theory.coded import as_csc
from ssae.theory.cone import project_on_cone


def prices(z: np.ndarray, D: np.ndarray, j: int) -> np.ndarray:
    """w_j of every other latent, 0 at j."""
    w = np.array([(1 - D[j] @ D[k]) * z[:, k].sum() for k in range(len(D))])
    w[j] = 0
    return w


def left_over(z: np.ndarray, D: np.ndarray, j: int, others: list[int]) -> np.ndarray:
    """e_j of some other latents, with all tokens at once: (d_sae,), 0 at j."""
    w = prices(z, D, j)[others]
    generators = z[z[:, j] == 0][:, others]
    weights = nnls(generators.T, w)[0] if len(generators) else np.zeros(0)
    found = np.zeros(len(D))
    found[others] = w - generators.T @ weights
    return found


def exclusive(seed: int, n: int = 400, rate: float = 0.25):
    """Six concepts in general position: 1 only where 0 fires, the others independent."""
    generator = np.random.default_rng(seed)
    on = generator.random((n, 6)) < rate
    on[:, 1] &= on[:, 0]
    z = on * generator.uniform(0.5, 1.5, (n, 6))
    D = generator.normal(size=(6, 9))
    return z, D / np.linalg.norm(D, axis=1, keepdims=True)


def partners_of(z: np.ndarray, j: int) -> list[int]:
    return [k for k in range(z.shape[1]) if k != j and (z[z[:, j] > 0, k] > 0).any()]


@pytest.mark.parametrize("seed", range(4))
def test_the_condition_is_that_of_one_fit_of_all_tokens(sample, seed):
    drawn = sample(seed, n=50, d_in=6, d_sae=8, rate=0.5)
    _, z, D, _ = drawn.arrays
    z[:, 1] *= z[:, 0] > 0
    z[:, [3, 4]] *= z[:, [2]] > 0
    found = cone_condition(torch.tensor(z), drawn.W_dec)
    assert [one.latent for one in found] == list(range(8))
    violated = 0
    for one in found:
        j = one.latent
        assert one.partners.tolist() == partners_of(z, j)
        expected, w = left_over(z, D, j, partners_of(z, j)), prices(z, D, j)[one.partners]
        assert one.residual == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(w), abs=1e-6)
        np.testing.assert_allclose(one.gains, expected[one.partners] / w.max(), atol=1e-6)
        violated += one.residual > 1e-3
    assert 2 <= violated < 8


@pytest.mark.parametrize("seed", range(3))
def test_a_child_that_never_fires_without_its_parent_violates_and_independence_does_not(seed):
    z, D = exclusive(seed)
    found = {one.latent: one for one in cone_condition(torch.tensor(z), torch.tensor(D))}
    assert found[0].residual > 0.05
    assert found[0].violators.tolist() == [1]
    for j in range(1, 6):
        assert found[j].residual < 1e-6, j
        assert found[j].violators.tolist() == []


def exact_codes(x: np.ndarray, D: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(D.T, x.T, rcond=None)[0].T


@pytest.mark.parametrize("seed", range(3))
def test_the_row_that_is_left_over_is_a_turn_that_keeps_codes_exact_and_makes_them_cheaper(seed):
    z, D = exclusive(seed)
    [one] = cone_condition(torch.tensor(z), torch.tensor(D), latents=[0])
    row = np.zeros(6)
    row[one.partners] = one.gains
    assert (z[z[:, 0] == 0] @ row).max() < 1e-6  # admissible: silent codes of 0 only grow
    x, t = z @ D, 1e-3
    turned = D + t * row[:, None] * D[0]
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    codes = exact_codes(x, turned)
    np.testing.assert_allclose(codes @ turned, x, atol=1e-10)
    assert codes.min() > -1e-8
    gain = (z.sum() - codes.sum()) / t
    expected = row @ prices(z, D, 0)
    assert expected > 1
    assert gain == pytest.approx(expected, rel=0.02)  # to first order in t


@pytest.mark.parametrize("seed", range(3))
def test_where_the_condition_holds_no_admissible_turn_makes_codes_cheaper(seed):
    z, D = exclusive(seed, n=120)
    z = np.delete(z, 1, 1)  # without the child
    D = np.delete(D, 1, 0)
    assert max(one.residual for one in cone_condition(torch.tensor(z), torch.tensor(D))) < 1e-6
    generator, x, t = np.random.default_rng(seed), z @ D, 1e-4
    for _ in range(20):
        turns = np.zeros((5, 5))
        for j in range(5):
            row = generator.normal(size=5)
            row[j] = 0
            # Shift it until it is admissible: codes on which j is silent may not fall.
            silent = z[z[:, j] == 0]
            reach = silent.sum(1) > 0
            least = (silent[reach] @ row / silent[reach].sum(1)).max()
            row -= max(0.0, least)
            row[j] = 0
            assert (silent @ row).max() <= 1e-12
            turns[j] = row
        turned = D + t * turns.T @ D
        turned /= np.linalg.norm(turned, axis=1, keepdims=True)
        codes = exact_codes(x, turned)
        np.testing.assert_allclose(codes @ turned, x, atol=1e-10)
        assert codes.min() > -1e-6
        assert codes.sum() > z.sum() - 1e-6


@pytest.mark.parametrize("max_partners", [1, 3])
def test_few_partners_give_a_violation_that_is_one_of_the_whole_problem(sample, max_partners):
    drawn = sample(5, n=40, d_in=6, d_sae=10, rate=0.3)
    _, z, D, _ = drawn.arrays
    z[:, 1] *= z[:, 0] > 0
    z[:, [3, 4]] *= z[:, [2]] > 0
    found = cone_condition(torch.tensor(z), drawn.W_dec, max_partners=max_partners)
    violated = 0
    for one in found:
        j, on = one.latent, z[:, one.latent] > 0
        together = z[on].sum(0) / z.sum(0)
        together[j] = 0
        assert set(one.partners) == set(np.argsort(-together)[:max_partners])
        row = np.zeros(10)
        row[one.partners] = one.gains
        assert (z[~on] @ row).max() < 1e-6
        if one.residual > 1e-4:
            violated += 1
            assert row @ prices(z, D, j) > 0
            others = [k for k in range(10) if k != j]
            assert np.linalg.norm(left_over(z, D, j, others)) > 1e-4 * prices(z, D, j).max()
    assert violated


def test_latents_of_few_tokens_are_no_partners():
    z, D = exclusive(0)
    z[5:, 2] = 0
    z[:5, [0, 2]] = 1.0  # 2 fires on five tokens, all of them with 0, by chance
    W_dec = torch.tensor(D)
    [one] = cone_condition(torch.tensor(z), W_dec, latents=[0])
    assert 2 in one.violators
    [one] = cone_condition(torch.tensor(z), W_dec, latents=[0], min_fires=6)
    assert one.violators.tolist() == [1]
    assert 2 not in one.partners


def test_latents_without_partners_are_left_out():
    z = torch.eye(4).repeat(3, 1)
    z[:, 3] = 0
    assert cone_condition(z, torch.eye(4)) == []
    assert cone_condition(z, torch.eye(4), latents=[0, 3]) == []
    assert cone_condition(torch.zeros(5, 4), torch.eye(4)) == []


def test_the_order_of_the_latents_asked_for_is_kept(sample):
    drawn = sample(6)
    whole = {one.latent: one for one in cone_condition(drawn.z, drawn.W_dec)}
    found = cone_condition(drawn.z, drawn.W_dec, latents=[7, 2])
    assert [one.latent for one in found] == [7, 2]
    for one in found:
        np.testing.assert_array_equal(one.gains, whole[one.latent].gains)


def test_violators_are_sorted_by_what_they_gain():
    one = cone.Cone(0, 0.5, np.array([4, 6, 7, 9]), np.array([0.2, -0.3, 0.9, 1e-9]))
    assert one.violators.tolist() == [7, 4]


def test_neither_the_norm_of_directions_nor_one_price_for_all_codes_matters(sample):
    drawn = sample(7)
    one, other = (
        cone_condition(factor * drawn.z, scale * drawn.W_dec)
        for factor, scale in ((1, 1), (50, 0.01))
    )
    for a, b in zip(one, other, strict=True):
        assert a.residual == pytest.approx(b.residual, abs=1e-9)
        np.testing.assert_allclose(a.gains, b.gains, atol=1e-9)


def test_dense_and_listed_codes_are_the_same(sample, listed):
    drawn = sample(8)
    forms = (drawn.z, listed(drawn.z))
    expected, *others = (cone_condition(z, drawn.W_dec) for z in forms)
    for found in others:
        for a, b in zip(found, expected, strict=True):
            assert a.residual == b.residual
            np.testing.assert_array_equal(a.partners, b.partners)
            np.testing.assert_array_equal(a.gains, b.gains)


def test_codes_stay_as_they_are(sample, listed):
    drawn = sample(9)
    z = listed(drawn.z, drawn.z == 0)  # as of a TopK SAE: entries of value 0
    before = z.to_dense().clone()
    cone_condition(z, drawn.W_dec)
    assert torch.equal(z.to_dense(), before)


def test_codes_of_half_precision_are_taken(sample, listed):
    drawn = sample(9)
    half = drawn.z.bfloat16()
    for z in (half, listed(half)):
        np.testing.assert_array_equal(as_csc(z).toarray(), half.double().numpy())


def test_two_latents_of_one_direction_do_not_gain_by_turning_towards_each_other(unit):
    z = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    for seed in range(20):
        W_dec = unit(seed, 1, 7).float().repeat(2, 1)
        assert all(one.residual < 1e-6 for one in cone_condition(z, W_dec)), seed


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 200), st.integers(1, 9), st.floats(0.1, 1))
def test_the_nearest_point_of_a_cone_is_that_of_one_fit(seed, n, m, rate):
    generator = np.random.default_rng(seed)
    generators = generator.random((n, m)) * (generator.random((n, m)) < rate)
    w = generator.random(m)
    expected = generators.T @ nnls(generators.T, w)[0]
    np.testing.assert_allclose(project_on_cone(generators, w), expected, atol=1e-6)


def test_many_tokens_join_the_fit_round_by_round(monkeypatch):
    monkeypatch.setattr(cone, "NEW_COLUMNS", 2)
    generator = np.random.default_rng(0)
    generators, w = generator.random((500, 12)) ** 4, generator.random(12)
    expected = generators.T @ nnls(generators.T, w)[0]
    np.testing.assert_allclose(project_on_cone(generators, w), expected, atol=1e-6)


def test_generators_that_are_nearly_the_same_do_not_hang():
    generator = np.random.default_rng(1)
    base = generator.random((5, 8))
    generators = base[generator.integers(0, 5, 300)] + 1e-9 * generator.random((300, 8))
    w = generator.random(8)
    expected = generators.T @ nnls(generators.T, w)[0]
    np.testing.assert_allclose(project_on_cone(generators, w), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["dense", "listed"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_codes_that_are_none_are_refused(sample, listed, form, value):
    drawn = sample(0)
    z = drawn.z.clone()
    z[3, 4] = value
    given_z = {
        "dense": lambda: z,
        "listed": lambda: listed(z, z != 0),
    }[form]()
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="z must be finite and nowhere"):
        cone_condition(given_z, drawn.W_dec)


def test_codes_of_another_width_are_refused(sample):
    drawn = sample(0)
    with pytest.raises(ValueError, match="z must have 10 columns, got 9"):
        cone_condition(drawn.z[:, :9], drawn.W_dec)
    with pytest.raises(ValueError, match="W_dec must be"):
        cone_condition(drawn.z, drawn.W_dec[0])


@pytest.mark.parametrize("num", [0, -1])
def test_no_partners_are_refused(sample, num):
    drawn = sample(0)
    with pytest.raises(ValueError, match="max_partners must be at least 1"):
        cone_condition(drawn.z, drawn.W_dec, max_partners=num)


@pytest.mark.parametrize("latent", [10, -1])
def test_latents_that_there_are_not_are_refused(sample, latent):
    drawn = sample(0)
    with pytest.raises(ValueError, match="latents"):
        cone_condition(drawn.z, drawn.W_dec, latents=[latent])
