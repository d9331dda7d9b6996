import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from ssae.theory.toy import Correlated, Hierarchical, Independent, MutuallyExclusive, SignedDense

KINDS = [Independent, Hierarchical, MutuallyExclusive, SignedDense, Correlated]
N = 40_000


def margin(share: float, n: float = N) -> float:
    """Four and a half deviations of a share of n tokens."""
    return 4.5 * (share * (1 - share) / n) ** 0.5


def fires(toy: Independent, seed: int = 0) -> np.ndarray:
    return (toy.draw(N, seed).z != 0).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_activations_times_directions_and_noise(kind):
    toy = kind(num_concepts=12, d_in=20)
    drawn = toy.draw(50, 3)
    assert drawn.x.shape == (50, 20)
    assert drawn.z.shape == (50, 12)
    assert drawn.x.dtype == drawn.z.dtype == torch.float32
    x, z, D = (part.double().numpy() for part in (*drawn, toy.directions))
    np.testing.assert_allclose(x, z @ D, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_the_same_tokens_and_another_others(kind):
    toy = kind(noise=0.1)
    one, again, other = (toy.draw(30, seed) for seed in (1, 1, 2))
    assert torch.equal(one.x, again.x)
    assert torch.equal(one.z, again.z)
    assert not torch.equal(one.z, other.z)
    generator = torch.Generator().manual_seed(1)
    first, second = toy.draw(30, generator), toy.draw(30, generator)
    assert torch.equal(first.x, one.x)
    assert not torch.equal(second.z, first.z)


def test_the_seed_of_the_toy_is_that_of_its_directions():
    one, again, other = (Independent(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.directions, again.directions)
    assert not torch.equal(one.directions, other.directions)
    assert torch.equal(one.draw(30, 5).z, other.draw(30, 5).z)
    assert one == again != other


@pytest.mark.parametrize(("num", "d_in"), [(16, 16), (5, 16), (1, 1)])
def test_directions_that_fit_are_orthonormal(num, d_in):
    D = Independent(num_concepts=num, d_in=d_in).directions
    torch.testing.assert_close(D @ D.T, torch.eye(num), rtol=0, atol=1e-5)


def test_directions_that_do_not_fit_are_of_norm_one():
    D = Independent(num_concepts=30, d_in=8).directions
    assert D.shape == (30, 8)
    torch.testing.assert_close(D.norm(dim=1), torch.ones(30))
    assert torch.linalg.matrix_rank(D) == 8


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_independent_concepts_fire_at_their_rate_and_independently(rate):
    on = fires(Independent(num_concepts=8, rate=rate))
    np.testing.assert_allclose(on.mean(0), rate, atol=margin(rate))
    for j in range(8):
        for k in range(j):
            together = (on[:, j] & on[:, k]).mean()
            assert together == pytest.approx(rate**2, abs=margin(rate**2))


@pytest.mark.parametrize("spread", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_uniform_around_one(kind, spread):
    z = kind(spread=spread).draw(N, 0).z[:, -1]
    own = z[z != 0].double()
    assert own.min() >= 1 - spread - 1e-6
    assert own.max() <= 1 + spread + 1e-6
    deviation = spread / 3**0.5
    assert own.mean() == pytest.approx(1, abs=4.5 * deviation / len(own) ** 0.5 + 1e-6)
    assert own.std() == pytest.approx(deviation, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_normal_of_its_size_and_independent_of_the_activations(kind):
    toy = kind(noise=0.3)
    drawn = toy.draw(N, 0)
    noise = (drawn.x - drawn.z @ toy.directions).double().numpy()
    np.testing.assert_allclose(noise.std(0), 0.3, rtol=0.025)
    np.testing.assert_allclose(noise.mean(0), 0, atol=4.5 * 0.3 / N**0.5)
    covariance = np.corrcoef(noise.T) - np.eye(16)
    assert np.abs(covariance).max() < 5 / N**0.5
    assert np.abs(np.corrcoef(noise[:, 0], drawn.z[:, 0])[0, 1]) < 5 / N**0.5
    assert (np.abs(noise) > 0.6).mean() == pytest.approx(2 * norm.sf(2), abs=0.002)


@pytest.mark.parametrize("child_rate", [0.3, 1.0])
@pytest.mark.parametrize("children", [1, 3])
def test_a_child_fires_only_where_its_parent_does(children, child_rate):
    toy = Hierarchical(
        num_concepts=12, num_parents=2, children=children, child_rate=child_rate, rate=0.3
    )
    on = fires(toy)
    expected = {2 + c: c // children for c in range(2 * children)}
    assert toy.parents == expected
    for child, parent in expected.items():
        assert not (on[:, child] & ~on[:, parent]).any()
        share = on[on[:, parent], child].mean()
        wanted = child_rate / children
        assert share == pytest.approx(wanted, abs=margin(wanted, on[:, parent].sum()) + 1e-9)
    for parent in range(2):
        own = on[:, [child for child, p in expected.items() if p == parent]]
        assert own.sum(1).max() == 1  # at most one of them
        covered = own.any(1)[on[:, parent]].mean()
        assert covered == pytest.approx(child_rate, abs=margin(child_rate) * 2)
    independent = [0, 1, *range(2 + 2 * children, 12)]
    np.testing.assert_allclose(on[:, independent].mean(0), 0.3, atol=margin(0.3))
    correlation = np.corrcoef(on[:, independent].T) - np.eye(len(independent))
    assert np.abs(correlation).max() < 5 / N**0.5


@pytest.mark.parametrize(("rate", "size"), [(0.1, 4), (0.25, 4), (0.5, 2)])
def test_of_a_group_at_most_one_concept_fires(rate, size):
    on = fires(MutuallyExclusive(num_concepts=8, rate=rate, group_size=size))
    np.testing.assert_allclose(on.mean(0), rate, atol=margin(rate))
    groups = on.reshape(N, -1, size).sum(2)
    assert groups.max() == 1
    if rate * size == 1:  # exactly one
        assert groups.min() == 1
    across = (on[:, 0] & on[:, size]).mean()
    assert across == pytest.approx(rate**2, abs=margin(rate**2))


def test_signed_concepts_are_normal_on_every_token():
    toy = SignedDense(num_concepts=6, num_signed=2, scale=2.0, rate=0.2)
    z = toy.draw(N, 0).z.double().numpy()
    signed, others = z[:, :2], z[:, 2:]
    assert (signed != 0).all()
    np.testing.assert_allclose(signed.mean(0), 0, atol=4.5 * 2 / N**0.5)
    np.testing.assert_allclose(signed.std(0), 2, rtol=0.02)
    np.testing.assert_allclose((signed > 0).mean(0), 0.5, atol=margin(0.5))
    assert abs(np.corrcoef(signed.T)[0, 1]) < 5 / N**0.5
    assert (others >= 0).all()
    np.testing.assert_allclose((others > 0).mean(0), 0.2, atol=margin(0.2))


@pytest.mark.parametrize("kind", [Independent, Hierarchical, MutuallyExclusive, Correlated])
def test_only_signed_concepts_are_negative(kind):
    assert (kind().draw(2000, 0).z >= 0).all()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_concepts_of_a_group_fire_together_as_normal_variables_exceed_a_bound(correlation, rate):
    on = fires(Correlated(num_concepts=8, correlation=correlation, rate=rate))
    np.testing.assert_allclose(on.mean(0), rate, atol=margin(rate))
    bound = norm.ppf(rate)  # by symmetry: both below -bound
    joint = multivariate_normal([0, 0], [[1, correlation], [correlation, 1]]).cdf([bound, bound])
    for j, k in ((0, 1), (1, 3), (4, 7)):
        assert (on[:, j] & on[:, k]).mean() == pytest.approx(joint, abs=margin(joint))
        assert (on[:, j] & ~on[:, k]).any()  # none implies another
    assert (on[:, 0] & on[:, 4]).mean() == pytest.approx(rate**2, abs=margin(rate**2))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Independent, {"num_concepts": 0}, "num_concepts and d_in must be positive"),
        (Independent, {"d_in": 0}, "num_concepts and d_in must be positive"),
        (Independent, {"rate": 0.0}, r"rate must lie in \(0, 1\)"),
        (Independent, {"rate": 1.0}, r"rate must lie in \(0, 1\)"),
        (Independent, {"rate": float("nan")}, r"rate must lie in \(0, 1\)"),
        (Independent, {"spread": -0.1}, r"spread in \[0, 1\)"),
        (Independent, {"spread": 1.0}, r"spread in \[0, 1\)"),
        (Independent, {"noise": -0.1}, "noise be at least 0"),
        (Independent, {"noise": float("nan")}, "noise be at least 0"),
        (Hierarchical, {"rate": 0.0}, "rate must lie"),
        (Hierarchical, {"num_parents": 6}, r"num_parents \(6\) with children \(2\) each"),
        (Hierarchical, {"children": 0}, r"with children \(0\) each"),
        (Hierarchical, {"child_rate": 0.0}, r"child_rate must lie in \(0, 1\]"),
        (Hierarchical, {"child_rate": 1.1}, r"child_rate must lie in \(0, 1\]"),
        (Hierarchical, {"child_rate": float("nan")}, r"child_rate must lie in \(0, 1\]"),
        (MutuallyExclusive, {"spread": 2.0}, "spread in"),
        (MutuallyExclusive, {"group_size": 1}, "group_size must be at least 2 and divide 16"),
        (MutuallyExclusive, {"group_size": 3}, "group_size must be at least 2 and divide 16"),
        (MutuallyExclusive, {"rate": 0.3}, "rate 0.3 x group_size 4 must not exceed 1"),
        (SignedDense, {"noise": -1.0}, "noise be at least 0"),
        (SignedDense, {"num_signed": 0}, r"num_signed must lie in 1 \.\. 16"),
        (SignedDense, {"num_signed": 17}, r"num_signed must lie in 1 \.\. 16"),
        (SignedDense, {"scale": 0.0}, "scale be positive"),
        (SignedDense, {"scale": float("nan")}, "scale be positive"),
        (Correlated, {"rate": 2.0}, "rate must lie"),
        (Correlated, {"group_size": 5}, "group_size must be at least 2 and divide 16"),
        (Correlated, {"group_size": 1}, "group_size must be at least 2"),
        (Correlated, {"correlation": 1.0}, r"correlation must lie in \[0, 1\)"),
        (Correlated, {"correlation": -0.1}, r"correlation must lie in \[0, 1\)"),
        (Correlated, {"correlation": float("nan")}, r"correlation must lie in \[0, 1\)"),
    ],
)
def test_numbers_out_of_range_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Hierarchical, {"num_parents": -1}),
        (Independent, {"noise": float("inf")}),
        (SignedDense, {"scale": float("inf")}),
    ],
)
def test_other_numbers_out_of_range_are_refused_too(kind, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        kind(**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_cannot_be_changed(kind):
    toy = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.rate = 0.5
