import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ssae
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
def test_the_objective_has_the_value_and_the_gradient_of_the_tilted_mean(tilt):
    losses = draw()
    term = TERM(tilt=tilt)
    assert term(losses)[0].item() == pytest.approx(
        ssae.tilted_mean(losses, tilt).item(), rel=1e-7, abs=1e-7
    )
    found = gradient(lambda x: term(x)[0], losses)
    torch.testing.assert_close(found, ssae.tilt_weights(losses, tilt), rtol=1e-9, atol=1e-15)


def test_a_tilt_of_zero_is_empirical_risk():
    losses = draw()
    assert TERM(tilt=0)(losses)[0].item() == pytest.approx(losses.mean().item(), rel=1e-12)
    erm, logged = ERM()(losses)
    assert (erm.item(), logged) == (losses.mean().item(), {})
    expected = gradient(lambda x: ERM()(x)[0], losses)
    torch.testing.assert_close(gradient(lambda x: TERM(tilt=0)(x)[0], losses), expected)


@pytest.mark.parametrize("tilt", TILTS)
def test_the_effective_sample_size_is_that_of_the_weights(tilt):
    losses = draw()
    weights = ssae.tilt_weights(losses, tilt)
    logged = TERM(tilt=tilt)(losses)[1]
    expected = 1 / weights.square().sum().item() / len(losses)
    assert logged["effective_sample_size"].item() == pytest.approx(expected, rel=1e-9)
    assert logged["largest_weight"].item() == pytest.approx(weights.max().item(), rel=1e-9)


@pytest.mark.parametrize("tilt", [math.nan, math.inf, -math.inf])
def test_a_tilt_that_is_not_finite_is_refused(tilt):
    with pytest.raises(ValueError, match=r"tilt must be finite.*objective\.tilt=1e9"):
        TERM(tilt=tilt)


def test_no_losses_a_matrix_of_losses_and_tilt_nan_are_refused():
    for fn in (ssae.tilted_mean, ssae.tilt_weights):
        for losses in (torch.empty(0), torch.ones(2, 2), torch.tensor(1.0)):
            with pytest.raises(ValueError, match="losses must be a non-empty vector"):
                fn(losses, 1.0)
        with pytest.raises(ValueError, match="tilt must be a number, got nan"):
            fn(torch.ones(2), math.nan)


RANK = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from ssae.objective.term import TERM, tilted_mean

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
)
data = torch.load(folder / "data.pt", weights_only=True)
x = data["x"].chunk(size)[rank]
out = {}
for tilt in (-3.0, 0.0, 1e-6, 0.5, 5.0, 1e9):
    for name, fn in (
        ("exact", lambda losses: TERM(tilt=tilt)(losses)),
        ("naive", lambda losses: (tilted_mean(losses, tilt), {})),
    ):
        theta = data["theta"].clone().requires_grad_()
        value, logged = fn((x @ theta).square())
        value.backward()
        dist.all_reduce(theta.grad)  # what DDP does
        out[f"{name} {tilt}"] = (theta.grad / size, value.detach(), logged)
torch.save(out, folder / f"rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_together_have_the_gradient_of_the_whole_batch_and_naive_averaging_does_not(
    tmp_path: Path, size
):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, dtype=torch.float64, generator=generator)
    theta = torch.randn(3, dtype=torch.float64, generator=generator)
    torch.save({"x": x, "theta": theta}, tmp_path / "data.pt")
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, str(tmp_path / "rank.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(tmp_path)], env=environment)
        for rank in range(size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    results = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(size)]
    for tilt in (-3.0, 0.0, 1e-6, 0.5, 5.0, 1e9):
        alone = gradient(lambda p, tilt=tilt: ssae.tilted_mean((x @ p).square(), tilt), theta)
        value = ssae.tilted_mean((x @ theta).square(), tilt).item()
        logged = TERM(tilt=tilt)((x @ theta).square())[1]
        for result in results:
            found, found_value, found_logged = result[f"exact {tilt}"]
            torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-9)
            assert found_value.item() == pytest.approx(value, rel=1e-6)
            for name, number in logged.items():
                assert found_logged[name].item() == pytest.approx(number.item(), rel=1e-9), name
        naive = results[0][f"naive {tilt}"][0]
        error = ((naive - alone).norm() / alone.norm()).item()
        assert error > 0.03 if abs(tilt) >= 0.5 else error < 1e-5
