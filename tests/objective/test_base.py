import pytest
import torch
from torch import nn

from ssae.objective.base import Losses, Memory, Objective


@pytest.mark.parametrize("move", ["bfloat16", "half", "float"])
def test_a_memory_stays_in_float64_when_the_weights_become_smaller(move):
    module = nn.Module()
    module.memory = Memory({"z": torch.tensor(1 / 3, dtype=torch.float64), "band": torch.arange(3)})
    module.linear = nn.Linear(2, 2)
    getattr(module, move)()
    assert module.memory.z.dtype == torch.float64
    assert module.memory.z.item() == 1 / 3
    assert module.memory.band.dtype == torch.int64
    assert module.linear.weight.dtype == getattr(torch, {"half": "float16", "float": "float32"}.get(
        move, move
    ))  # fmt: skip


def test_a_memory_travels_in_the_state_of_its_module():
    module, other = nn.Module(), nn.Module()
    module.memory = Memory({"z": torch.tensor(2.5, dtype=torch.float64)})
    other.memory = Memory({"z": torch.tensor(0.0, dtype=torch.float64)})
    other.load_state_dict(module.state_dict())
    assert other.memory.z.item() == 2.5


def test_totals_are_errors_and_penalties_where_there_are_any():
    errors, penalties = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])
    assert Losses(errors).totals is errors
    assert Losses(errors, penalties).totals.tolist() == [1.5, 2.25]


def test_an_objective_of_its_own_has_to_say_what_it_makes_of_losses():
    with pytest.raises(NotImplementedError):
        Objective()(Losses(torch.ones(2)), Memory({}))
