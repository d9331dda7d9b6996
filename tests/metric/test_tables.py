import json

import numpy as np
import pytest
import torch

from ssae.metric import tables
from ssae.metric.concept import ConceptScores
from ssae.metric.error_by_rank import RankErrors
from ssae.metric.frequency import frequency_of, rank_bins
from ssae.metric.represented import TypesFound
from ssae.metric.spread import Spread

POOL = torch.tensor([0, 1, 3, 9, 40, 41, 300, 4000, 0, 2])
COUNTS = np.array([7, 5, 4, 6, 30, 0, 50, 400, 5, 5])
FOUND = np.array([0.6, 0.4, 0.9, 0.5, 0.7, 0.0, 0.49, 0.8, 0.1, 0.5])


@pytest.fixture
def represented() -> dict:
    types = TypesFound(COUNTS, FOUND, np.zeros(10, int))
    return tables.represented_table(types, POOL, frequency_of(POOL).ranks)


def test_every_type_that_occurs_five_times_is_in_the_bin_of_its_frequency(represented):
    per_million = POOL.numpy() / POOL.sum().item() * 1e6
    total = 0
    for row in represented["bins"]:
        inside = (per_million >= row["low"]) & (per_million < row["high"]) & (COUNTS >= 5)
        assert row["num_types"] == inside.sum() > 0
        assert row["num_represented"] == (inside & (FOUND >= 0.5)).sum()
        assert row["low"] == 0 or row["high"] / row["low"] == pytest.approx(10**0.5)
        total += row["num_types"]
    assert total == (COUNTS >= 5).sum()
    assert represented["bins"][0]["low"] == 0
    assert represented["bins"][0]["num_types"] == 2  # of no occurrence in the pool


def test_the_cumulative_curve_goes_from_frequent_to_rare_types(represented):
    order = [v for v in [7, 6, 5, 4, 3, 2, 9, 1, 0, 8] if COUNTS[v] >= 5]
    tokens = COUNTS[order].cumsum() / COUNTS.sum()
    found = (FOUND[order] >= 0.5).cumsum() / 5
    expected = [[0, 0], *np.column_stack([tokens, found]).tolist()]
    np.testing.assert_allclose(represented["cumulative"], expected, rtol=1e-12)


def test_a_long_curve_is_thinned_to_its_ends():
    generator = np.random.default_rng(0)
    pool, counts = (torch.from_numpy(generator.integers(5, 50, 3000)) for _ in range(2))
    types = TypesFound(counts.numpy(), generator.random(3000), np.zeros(3000, int))
    curve = tables.represented_table(types, pool, frequency_of(pool).ranks)["cumulative"]
    assert len(curve) <= 200
    assert (curve[0], curve[-1]) == ([0, 0], [1, 1])
    assert (np.diff(curve, axis=0) >= 0).all()


def test_nothing_represented_gives_no_curve():
    types = TypesFound(COUNTS, np.zeros(10), np.full(10, -1))
    found = tables.represented_table(types, POOL, frequency_of(POOL).ranks)
    assert found["cumulative"] == []
    assert sum(row["num_represented"] for row in found["bins"]) == 0


@pytest.mark.parametrize("num", [0, 1, 5, 5000])
def test_firing_counts_stand_at_ranks_even_in_the_logarithm(num):
    fires = torch.cat([torch.randint(1, 1000, (num,)), torch.zeros(3, dtype=torch.int64)])
    found = tables.latent_ranks(fires)
    ordered = sorted(fires[fires > 0].tolist(), reverse=True)
    assert found["counts"] == [ordered[rank - 1] for rank in found["ranks"]]
    assert len(found["ranks"]) <= 200
    if num:
        assert (found["ranks"][0], found["ranks"][-1]) == (1, num)


@pytest.fixture
def spread() -> Spread:
    generator = np.random.default_rng(0)
    fires = generator.integers(0, 12, 3000)
    peaks = np.where(fires > 0, 10 ** generator.normal(size=3000), 0).astype(np.float32)
    per_type = np.where(COUNTS > 0, np.arange(10) + 1.5, 0).astype(np.float32)
    return Spread(fires, generator.uniform(0, 7, 3000), peaks, per_type)


def test_only_latents_that_fire_on_five_tokens_are_drawn(spread):
    found = tables.spread_table(spread, COUNTS, frequency_of(POOL).ranks)
    assert found is not None
    often = spread.fires >= 5
    assert sum(found["entropy"]["counts"]) == sum(found["max_activation"]["counts"]) == often.sum()
    logs = np.log10(spread.max_activation[often])
    edges = found["max_activation"]["bin_edges"]
    assert edges[0] <= logs.min()
    assert logs.max() <= edges[-1]
    assert found["median_effective_types"] == pytest.approx(
        np.median(np.exp(spread.entropy[often]))
    )
    assert len(found["points"]) == 1000
    known = set(zip(spread.entropy[often], spread.max_activation[often].astype(float), strict=True))
    assert {tuple(point) for point in found["points"]} <= known
    json.dumps(found, allow_nan=False)


def test_means_by_rank_are_over_the_types_in_the_text(spread):
    ranks = frequency_of(POOL).ranks
    found = tables.spread_table(spread, COUNTS, ranks)
    assert found is not None
    bins = found["max_per_type"]
    for low, high, mean in zip(bins["rank_low"], bins["rank_high"], bins["mean"], strict=True):
        own = [v for v in range(10) if low <= ranks[v] + 1 <= high and COUNTS[v]]
        assert mean == pytest.approx(np.mean([spread.max_per_type[v] for v in own]))


def test_latents_that_hardly_fire_give_no_spread(spread):
    rare = spread._replace(fires=np.minimum(spread.fires, 4))
    assert tables.spread_table(rare, COUNTS, frequency_of(POOL).ranks) is None


@pytest.mark.parametrize("ratios", [[], [0.0], [-0.3, 0.2, 4.1], [0.0, -7.9]])
def test_log_ratios_are_all_within_symmetric_edges(ratios):
    found = tables.log_ratio_table(np.array(ratios))
    edges = found["bin_edges"]
    assert edges[0] == -edges[-1]
    assert sum(found["counts"]) == found["num_latents"] == len(ratios)


def test_cosines_have_200_bins_from_minus_1_to_1():
    found = tables.cosine_table(np.array([-1.0, 1.0, 1.0, 0.015]))
    assert (len(found["counts"]), found["bin_edges"][0], found["bin_edges"][-1]) == (200, -1, 1)
    assert (found["counts"][0], found["counts"][101], found["counts"][-1]) == (1, 1, 2)


def test_bins_without_tokens_have_no_error_row():
    num = len(rank_bins(10)) - 1
    counts = torch.zeros(num, dtype=torch.int64)
    counts[1] = 4
    errors = RankErrors(2.0 * counts, counts, 3.0 * counts)
    [row] = tables.error_rows(errors, 10)
    edges = rank_bins(10).tolist()
    assert row == {
        "rank_low": edges[1] + 1, "rank_high": edges[2], "num_tokens": 4, "mean": 2, "max": 12,
    }  # fmt: skip


def test_concepts_that_were_not_measured_have_no_row():
    nan = np.nan
    scores = ConceptScores(np.array([0.9, nan]), np.array([0.5, nan]), np.array([3, -1]))
    labels = np.array([[True, False], [True, False], [False, True]])
    expected = {"concept": "a", "num_documents": 2, "auroc": 0.9, "f1": 0.5, "latent": 3}
    assert tables.concept_rows(scores, ["a", "b"], labels) == [expected]
