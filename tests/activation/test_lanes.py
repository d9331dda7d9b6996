import itertools
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.activation.lanes import sample_rows, windows

EPOCHS = 3
LENGTHS = st.lists(st.integers(0, 12), min_size=4, max_size=60).filter(any)


def make_rows(lengths) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        num_rows=len(lengths), text_tokens=np.array(lengths, dtype=np.int32)
    )


def plan(rows, lane, num_lanes, size, seed, epochs=EPOCHS):
    found = windows(rows, lane=lane, num_lanes=num_lanes, lane_window_tokens=size, seed=seed)
    return list(itertools.takewhile(lambda window: window.epoch < epochs, found))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 50), st.integers(0, 2**32))
def test_an_epoch_of_all_lanes_holds_every_token_of_text_exactly_once(
    lengths, num_lanes, size, seed
):
    rows = make_rows(lengths)
    for epoch in range(EPOCHS):
        used = [
            row
            for lane in range(num_lanes)
            for window in plan(rows, lane, num_lanes, size, seed)
            if window.epoch == epoch
            for row in window.row_ids.tolist()
            if lengths[row]
        ]
        assert sorted(used) == [row for row, length in enumerate(lengths) if length]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 50), st.integers(0, 2**32))
def test_windows_follow_each_other_without_a_gap_and_are_of_nearly_equal_size(
    lengths, num_lanes, size, seed
):
    rows, position = make_rows(lengths), 0
    found = plan(rows, 0, num_lanes, size, seed)
    for window in found:
        assert window.start == position
        assert window.num_tokens == rows.text_tokens[window.row_ids].sum() > 0
        assert window.num_tokens <= size + max(lengths)
        assert sorted(window.places().tolist()) == list(range(window.num_tokens))
        position += window.num_tokens
    for _, epoch in itertools.groupby(found, lambda window: window.epoch):
        sizes = [window.num_tokens for window in epoch]
        assert len(sizes) <= -(-sum(sizes) // size)
        if len(sizes) == -(-sum(sizes) // size):
            assert max(sizes) - min(sizes) <= 2 * max(lengths)


def test_lanes_epochs_and_windows_have_orders_of_their_own():
    rows = make_rows([10] * 400)
    found = [w for lane in range(4) for w in plan(rows, lane, 4, 100, 7)]
    assert len(found) == 4 * EPOCHS * 10
    assert len({tuple(w.places().tolist()) for w in found}) == len(found)
    assert len({tuple(w.row_ids.tolist()) for w in found}) == len(found)
    first = torch.from_numpy(np.concatenate([w.row_ids for w in found[:2]])).double()
    assert abs(first.mean() / 400 - 0.5) < 0.25  # from everywhere, not the first rows


def test_the_plan_leaves_the_global_generators_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(1)
    np.random.seed(1)
    for window in plan(make_rows([5] * 20), 0, 2, 10, 0):
        window.places()
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(1, 300), st.integers(0, 2**32))
def test_a_sample_holds_enough_text_and_no_row_too_many(lengths, num_tokens, seed):
    rows = make_rows(lengths)
    chosen = sample_rows(rows, num_tokens, seed)
    assert np.array_equal(chosen, np.unique(chosen))
    sizes = rows.text_tokens[chosen]
    if num_tokens >= sum(lengths):
        assert sizes.sum() == sum(lengths)
    else:
        assert num_tokens <= sizes.sum() < num_tokens + max(lengths)


def test_samples_are_random_and_seeded():
    rows = make_rows([10] * 5000)
    chosen = sample_rows(rows, 20_000, 3)
    assert len(chosen) == 2000
    assert abs(chosen.mean() / 5000 - 0.5) < 4 / (12 * 2000) ** 0.5
    assert np.array_equal(chosen, sample_rows(rows, 20_000, 3))
    assert not np.array_equal(chosen, sample_rows(rows, 20_000, 4))


@pytest.mark.parametrize("seed", [0, 2**32])
def test_the_plan_is_a_function_of_its_arguments(seed):
    rows = make_rows([3, 0, 7, 5, 1, 9, 2, 2])
    for first, second in zip(*(plan(rows, 1, 2, 6, seed) for _ in range(2)), strict=True):
        assert np.array_equal(first.row_ids, second.row_ids)
        assert (first.start, first.seed) == (second.start, second.seed)
