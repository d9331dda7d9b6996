import dataclasses
import functools
import itertools

import hydra
import pytest
import scipy.optimize
import torch

from ssae.activation.reader import Activations
from ssae.artifact.store import describe
from ssae.harvest import harvest_for
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.study import Study
from ssae.train import train
from ssae.training.initialise import geometric_median, initial_b_dec, initial_sae, quarter


def with_arm(study: Study, name: str, **changes) -> Study:
    arm = dataclasses.replace(study.arms[name], **changes)
    return dataclasses.replace(study, arms=study.arms | {name: arm})


def total_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).norm(dim=1).sum())


@pytest.mark.parametrize(("n", "d_in"), [(7, 2), (40, 3), (200, 8)])
def test_the_geometric_median_is_the_minimum_that_scipy_finds(n, d_in):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d_in, generator=generator, dtype=torch.float64).exp()  # skewed
    found = scipy.optimize.minimize(
        lambda y: total_distance(x, torch.from_numpy(y)), x.mean(0).numpy(), method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 100_000, "maxfev": 100_000,
                 "adaptive": True},
    )  # fmt: skip
    y = geometric_median(x)
    assert total_distance(x, y) <= found.fun * (1 + 1e-9)
    assert total_distance(x, y) < total_distance(x, x.mean(0))
    torch.testing.assert_close(y, torch.from_numpy(found.x), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[0, 0]] * 3 + [[9, 0], [0, 9]], [0, 0]),  # the majority is one point
        ([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]], [0, 0]),  # the mean, and a datum, at once
        ([[4, 0], [-1, 0], [-1, 0], [-1, 0], [-1, 0]], [-1, 0]),
        ([[3, 3]] * 4, [3, 3]),
        ([[2, 5]], [2, 5]),
        ([[0, 0], [4, 0], [2, 2], [2, -2], [2, 0.5]], None),
    ],
)
def test_the_geometric_median_may_be_a_point_of_the_data(points, expected):
    x = torch.tensor(points, dtype=torch.float64)
    y = geometric_median(x)
    assert torch.isfinite(y).all()
    if expected is not None:
        torch.testing.assert_close(y, torch.tensor(expected).double(), rtol=0, atol=1e-5)
    steps = itertools.product((-1e-3, 0, 1e-3), repeat=2)
    least = min(total_distance(x, y + torch.tensor(step)) for step in steps)
    assert total_distance(x, y) <= least + 1e-6


def test_an_iterate_that_starts_on_a_datum_leaves_it():
    """The mean is a point of the data here, but not the median."""
    x = torch.tensor([[0.0, 0], [0, 1], [0, 2], [8, 1], [2, 1]], dtype=torch.float64)
    assert any(torch.equal(x.mean(0), point) for point in x)
    y = geometric_median(x)
    grid = torch.cartesian_prod(torch.linspace(0, 8, 401), torch.linspace(0, 2, 101)).double()
    assert total_distance(x, y) <= min(total_distance(x, point) for point in grid) + 1e-9


def test_an_outlier_moves_the_mean_and_not_the_median():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(501, 4, generator=generator, dtype=torch.float64)
    x[0] = 1e6
    assert x.mean(0).norm() > 1000
    assert geometric_median(x).norm() < 0.5


def test_a_fresh_b_dec_is_what_the_setting_says(write_tokens, random_tokens, monkeypatch):
    harvest = write_tokens(random_tokens(64), 50)
    x = harvest.tokens.activations
    assert torch.equal(initial_b_dec("zeros", harvest.activations), torch.zeros(4))
    torch.testing.assert_close(initial_b_dec("mean", harvest.activations), x.double().mean(0))
    found = initial_b_dec("geometric_median", harvest.activations)
    torch.testing.assert_close(found, geometric_median(x))
    monkeypatch.setattr("ssae.training.initialise.MEDIAN_TOKENS", 10)
    assert torch.equal(
        initial_b_dec("geometric_median", harvest.activations), geometric_median(x[::7])
    )


def test_a_quarter_is_one_of_latents_and_of_active_latents():
    jumprelu = functools.partial(JumpReLUSAE, d_sae=512, target_l0=6.0, bandwidth=0.1)
    assert quarter(jumprelu).keywords == {"d_sae": 128, "target_l0": 1.5, "bandwidth": 0.1}
    composed = hydra.utils.instantiate(
        {"_target_": "ssae.sae.topk.TopKSAE", "_partial_": True, "d_sae": 64, "k": 9}
    )
    assert describe(quarter(composed)) == {
        "_target_": "ssae.TopKSAE", "d_sae": 16, "k": 2
    }  # fmt: skip
    matryoshka = functools.partial(MatryoshkaSAE, d_sae=61, k=3, group_sizes=[10, 20, 31])
    assert quarter(matryoshka).keywords == {"d_sae": 14, "k": 1, "group_sizes": [2, 5, 7]}


def test_extra_latents_begin_centred_with_tied_weights(make_study, tmp_path):
    study = with_arm(make_study(tmp_path), "second", start="residual")
    first = train(study, "first").path
    activations = Activations(harvest_for(study, "second"))
    sae = initial_sae(study, "second", first, activations).sae
    assert (sae.d_sae, sae.extra.d_sae, sae.extra.k) == (64 + 16, 16, 1)
    mean = activations.mean.float()[None]
    torch.testing.assert_close(sae.pre_acts(mean)[:, 64:], torch.zeros(1, 16), rtol=0, atol=1e-4)
    assert sae.extra.b_dec.abs().sum() == 0
    torch.testing.assert_close(sae.extra.W_enc_T, sae.extra.W_dec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "frozen"}, "start must be one of fine_tune, recycle, residual, got 'frozen'"),
        (
            {"start": "recycle", "init_from": None},
            "start=recycle needs a generalist; set init_from",
        ),
        ({"start": "residual", "num_tokens": 0}, "start=residual needs tokens .* start=fine_tune"),
    ],
)
def test_a_start_that_cannot_be_is_refused(make_study, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        with_arm(make_study(tmp_path), "second", **changes)
