import numpy as np
import pytest
import torch

from ssae.theory import coded, pair_identity


def test_both_sides_of_the_identity_are_those_of_a_loop(sample):
    drawn = sample(9)
    _, z, D, r = drawn.arrays
    pairs = [(0, 1), (1, 0), (4, 4), (9, 2), (0, 1)]
    found = pair_identity(coded(*drawn), torch.tensor(pairs), 0.3)
    for number, (j, k) in enumerate(pairs):
        mass = sum(z[:, j])
        expected = joint = silent = 0.0
        for i in range(len(z)):
            term = z[i, j] / mass * (D[k] @ r[i]) / 0.3
            expected += term
            joint += z[i, j] / mass * (z[i, k] > 0)
            silent += term * (z[i, k] == 0)
        row = [column[number].item() for column in found]
        assert row == pytest.approx([D[j] @ D[k], expected, joint, silent], rel=1e-9, abs=1e-12)


def test_at_an_optimum_both_sides_of_the_identity_agree(optimum):
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    found = pair_identity(optimum.batch, pairs, optimum.lam)
    np.testing.assert_allclose(found.expected, found.cosine, atol=1e-6)
    np.testing.assert_allclose(found.joint + found.silent, found.expected, atol=1e-6)
    # The identity is not trivial: the parts differ, and a turned dictionary breaks it.
    assert found.silent.abs().max() > 0.05
    turned = coded(optimum.x, optimum.z, optimum.directions.roll(1, 1))
    off = pair_identity(turned, pairs, optimum.lam)
    assert (off.expected - off.cosine).abs().max() > 0.1


def test_pairs_of_a_latent_that_never_fires_are_nan_and_no_pairs_are_none(sample):
    drawn = sample(10)
    z = drawn.z.clone()
    z[:, 3] = 0
    batch = coded(drawn.x, z, drawn.W_dec)
    found = pair_identity(batch, torch.tensor([[3, 1], [1, 3]]), 0.2)
    assert found.expected.isnan().tolist() == [True, False]
    assert found.joint[1] == 0
    assert pair_identity(batch, torch.zeros(0, 2), 0.2).cosine.shape == (0,)


def test_the_identity_of_pairs_needs_a_price(sample):
    batch = coded(*sample(0))
    with pytest.raises(ValueError, match="lam > 0; got 0"):
        pair_identity(batch, torch.tensor([[0, 1]]), 0.0)
    with pytest.raises(ValueError, match="lam must be"):
        pair_identity(batch, torch.tensor([[0, 1]]), -1.0)


@pytest.mark.parametrize(
    "pairs", [[0, 1], [[0, 10]], [[-1, 2]], [[0, 1, 2]]], ids=["flat", "high", "low", "triple"]
)
def test_what_are_no_pairs_is_refused(sample, pairs):
    with pytest.raises(ValueError, match="pairs must be"):
        pair_identity(coded(*sample(0)), torch.tensor(pairs), 0.2)
