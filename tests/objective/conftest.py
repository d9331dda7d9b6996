"""Losses of tokens with types and documents, and the text they come from."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor

from ssae.activation.shards import Tokens
from ssae.objective.base import Losses, Objective

NUM_TYPES, NUM_DOCUMENTS = 12, 7


def draw_batch(num: int = 60, seed: int = 0) -> Losses:
    """A skewed batch: some types come often, some once, some not at all."""
    generator = torch.Generator().manual_seed(seed)
    skewed = torch.rand(num, dtype=torch.float64, generator=generator) ** 3
    token_ids = (NUM_TYPES * skewed).int()
    document_ids = torch.randint(0, NUM_DOCUMENTS, (num,), generator=generator).int()
    errors = 2 * torch.rand(num, dtype=torch.float64, generator=generator) ** 2
    penalties = 0.3 * torch.rand(num, dtype=torch.float64, generator=generator)
    tokens = Tokens(torch.empty(num, 0), token_ids, document_ids, torch.zeros(num).int())
    return Losses(errors, penalties, tokens)


def text_of(losses: Losses, times: int = 1) -> Any:
    """Rows whose counts are those of the batch."""
    assert losses.tokens is not None
    token_counts = torch.bincount(losses.tokens.token_ids, minlength=NUM_TYPES)
    documents = torch.bincount(losses.tokens.document_ids, minlength=NUM_DOCUMENTS)
    return types.SimpleNamespace(
        token_counts=times * token_counts, document_counts=lambda: times * documents
    )


class Applied(types.SimpleNamespace):
    """What an objective made of a batch: loss, gradient by errors and penalties, logged, memory."""


@pytest.fixture
def batch() -> Losses:
    return draw_batch()


@pytest.fixture
def text(batch):
    return text_of(batch)


@pytest.fixture
def apply():
    def applied(objective: Objective, losses: Losses | Tensor, memory=None, rows=None) -> Applied:
        if isinstance(losses, Tensor):
            losses = Losses(losses)
        memory = objective.memory(rows) if memory is None else memory
        errors = losses.errors.clone().requires_grad_()
        penalties = losses.penalties
        if penalties is not None:
            penalties = penalties.clone().requires_grad_()
        loss, logged = objective(losses._replace(errors=errors, penalties=penalties), memory)
        loss.backward()
        return Applied(
            loss=loss.detach(), gradient=errors.grad, logged=logged, memory=memory,
            penalty_gradient=None if penalties is None else penalties.grad,
        )  # fmt: skip

    return applied
