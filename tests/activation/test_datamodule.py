import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.activation.datamodule import ActivationDataModule, BatchOrder

SIZES = (st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32))


def stream(order: BatchOrder, num_steps: int) -> torch.Tensor:
    return torch.cat([order.indices(step) for step in range(num_steps)])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(*SIZES)
def test_every_epoch_is_a_permutation_and_no_token_is_lost_between_epochs(
    num_tokens, batch_size, seed
):
    epochs = 4
    num_steps = -(-epochs * num_tokens // batch_size)
    tokens = stream(BatchOrder(num_tokens, batch_size, seed), num_steps)
    assert len(tokens) == num_steps * batch_size
    for epoch in tokens[: epochs * num_tokens].view(epochs, num_tokens):
        assert epoch.sort().values.tolist() == list(range(num_tokens))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(*SIZES, st.permutations(range(8)))
def test_a_batch_is_a_function_of_seed_and_step_and_not_of_what_was_read_before(
    num_tokens, batch_size, seed, steps
):
    one_pass = [BatchOrder(num_tokens, batch_size, seed).indices(step) for step in range(8)]
    order = BatchOrder(num_tokens, batch_size, seed)
    torch.manual_seed(seed % 1000)  # the global generator has no say
    for step in steps:
        assert torch.equal(order.indices(step), one_pass[step])


def test_neighbouring_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(BatchOrder(50, 50, seed).indices(epoch).tolist())
        for seed in range(30)
        for epoch in range(30)
    }
    assert len(orders) == 900


def test_reading_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    BatchOrder(10, 4, 0).indices(7)
    assert torch.equal(torch.rand(3), expected)


def batches(activations, *, rank=0, size=1, first=0, batch_size_tokens=12, num_steps=9):
    module = ActivationDataModule(
        activations, batch_size_tokens=batch_size_tokens, seed=3, num_steps=num_steps
    )
    module.trainer = types.SimpleNamespace(  # pyright: ignore
        world_size=size, global_rank=rank, global_step=first
    )
    return list(module.train_dataloader())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_slices_of_all_ranks_in_order_are_the_batch_of_one_rank(
    write_tokens, random_tokens, size
):
    activations = write_tokens(random_tokens(50), 20).activations
    alone = batches(activations)
    ranks = [batches(activations, rank=rank, size=size) for rank in range(size)]
    assert len(alone) == 9
    for step, whole in enumerate(alone):
        for column, name in zip(zip(*(r[step] for r in ranks), strict=True), whole._fields,
                                strict=True):  # fmt: skip
            assert torch.equal(torch.cat(column), getattr(whole, name))


def test_batches_are_the_tokens_that_the_order_names(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(50), 20)
    order = BatchOrder(50, 12, 3)
    for step, batch in enumerate(batches(activations)):
        assert torch.equal(batch.activations, tokens.activations[order.indices(step)])
        assert torch.equal(batch.token_ids, tokens.token_ids[order.indices(step)])


def test_a_resumed_run_gets_the_batches_that_are_left(write_tokens, random_tokens):
    activations = write_tokens(random_tokens(50), 20).activations
    whole, rest = batches(activations), batches(activations, first=4)
    assert len(rest) == 5
    for a, b in zip(whole[4:], rest, strict=True):
        assert torch.equal(a.activations, b.activations)


def test_ranks_that_cannot_share_a_batch_evenly_are_refused_with_a_size_that_works(
    write_tokens, random_tokens
):
    activations = write_tokens(random_tokens(50), 20).activations
    with pytest.raises(ValueError, match=r"\(10\).*\(4\); set training.batch_size_tokens=8"):
        batches(activations, size=4, batch_size_tokens=10)
