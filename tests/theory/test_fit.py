import pytest
import torch
from torch.nn.functional import normalize

from ssae.theory import coded_by, wide_limit
from ssae.theory.fit import fit_dictionary, train_l1
from ssae.theory.gap import with_optimal_codes
from ssae.theory.penalty import penalty_of
from ssae.theory.toy import Independent, Points


@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.1, 0.3])
def test_the_lam_it_trains_for_is_that_of_problem_p(lam: float):
    toy = Independent(num_concepts=6, d_in=6)
    x = toy.draw(4000, 99).x
    sae = train_l1(toy, 6, lam, num_steps=600, lr=1e-2)
    batch = coded_by(sae, x)
    found = penalty_of(sae, batch)
    # KKT: d_j . r = lam on every active pair; the encoder is only near the optimal codes.
    assert found.median == pytest.approx(lam, rel=0.05)
    scale = toy.d_in**0.5 / float(toy.draw(16_384, 1).x.norm(dim=1).mean())
    assert penalty_of(sae, batch, scale).lam == pytest.approx(lam, rel=1e-4)


def test_the_lam_of_an_untrained_sae_is_another():
    toy = Independent(num_concepts=6, d_in=6)
    sae = train_l1(toy, 6, 0.1, num_steps=1)
    found = penalty_of(sae, coded_by(sae, toy.draw(4000, 99).x))
    assert abs(found.median - 0.1) > 0.05


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    toy = Independent(num_concepts=4, d_in=4)
    first, again, other = (
        train_l1(toy, 6, 0.1, num_steps=30, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["W_dec"], other["W_dec"])


def test_points_are_drawn_as_they_are_and_equally_often():
    toy = Points(num_concepts=5, d_in=8, seed=2)
    x, z = toy.draw(5000, 0)
    points = toy.lengths[:, None] * toy.directions
    chosen = z.argmax(1)
    assert ((z > 0).sum(1) == 1).all()
    torch.testing.assert_close(x, points[chosen])
    assert torch.bincount(chosen, minlength=5).min() > 1000 - 4 * (5000 * 0.2 * 0.8) ** 0.5
    assert toy.lengths.min() >= 0.5
    assert toy.lengths.max() <= 1.5


def test_a_dictionary_alone_falls_to_the_wide_limit_and_never_below():
    toy = Points(num_concepts=8, d_in=8)
    points = toy.lengths[:, None] * toy.directions
    bound = wide_limit(points, 0.1).objective
    values = []
    for num_rounds in (0, 1, 5, 50):
        D = fit_dictionary(points, 32, 0.1, num_rounds=num_rounds)
        torch.testing.assert_close(D, normalize(D))
        values.append(float(with_optimal_codes(points, D, 0.1).objective(0.1).mean()))
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.1 * bound
    assert values[-1] == pytest.approx(bound, rel=1e-3)
    assert values[-1] >= bound * (1 - 1e-6)
