import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.activation.order import Permutation, WindowOrder, mixed

ORDERS = (st.integers(1, 200), st.integers(1, 50), st.integers(0, 2**32),
          st.integers(1, 80), st.integers(1, 9))  # fmt: skip
EPOCHS = 4


def chi_square(counts: np.ndarray) -> float:
    """The statistic of uniform counts in standard deviations: about N(0, 1) if they are."""
    expected = counts.mean()
    degrees = counts.size - 1
    return ((counts - expected) ** 2 / expected).sum() / math.sqrt(2 * degrees) - math.sqrt(
        degrees / 2
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.integers(0, 2**64))
def test_a_permutation_takes_every_value_once(n, seed):
    assert sorted(Permutation(n, seed)(np.arange(n))) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 99, 100, 101, 2**16, 10**6 + 3])
def test_sizes_at_the_edges_of_a_square_are_permutations_too(n):
    found = Permutation(n, 7)(np.arange(n))
    assert np.array_equal(np.sort(found), np.arange(n))


def test_a_value_does_not_depend_on_what_else_is_asked_for():
    perm = Permutation(1000, 3)
    whole = perm(np.arange(1000))
    for positions in ([5], [999, 0, 5], [[1, 2], [3, 4]]):
        assert np.array_equal(perm(np.array(positions)), whole[np.array(positions)])


@pytest.mark.parametrize("n", [2, 3, 5, 10, 37])
def test_every_value_is_as_likely_at_every_position(n):
    seeds = 4000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), Permutation(n, mixed(seed, 0))(np.arange(n))] += 1
    # Rows and columns have fixed sums: (n - 1)^2 degrees of freedom instead of n^2 - 1.
    statistic = ((counts - seeds / n) ** 2 / (seeds / n)).sum() * (n - 1) / n
    degrees = (n - 1) ** 2
    assert abs(statistic - degrees) < 4 * math.sqrt(2 * degrees)


