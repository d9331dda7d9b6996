"""The objectives of a batch that several ranks share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssae.objective.base import Losses
from ssae.objective.cvar import CVaR
from ssae.objective.erm import ERM
from ssae.objective.group_dro import GroupDRO
from ssae.objective.term import TERM, tilted_mean

from .conftest import draw_batch, text_of

OBJECTIVES = {
    "erm": ERM(),
    **{f"term {tilt}": TERM(tilt=tilt) for tilt in (-3.0, 0.0, 1e-6, 0.5, 5.0, 1e9)},
    "types": TERM(tilt=4.0, level="token_type", balance=0.7),
    "documents": TERM(tilt=-2.0, level="document", weighed="recon"),
    "bands": TERM(tilt=2.0, level="frequency_band", balance=1),
    "running": TERM(tilt=2.0, rho=0.3),
    "cvar": CVaR(share=0.2, level="document"),
    "dro": GroupDRO(step_size=0.5, level="token_type"),
}
NUM, NUM_STEPS = 64, 3


def steps_of(size: int, rank: int) -> dict[str, list[tuple[torch.Tensor, ...]]]:
    """What a rank of `size` gets of its part of three batches: gradient, loss, logged."""
    text = text_of(draw_batch(500, seed=7))
    results: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    for name, objective in OBJECTIVES.items():
        memory = objective.memory(text)
        for step in range(NUM_STEPS):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(NUM, 3, dtype=torch.float64, generator=generator)
            theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
            batch = draw_batch(NUM, seed=step)
            tokens = type(batch.tokens)(*(c.chunk(size)[rank] for c in batch.tokens))
            errors = (x.chunk(size)[rank] @ theta).square()
            penalties = batch.penalties.chunk(size)[rank] * theta.sum()
            loss, logged = objective(Losses(errors, penalties, tokens), memory)
            loss.backward()
            results.setdefault(name, []).append((theta.grad, loss.detach(), *logged.values()))
    return results


RANK = """
import sys
import torch, torch.distributed as dist
from ssae.objective.term import tilted_mean
from tests.objective.test_ranks import steps_of

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
)
torch.save(steps_of(size, rank), f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_together_have_the_gradient_of_the_whole_batch(tmp_path: Path, size):
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, str(tmp_path / "rank.py")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(tmp_path)], env=environment)
        for rank in range(size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(size)]
    alone = steps_of(1, 0)
    for name in OBJECTIVES:
        for step in range(NUM_STEPS):
            parts = [result[name][step] for result in found]
            gradient, loss, *logged = alone[name][step]
            mean = torch.stack([part[0] for part in parts]).mean(0)  # what DDP does
            torch.testing.assert_close(mean, gradient, rtol=1e-12, atol=1e-12, msg=name)
            mean = torch.stack([part[1] for part in parts]).mean()
            torch.testing.assert_close(mean, loss, rtol=1e-12, atol=1e-12, msg=name)
            for part in parts:  # the same weights, to the last bit
                assert [value.item() for value in part[2:]] == [value.item() for value in logged]


@pytest.mark.parametrize(("tilt", "error"), [(0.5, 0.01), (2.0, 0.05), (5.0, 0.1)])
def test_averaging_the_gradients_of_local_objectives_would_be_another_gradient(tilt, error):
    """The reason for all of this: what DDP makes of a plain log-sum-exp on each of 4 ranks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM, 3, dtype=torch.float64, generator=generator)

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(tilted_mean((rows @ theta).square() / 3, tilt), theta)[0]

    exact = gradient(x)
    naive = torch.stack([gradient(rows) for rows in x.chunk(4)]).mean(0)
    assert ((naive - exact).norm() / exact.norm()).item() > error
