import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ssae
from ssae.objective.base import Losses
from ssae.objective.erm import ERM
from ssae.objective.term import TERM

TILTS = [-1e9, -20.0, -1.0, -1e-2, -1e-6, 0.0, 1e-6, 1e-2, 0.5, 1.0, 5.0, 20.0, 1e9]
vectors = st.lists(st.floats(0, 5, width=32), min_size=1, max_size=20)
tilts = st.floats(-30, 30)


def draw(num: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(num, dtype=torch.float64, generator=generator) ** 3


def definition(losses: torch.Tensor, tilt: float) -> torch.Tensor:
    """R as it is written, without a logarithm of a sum that could be stabilised."""
    return torch.log(torch.exp(tilt * losses).sum() / len(losses)) / tilt


def gradient(fn, losses: torch.Tensor) -> torch.Tensor:
    losses = losses.clone().requires_grad_()
    value = fn(losses)
    return torch.autograd.grad(value, losses)[0]


@pytest.mark.parametrize("tilt", [-20.0, -1.0, -1e-2, 1e-2, 0.5, 1.0, 5.0, 20.0])
def test_value_and_gradient_are_those_of_the_definition(tilt):
    losses = draw()
    expected = gradient(lambda x: definition(x, tilt), losses)
    assert ssae.tilted_mean(losses, tilt).item() == pytest.approx(
        definition(losses, tilt).item(), rel=1e-10
    )
    found = gradient(lambda x: ssae.tilted_mean(x, tilt), losses)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(ssae.tilt_weights(losses, tilt), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("tilt", [-1e-3, -1e-5, -1e-9, 1e-300, 1e-12, 1e-7, 1e-4, 1e-3])
def test_small_tilts_follow_the_cumulant_series(tilt):
    losses = draw()
    centred = losses - losses.mean()
    series = losses.mean() + tilt / 2 * centred.pow(2).mean() + tilt**2 / 6 * centred.pow(3).mean()
    assert ssae.tilted_mean(losses, tilt).item() == pytest.approx(series.item(), rel=2e-8)


@pytest.mark.parametrize("tilt", [-5.0, -1e-2, -1.1e-4, 1e-5, 1.1e-4, 1e-3, 1e-2, 0.1, 5.0])
def test_float32_losses_give_what_float64_gives(tilt):
    losses = draw().float()
    exact = ssae.tilted_mean(losses.double(), tilt).item()
    found = ssae.tilted_mean(losses, tilt)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, rel=1e-6)


def test_bfloat16_losses_are_computed_in_higher_precision():
    losses = draw().bfloat16()
    exact = ssae.tilted_mean(losses.double(), 5.0).item()
    assert ssae.tilted_mean(losses, 5.0).item() == pytest.approx(exact, rel=1e-6)


def test_the_limits_are_mean_maximum_and_minimum():
    losses = draw()
    assert ssae.tilted_mean(losses, 0) == losses.mean()
    assert ssae.tilted_mean(losses, math.inf) == losses.max()
    assert ssae.tilted_mean(losses, -math.inf) == losses.min()
    assert ssae.tilted_mean(losses, 1e9).item() == pytest.approx(losses.max().item(), rel=1e-7)
    assert ssae.tilted_mean(losses, -1e9).item() == pytest.approx(losses.min().item(), abs=1e-7)
    assert ssae.tilted_mean(losses, 1e-9).item() == pytest.approx(losses.mean().item(), rel=1e-8)
    large = 1e4 * losses.float()  # exp would overflow
    assert ssae.tilted_mean(large, 30.0).isfinite()


def test_infinite_tilts_share_the_weight_among_the_extremes():
    losses = torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0, 3.0])
    third = 1 / 3
    weights = ssae.tilt_weights(losses, math.inf).tolist()
    assert weights == pytest.approx([0, third, 0, third, 0, third])
    assert ssae.tilt_weights(losses, -math.inf).tolist() == [0.5, 0, 0, 0, 0.5, 0]
    assert ssae.tilt_weights(losses, 0).tolist() == pytest.approx([1 / 6] * 6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(vectors, tilts, st.floats(-10, 10))
def test_a_shift_of_the_losses_shifts_the_tilted_mean(values, tilt, shift):
    losses = torch.tensor(values, dtype=torch.float64)
    found = ssae.tilted_mean(losses + shift, tilt).item()
    assert found == pytest.approx(ssae.tilted_mean(losses, tilt).item() + shift, abs=1e-7)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(vectors, tilts, st.floats(0.1, 10))
def test_the_tilt_has_the_unit_of_one_over_the_loss(values, tilt, scale):
    losses = torch.tensor(values, dtype=torch.float64)
    found = ssae.tilted_mean(scale * losses, tilt).item()
    assert found == pytest.approx(scale * ssae.tilted_mean(losses, scale * tilt).item(), abs=1e-7)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(vectors, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_the_tilted_mean_grows_with_the_tilt_and_stays_between_the_extremes(values, a, b):
    losses = torch.tensor(values, dtype=torch.float64)
    low, high = (ssae.tilted_mean(losses, tilt).item() for tilt in sorted((a, b)))
    assert min(values) - 1e-9 <= low <= high + 1e-9 <= max(values) + 2e-9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(vectors, tilts)
def test_weights_sum_to_one_and_lean_towards_large_losses(values, tilt):
    assume(abs(tilt) > 1e-3)
    losses = torch.tensor(values, dtype=torch.float64)
    weights = ssae.tilt_weights(losses, tilt)
    assert weights.sum().item() == pytest.approx(1)
    by_loss = weights[losses.argsort(descending=tilt < 0)]
    assert (by_loss.diff() >= -1e-12).all()


@pytest.mark.parametrize("tilt", TILTS)
def test_the_objective_has_the_value_and_the_gradient_of_the_tilted_mean(apply, tilt):
    losses = draw()
    found = apply(TERM(tilt=tilt), losses)
    assert found.loss.item() == pytest.approx(
        ssae.tilted_mean(losses, tilt).item(), rel=1e-7, abs=1e-7
    )
    weights = ssae.tilt_weights(losses, tilt)
    torch.testing.assert_close(found.gradient, weights, rtol=1e-9, atol=1e-15)


def test_a_tilt_of_zero_is_empirical_risk(apply):
    losses = draw()
    tilted, erm = apply(TERM(tilt=0), losses), apply(ERM(), losses)
    assert tilted.loss.item() == pytest.approx(losses.mean().item(), rel=1e-12)
    assert (erm.loss.item(), erm.logged) == (losses.mean().item(), {})
    torch.testing.assert_close(tilted.gradient, erm.gradient)


@pytest.mark.parametrize("tilt", TILTS)
def test_the_effective_sample_size_is_that_of_the_weights(apply, tilt):
    losses = draw()
    weights = ssae.tilt_weights(losses, tilt)
    logged = apply(TERM(tilt=tilt), losses).logged
    expected = 1 / weights.square().sum().item() / len(losses)
    assert logged["effective_sample_size"].item() == pytest.approx(expected, rel=1e-9)
    assert logged["largest_weight"].item() == pytest.approx(weights.max().item(), rel=1e-9)


@pytest.mark.parametrize("tilt", [math.nan, math.inf, -math.inf, 1e308])
def test_a_tilt_that_is_not_finite_or_would_not_stay_so_is_refused(tilt):
    with pytest.raises(
        ValueError, match=r"objective\.tilt must lie in .*; set objective\.tilt=5, "
    ):
        TERM(tilt=tilt)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tilt", [0.0, 2.0, 300.0, 1e9, -1e9, 1e39])
def test_losses_of_any_precision_give_the_numbers_of_float64(dtype, tilt):
    losses = torch.tensor([1, 2, 3]).to(dtype)
    exact = losses.double()
    torch.testing.assert_close(ssae.tilted_mean(losses, tilt).double(),
                               ssae.tilted_mean(exact, tilt), rtol=1e-6, atol=0)  # fmt: skip
    weights = ssae.tilt_weights(losses, tilt)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(
        weights.double(), torch.softmax(tilt * exact, 0), rtol=1e-6, atol=1e-40
    )


def test_no_losses_a_matrix_of_losses_and_tilt_nan_are_refused():
    for fn in (ssae.tilted_mean, ssae.tilt_weights):
        for losses in (torch.empty(0), torch.ones(2, 2), torch.tensor(1.0)):
            with pytest.raises(ValueError, match="losses must be a non-empty vector"):
                fn(losses, 1.0)
        with pytest.raises(ValueError, match="tilt must be a number, got nan"):
            fn(torch.ones(2), math.nan)


def test_a_raw_tilt_multiplies_the_losses_before_they_were_divided(apply):
    raw, variance = 40 * draw(), 40.0
    losses = Losses(raw / variance, variance=variance)
    found = apply(TERM(tilt=0.02, unit="raw"), losses)
    weights = ssae.tilt_weights(raw, 0.02)
    torch.testing.assert_close(found.gradient, weights, rtol=1e-9, atol=1e-15)
    expected = ssae.tilted_mean(raw, 0.02).item() / variance
    assert found.loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("schedule", "halfway"), [("linear", 2.5), ("cosine", 2.5)])
def test_a_scheduled_tilt_rises_from_0_and_stays(apply, schedule, halfway):
    term = TERM(tilt=5.0, schedule=schedule, rise_share=0.4)
    losses = draw()
    tilts = []
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.9):
        logged = apply(term, Losses(losses, progress=progress)).logged
        tilts.append(logged["tilt"].item())
        expected = ssae.tilted_mean(losses, tilts[-1]).item()
        assert logged["risk"].item() == pytest.approx(expected, rel=1e-9)
    quarter = 1.25 if schedule == "linear" else 5 * (1 - math.cos(math.pi / 4)) / 2
    assert tilts == pytest.approx([0, quarter, halfway, 5 - quarter, 5, 5])