def test_all_orders_of_four_occur_equally_often():
    orders = [tuple(Permutation(4, mixed(seed, 1))(np.arange(4))) for seed in range(12_000)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert abs(chi_square(counts)) < 4


def test_neighbours_go_apart_and_no_structure_is_left():
    n = 2**18
    values = Permutation(n, 11)(np.arange(n))
    distance = np.histogram((values[1:] - values[:-1]) % n, bins=256, range=(0, n))[0]
    assert abs(chi_square(distance)) < 4
    by_place = np.histogram2d(np.arange(n), values, bins=32)[0]
    assert abs(chi_square(by_place)) < 5
    assert abs(np.corrcoef(np.arange(n), values)[0, 1]) < 4 / math.sqrt(n)
    assert 0 <= (values == np.arange(n)).sum() <= 8  # fixed points: Poisson(1)


def test_neighbouring_seeds_and_epochs_are_unrelated():
    n = 10_000
    values = [
        Permutation(n, mixed(seed, epoch))(np.arange(n)) for seed in (0, 1) for epoch in (0, 1)
    ]
    for i, first in enumerate(values):
        for second in values[:i]:
            assert (first == second).sum() <= 8
            assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(n)


def test_a_trillion_takes_no_more_memory_than_ten():
    tracemalloc.start()
    values = Permutation(10**12, 5)(np.arange(10**12 - 1000, 10**12))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert len(set(values.tolist())) == 1000
    assert 0 <= values.min() < values.max() < 10**12
    assert abs(values.mean() / 10**12 - 0.5) < 4 / math.sqrt(12 * 1000)


def test_an_empty_permutation_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        Permutation(0, 1)


def tokens_of(order: WindowOrder, num_steps: int) -> torch.Tensor:
    return torch.cat([order.indices(step) for step in range(num_steps)])


def make(num_tokens, batch_size, seed, window_tokens, block_tokens) -> WindowOrder:
    return WindowOrder(
        num_tokens, batch_size, seed, window_tokens, min(block_tokens, window_tokens)
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(*ORDERS)
def test_every_epoch_is_a_permutation_and_no_token_is_lost_between_epochs_and_windows(
    num_tokens, batch_size, seed, window_tokens, block_tokens
):
    order = make(num_tokens, batch_size, seed, window_tokens, block_tokens)
    num_steps = -(-EPOCHS * num_tokens // batch_size)
    tokens = tokens_of(order, num_steps)
    assert len(tokens) == num_steps * batch_size
    for epoch in tokens[: EPOCHS * num_tokens].view(EPOCHS, num_tokens):
        assert epoch.sort().values.tolist() == list(range(num_tokens))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(*ORDERS, st.permutations(range(8)))
def test_a_batch_is_a_function_of_seed_and_step_and_not_of_what_was_read_before(
    num_tokens, batch_size, seed, window_tokens, block_tokens, steps
):
    settings = num_tokens, batch_size, seed, window_tokens, block_tokens
    one_pass = [make(*settings).indices(step) for step in range(8)]
    order = make(*settings)
    torch.manual_seed(seed % 1000)  # the global generator has no say
    for step in steps:
        assert torch.equal(order.indices(step), one_pass[step])


@pytest.mark.parametrize(("seed", "num_tokens"), [(0, 50), (3, 50), (2**32, 97), (1, 3)])
def test_what_fits_one_window_is_shuffled_as_a_whole_by_one_randperm_an_epoch(seed, num_tokens):
    order = WindowOrder(num_tokens, 12, seed, max(num_tokens, 64), 8)
    epochs = []
    for epoch in range(EPOCHS):
        mixed_seed = (seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) % 2**63
        generator = torch.Generator().manual_seed(mixed_seed)
        epochs.append(torch.randperm(num_tokens, generator=generator))
    expected = torch.cat(epochs)
    num_steps = len(expected) // 12
    assert torch.equal(tokens_of(order, num_steps), expected[: num_steps * 12])


def test_windows_are_of_nearly_equal_size_and_hold_whole_blocks():
    order = WindowOrder(10_003, 1, 5, 1000, 16)
    numbers = torch.tensor([order.window_at(token) for token in range(10_003)])
    sizes = numbers.bincount()
    assert len(sizes) == order.num_windows == 11
    assert sizes.max() <= 1016
    assert sizes.max() - sizes.min() <= 2 * 16
    tokens = tokens_of(order, 10_003)
    windows_of_block: dict[int, set[int]] = {}
    for token, number in zip(tokens.tolist(), numbers.tolist(), strict=True):
        windows_of_block.setdefault(token // 16, set()).add(number)
    assert {len(windows) for windows in windows_of_block.values()} == {1}


def test_blocks_of_a_window_come_from_everywhere_and_differ_between_epochs():
    order = WindowOrder(2**16, 2**10, 5, 2**13, 2**4)
    first = order.indices(0) // 2**4
    assert abs(first.double().mean() / 2**12 - 0.5) < 0.1
    second_epoch = order.indices(2**6) // 2**4
    shared = len(set(first.tolist()) & set(second_epoch.tolist())) / len(set(first.tolist()))
    assert shared < 0.5


def test_neighbouring_tokens_meet_in_a_batch_as_seldom_as_in_a_uniform_shuffle():
    batch, window, block = 512, 2**14, 32
    order = WindowOrder(2**17, batch, 9, window, block)
    pairs = 0
    num_steps = 256  # an epoch
    for step in range(num_steps):
        counts = (order.indices(step) // block).bincount()
        pairs += int((counts * (counts - 1) // 2).sum())
    expected = num_steps * batch * (batch - 1) / 2 * (block - 1) / (window - 1)
    assert abs(pairs - expected) < 4 * math.sqrt(expected)


def test_neighbouring_seeds_and_epochs_have_orders_of_their_own():
    for window in (50, 20):
        orders = {
            tuple(WindowOrder(50, 50, seed, window, 2).indices(epoch).tolist())
            for seed in range(30)
            for epoch in range(30)
        }
        assert len(orders) == 900


def test_reading_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    WindowOrder(10, 4, 0, 5, 2).indices(7)
    assert torch.equal(torch.rand(3), expected)


def test_an_order_of_a_trillion_tokens_takes_the_memory_of_a_window():
    order = WindowOrder(10**12, 64, 1, 4096, 64)
    tracemalloc.start()
    late = order.indices(10**12 // 64 - 1)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert len(late.unique()) == 64
