import numpy as np
import pytest
import torch

from ssae.metric.error_by_rank import ErrorByRank


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_sums_counts_and_maxima_equal_a_loop(batch):
    generator = np.random.default_rng(0)
    errors, ranks = generator.random(60) * 5, generator.integers(0, 20, 60)
    edges = [0, 1, 2, 5, 6, 19, 25]
    by_rank = ErrorByRank(torch.tensor(edges))
    for start in range(0, 60, batch):
        piece = slice(start, start + batch)
        by_rank.update(torch.tensor(errors[piece]), torch.tensor(ranks[piece]))
    found = by_rank.compute()
    for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        own = [e for e, r in zip(errors, ranks, strict=True) if low <= r < high]
        assert found.counts[index] == len(own)
        assert found.sums[index].item() == pytest.approx(sum(own), rel=1e-12)
        assert found.maxima[index].item() == max(own, default=0)
    assert found.over(2).maxima.tolist() == (found.maxima / 2).tolist()
