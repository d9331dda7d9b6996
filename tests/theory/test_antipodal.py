import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ssae.theory import antipodal, antipodal_pairs, coded, optimal_codes
from ssae.theory.antipodal import opposite_directions, pairs_of


def signed(n: int = 4000, lam: float = 0.4, seed: int = 0):
    """A direction along which x has both signs, held as two latents, beside a third."""
    generator = torch.Generator().manual_seed(seed)
    D = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.5]).double() @ D
    W_dec = torch.stack([D[1], D[0], -D[0]])
    return x, optimal_codes(x, W_dec, lam).z, W_dec, D[0]


def test_optimal_codes_of_a_signed_direction_are_its_two_halves():
    x, z, _, u = signed()
    projected = x @ u
    torch.testing.assert_close(z[:, 1], (projected - 0.4).clamp_min(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(z[:, 2], (-projected - 0.4).clamp_min(0), rtol=0, atol=1e-7)


def test_a_signed_direction_is_one_dense_pair():
    x, z, W_dec, _ = signed()
    [pair] = antipodal_pairs(x, z, 3 * W_dec)  # the norm of the decoder is the latents'
    assert {pair.first, pair.second} == {1, 2}
    assert pair.cosine == pytest.approx(-1)
    # P(N(0, 1) > lam), within four deviations of 4000 tokens.
    expected = norm.sf(0.4)
    margin = 4 * np.sqrt(expected * (1 - expected) / 4000)
    assert pair.densities == pytest.approx((expected, expected), abs=margin)
    assert pair.densities[0] >= pair.densities[1]
    assert pair.joint == 0
    assert pair.is_dense
    assert pair.share == pytest.approx(1 / (1 + 5 / 4), rel=0.1)
    assert pair.correlation > 0.95


def by_hand(drawn, j: int, k: int):
    x, z, D, _ = drawn.arrays
    on_j, on_k = z[:, j] > 0, z[:, k] > 0
    u = (D[j] - D[k]) / np.linalg.norm(D[j] - D[k])
    along = x @ u
    either = on_j | on_k
    return {
        "cosine": D[j] @ D[k],
        "share": along.var() / x.var(0).sum(),
        "correlation": np.corrcoef((z[:, j] - z[:, k])[either], along[either])[0, 1],
    }


@pytest.mark.parametrize("max_cosine", [-0.3, -0.6])
@pytest.mark.parametrize("chunk", [2, 1024])
def test_every_number_of_every_pair_is_that_by_hand(sample, max_cosine, chunk, monkeypatch):
    monkeypatch.setattr(antipodal, "CHUNK", chunk)
    drawn = sample(0, n=50, d_in=4, d_sae=14)
    z = drawn.z.clone()
    z[:, 3] = 0  # never fires: in no pair
    z[:25, 5] = 0
    drawn = drawn._replace(z=z)
    D = drawn.arrays[2]
    fires = (z > 0).sum(0)
    alive = [j for j in range(14) if j != 3]
    expected = {(j, k) for j in alive for k in alive if j < k and D[j] @ D[k] < max_cosine}
    found = antipodal_pairs(*drawn, max_cosine)
    assert {tuple(sorted((pair.first, pair.second))) for pair in found} == expected
    assert len(found) == len(expected) >= 2
    for pair in found:
        assert fires[pair.first] >= fires[pair.second]
        for name, value in by_hand(drawn, pair.first, pair.second).items():
            assert getattr(pair, name) == pytest.approx(value, rel=1e-9), name
        on = (z[:, [pair.first, pair.second]] > 0).numpy()
        counts = [50 * share for share in (*pair.densities, pair.joint)]
        expected = [*on.sum(0), on.all(1).sum()]
        assert counts == pytest.approx(expected, abs=1e-5)  # whole numbers of 50
    shares = [pair.share for pair in found]
    assert shares == sorted(shares, reverse=True)


def test_pairs_are_found_across_chunks(unit, monkeypatch):
    D = unit(0, 30, 3)
    expected = [
        [j, k] for j in range(30) for k in range(j + 1, 30) if float(D[j] @ D[k]) < -0.9
    ]  # fmt: skip
    for chunk in (7, 1024):
        monkeypatch.setattr(antipodal, "CHUNK", chunk)
        assert sorted(opposite_directions(D, -0.9).tolist()) == expected
    assert expected


@pytest.mark.parametrize(
    ("on", "is_dense"),
    [
        (([1] * 20 + [0] * 80, [0] * 80 + [1] * 20), True),
        (([1] * 20 + [0] * 80, [0] * 89 + [1] * 11), True),
        (([1] * 20 + [0] * 80, [0] * 91 + [1] * 9), False),
        (([1] * 20 + [0] * 80, [0] * 18 + [1] * 20 + [0] * 62), False),  # together on 2 %
        # 10 % is not more than 10 %
        pytest.param(([1] * 20 + [0] * 80, [0] * 90 + [1] * 10), False),
    ],
)
def test_a_dense_pair_fires_on_more_than_a_tenth_and_not_together(on, is_dense):
    z = torch.tensor(on).double().T
    W_dec = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    [pair] = antipodal_pairs(x, z, W_dec)
    assert pair.is_dense == is_dense


def test_shares_of_tokens_are_exact():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    [pair] = antipodal_pairs(torch.randn(3, 2), z, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert pair.densities == (2 / 3, 1 / 3)


def test_dense_and_sparse_codes_give_the_same_pairs(sample, listed):
    drawn = sample(1, d_in=4, d_sae=14)
    dense, sparse = (
        antipodal_pairs(drawn.x, z, drawn.W_dec, -0.4)
        for z in (drawn.z, listed(drawn.z, drawn.z == 0))
    )
    assert dense == sparse == pairs_of(coded(*drawn), -0.4)
    assert dense


def test_no_opposite_directions_are_no_pairs():
    x, z = torch.ones(4, 3), torch.ones(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert antipodal_pairs(x, z, torch.eye(3)) == []


def test_where_no_latent_fires_there_are_no_pairs():
    assert antipodal_pairs(torch.ones(4, 3), torch.zeros(4, 3), torch.eye(3)) == []


@pytest.mark.parametrize("max_cosine", [0.0, 0.5, -1.1, float("nan")])
def test_cosines_that_are_not_opposite_are_refused(sample, max_cosine):
    with pytest.raises(ValueError, match=r"max_cosine must lie in \[-1, 0\)"):
        antipodal_pairs(*sample(0), max_cosine)
