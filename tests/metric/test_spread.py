import math

import numpy as np
import pytest
from scipy import stats

from ssae.metric.spread import TokenSpread

D_SAE, NUM_TYPES = 12, 15


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [None, 4], ids=["dense", "sparse"])
def test_entropies_and_maxima_equal_loops_over_tokens(measure, draw_tokens, seed, k):
    tokens = draw_tokens(seed)
    found = measure(TokenSpread(D_SAE, NUM_TYPES + 2), tokens, k=k)
    for j in range(D_SAE):
        column = tokens.latents[:, j].astype(float)
        mass = [column[tokens.token_ids == v].sum() for v in range(NUM_TYPES)]
        expected = stats.entropy(mass) if sum(mass) else 0
        assert found.entropy[j] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert found.max_activation[j] == column.max()
        assert found.fires[j] == (column > 0).sum()
    for v in range(NUM_TYPES + 2):
        own = tokens.latents[tokens.token_ids == v]
        assert found.max_per_type[v] == (own.max() if len(own) else 0)
    assert found.fires[D_SAE - 2] == 0  # a silent latent took part


def test_the_effective_number_of_types_counts_types_that_share_the_mass_evenly(
    measure, draw_tokens
):
    tokens = draw_tokens(0)
    latents = np.zeros_like(tokens.latents)
    for j, types in enumerate([[0], [0, 1], [0, 1, 2, 3]]):
        for v in types:  # the same mass on each type, on few tokens or many
            own = np.flatnonzero(tokens.token_ids == v)
            latents[own, j] = 8 / len(own)
    found = measure(TokenSpread(D_SAE, NUM_TYPES), tokens._replace(latents=latents))
    assert found.effective_types[:4].tolist() == pytest.approx([1, 2, 4, 1], rel=1e-6)
    assert found.entropy[2] == pytest.approx(math.log(4), rel=1e-6)
