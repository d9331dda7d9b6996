import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.metric.frequency import BANDS, frequency_of, rank_bins


def test_bands_are_decades_per_million_tokens_of_the_pool():
    counts = torch.tensor([0, 1, 9, 10, 99, 100, 999, 1000, 9999, 10_000, 0])
    counts[-1] = 1_000_000 - int(counts.sum())
    expected = ["< 1", *["1 - 10"] * 2, *["10 - 100"] * 2, *["100 - 1k"] * 2, *["1k - 10k"] * 2,
                *[">= 10k"] * 2]  # fmt: skip
    assert [BANDS[band] for band in frequency_of(counts).bands] == expected
    # The rate decides, not the count.
    assert frequency_of(10 * counts).bands.tolist() == frequency_of(counts).bands.tolist()


def test_no_count_at_all_is_the_lowest_band():
    assert frequency_of(torch.zeros(4, dtype=torch.int64)).bands.tolist() == [0] * 4


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_are_those_of_a_stable_sort_by_falling_count(counts):
    found = frequency_of(torch.tensor(counts)).ranks.tolist()
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    assert found == [order.index(i) for i in range(len(counts))]


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 10, 300, 30_522, 50_304, 128_256, 256_000])
def test_rank_bins_tile_the_vocabulary_with_even_steps_in_the_logarithm(vocab_size):
    edges = rank_bins(vocab_size)
    assert (edges[0], edges[-1]) == (0, vocab_size)
    assert (edges.diff() > 0).all()
    high = edges[edges >= 100].double()
    ratios = high[1:] / high[:-1]
    assert ((ratios > 1.6) & (ratios < 2.0)).all()  # 10 ** (1/4) = 1.78
