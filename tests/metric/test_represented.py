import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ssae.metric.firings import Firings
from ssae.metric.represented import RepresentedTypes, half_peaks


def brute_thresholds(latents: np.ndarray) -> list[float]:
    """Half of the ceil(0.999 m)-th smallest positive value of every column."""
    thresholds = []
    for column in latents.T:
        positive = sorted(column[column > 0].tolist())
        place = math.ceil(999 * len(positive) / 1000)
        thresholds.append(positive[place - 1] / 2 if positive else 0.0)
    return thresholds


@pytest.mark.parametrize("num_tokens", [3, 999, 1000, 1001, 2000, 2001, 3500])
def test_thresholds_are_half_of_an_order_statistic(measure, draw_tokens, num_tokens):
    tokens = draw_tokens(num_tokens, num_tokens=num_tokens)
    generator = np.random.default_rng(1)
    latents = tokens.latents.copy()
    latents[:, 0] = generator.permutation(np.arange(1, num_tokens + 1))  # fires on every token
    latents[:, 1:] = np.where(np.cumsum(latents[:, 1:] > 0, axis=1) <= 3, latents[:, 1:], 0)
    table = measure(Firings(12), tokens._replace(latents=latents))
    np.testing.assert_array_equal(half_peaks(table), np.float32(brute_thresholds(latents)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [None, 4], ids=["dense", "sparse"])
def test_f1_of_the_best_latent_is_that_of_scikit_learn(measure, draw_tokens, seed, k):
    tokens = draw_tokens(seed)
    found = measure(RepresentedTypes(12, 17), tokens, k=k)
    strong = tokens.latents > np.float32(brute_thresholds(tokens.latents))
    for v in range(17):
        own = tokens.token_ids == v
        scores = [f1_score(own, strong[:, j], zero_division=0) for j in range(12)]
        assert found.type_counts[v] == own.sum()
        assert found.best_f1[v] == pytest.approx(max(scores), rel=1e-12)
        best = scores.index(max(scores)) if max(scores) > 0 else -1
        assert found.best_latent[v] == best
        assert found.represented[v] == (max(scores) >= 0.5)
    assert 0 < found.represented.sum() < 15


def test_latents_that_fire_on_nothing_represent_nothing(measure, draw_tokens):
    tokens = draw_tokens(0)
    silent = tokens._replace(latents=np.zeros_like(tokens.latents))
    found = measure(RepresentedTypes(12, 17), silent)
    assert found.best_f1.tolist() == [0] * 17
    assert found.best_latent.tolist() == [-1] * 17