def test_the_running_normaliser_follows_its_recursion_and_is_remembered(apply):
    term = TERM(tilt=3.0, rho=0.2)
    memory, z = term.memory(None), None
    for seed in range(6):
        losses = draw(50, seed)
        of_batch = math.log(losses.mul(3.0).exp().mean().item())
        mixed = of_batch if z is None else math.log(0.8 * math.exp(z) + 0.2 * math.exp(of_batch))
        z = mixed
        found = apply(term, losses, memory=memory)
        expected = torch.exp(3.0 * losses - z) / 50
        torch.testing.assert_close(found.gradient, expected, rtol=1e-9, atol=1e-15)
        assert found.loss.item() == pytest.approx(ssae.tilted_mean(losses, 3.0).item(), rel=1e-9)
    assert memory.state_dict()["z"].item() == pytest.approx(z, rel=1e-12)


def test_the_running_normaliser_is_unbiased_where_that_of_small_batches_is_not(apply):
    """Mean gradient over batches of 4 against that of all tokens."""
    losses, tilt = draw(4000), 4.0
    exact = ssae.tilt_weights(losses, tilt)
    errors = {}
    for rho in (1.0, 0.002):
        term = TERM(tilt=tilt, rho=rho)
        memory, total = term.memory(None), torch.zeros(4000, dtype=torch.float64)
        if rho < 1:
            memory.z.fill_(math.log(losses.mul(tilt).exp().mean().item()))
        order = torch.randperm(4000, generator=torch.Generator().manual_seed(1))
        for rows in order.split(4):
            total[rows] = apply(term, losses[rows], memory=memory).gradient / 1000
        errors[rho] = ((total - exact).norm() / exact.norm()).item()
    assert errors[0.002] < 0.2
    assert errors[1.0] > 2 * errors[0.002]


def test_weights_that_vanish_under_a_running_normaliser_are_logged(apply):
    """Losses fall faster than z forgets."""
    term = TERM(tilt=50.0, rho=0.01)
    memory = term.memory(None)
    apply(term, 100 * torch.ones(4, dtype=torch.float64), memory=memory)
    found = apply(term, torch.ones(4, dtype=torch.float64), memory=memory)
    assert found.gradient.tolist() == [0] * 4
    assert found.logged["mean_weight"].item() < 1e-100
    fresh = apply(term, torch.ones(4, dtype=torch.float64))
    assert fresh.logged["mean_weight"].item() == pytest.approx(1)


def test_a_running_normaliser_survives_a_sudden_loss_at_the_largest_tilt(apply):
    term = TERM(tilt=1e9, rho=0.1)
    memory = term.memory(None)
    for scale in (1.0, 1e-3, 1e4):
        found = apply(term, scale * draw(), memory=memory)
        assert found.gradient.isfinite().all()
        assert found.gradient.max() <= 10 + 1e-6
