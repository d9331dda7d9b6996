"""The objectives that users compare TERM with."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from ssae.objective.base import Losses
from ssae.objective.cvar import CVaR
from ssae.objective.group_dro import GroupDRO

from .conftest import NUM_TYPES, draw_batch, text_of


def by_linear_programme(means: np.ndarray, masses: np.ndarray, share: float) -> np.ndarray:
    """max q . means under 0 <= q <= masses / share and sum q = 1."""
    found = linprog(
        -means, A_eq=np.ones((1, len(means))), b_eq=[1], bounds=[(0, m / share) for m in masses]
    )
    assert found.success
    return found.x


@pytest.mark.parametrize("share", [0.05, 0.3, 0.77, 1.0])
@pytest.mark.parametrize(("level", "balance"), [("token", 0), ("token_type", 0.5), ("document", 1)])
def test_cvar_is_the_linear_programme_of_its_definition(apply, batch, text, share, level, balance):
    losses = batch._replace(penalties=None)
    found = apply(CVaR(share=share, level=level, balance=balance), losses, rows=text)
    keys = {
        "token": torch.arange(60), "token_type": batch.tokens.token_ids,
        "document": batch.tokens.document_ids,
    }[level]  # fmt: skip
    own = [keys == key for key in keys.unique()]
    means = np.array([batch.errors[o].mean().item() for o in own])
    masses = np.array([int(o.sum()) ** (1 - balance) for o in own])
    q = by_linear_programme(means, masses / masses.sum(), share)
    expected = torch.zeros(60, dtype=torch.float64)
    for weight, tokens in zip(q, own, strict=True):
        expected[tokens] = weight / int(tokens.sum())
    torch.testing.assert_close(found.gradient, expected, rtol=1e-7, atol=1e-10)
    assert found.loss.item() == pytest.approx(float(q @ means), rel=1e-9)


def test_cvar_of_everything_is_the_mean_and_of_one_token_the_maximum(apply):
    losses = draw_batch(40).errors
    assert apply(CVaR(share=1.0), losses).loss.item() == pytest.approx(losses.mean().item())
    assert apply(CVaR(share=1 / 40), losses).loss.item() == pytest.approx(losses.max().item())
    quarter = apply(CVaR(share=0.25), losses).loss.item()
    assert quarter == pytest.approx(losses.sort(descending=True).values[:10].mean().item())


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_group_dro_follows_a_plain_loop_over_batches(apply, balance):
    batches = [draw_batch(30, seed)._replace(penalties=None) for seed in range(5)]
    text = text_of(draw_batch(400, seed=9))
    objective = GroupDRO(step_size=0.7, level="token_type", balance=balance)
    memory = objective.memory(text)
    q = {key: float(n) ** (1 - balance) for key, n in enumerate(text.token_counts) if n > 0}
    for batch in batches:
        ids = batch.tokens.token_ids
        means = {int(key): batch.errors[ids == key].mean().item() for key in ids.unique()}
        for key, mean in means.items():
            q[key] *= math.exp(0.7 * mean)
        total = sum(q.values())
        q = {key: weight / total for key, weight in q.items()}
        here = sum(q[key] for key in means)
        found = apply(objective, batch, memory=memory)
        assert found.loss.item() == pytest.approx(
            sum(q[key] * mean for key, mean in means.items()) / here, rel=1e-9
        )
        expected = torch.tensor([q[int(i)] / here / int((ids == i).sum()) for i in ids])
        torch.testing.assert_close(found.gradient, expected.double(), rtol=1e-6, atol=1e-9)
    kept = memory.log_q.exp()
    assert kept.sum().item() == pytest.approx(1)
    assert {key for key in range(NUM_TYPES) if kept[key] > 0} == set(q)


def test_group_dro_moves_its_weight_to_the_group_that_stays_bad(apply):
    batch = draw_batch(60)
    worst = batch.tokens.token_ids == batch.tokens.token_ids[0]
    losses = Losses(0.1 + worst.double(), None, batch.tokens)
    objective = GroupDRO(step_size=0.5, level="token_type", balance=1)
    memory = objective.memory(text_of(batch))
    shares = [
        float(apply(objective, losses, memory=memory).gradient[worst].sum()) for _ in range(20)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.4
    assert shares[-1] > 0.95


def test_group_dro_of_groups_whose_weight_underflows_still_weighs_them(apply):
    first, second = draw_batch(20), draw_batch(20, seed=1)
    first = first._replace(tokens=first.tokens._replace(token_ids=torch.zeros(20).int()))
    second = second._replace(tokens=second.tokens._replace(token_ids=torch.ones(20).int()))
    objective = GroupDRO(step_size=1e4, level="token_type")
    memory = objective.memory(text_of(draw_batch(400, seed=9)))
    apply(objective, first, memory=memory)
    found = apply(objective, second, memory=memory)
    assert found.gradient.sum().item() == pytest.approx(1)
