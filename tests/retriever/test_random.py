import numpy as np

from ssae.retriever.base import NO_SEED
from ssae.retriever.random import Random

POOL = [f"document {i}" for i in range(2000)]


def test_the_same_seed_and_draw_give_the_same_scores(score_texts):
    first = score_texts(Random(seed=3, draw="control"), POOL, ["seed"]).values
    again = score_texts(Random(seed=3, draw="control"), POOL, ["another seed"]).values
    assert np.array_equal(first, again)
    assert first.dtype == np.float32
    assert first.shape == (2000,)


def test_another_seed_or_draw_is_independent(score_texts):
    base = score_texts(Random(seed=0, draw="control"), POOL, []).values
    for other in (Random(seed=1, draw="control"), Random(seed=0, draw="generalist")):
        assert abs(np.corrcoef(base, score_texts(other, POOL, []).values)[0, 1]) < 0.1


def test_scores_are_uniform_and_name_no_seed(score_texts):
    scores = score_texts(Random(seed=0, draw="x"), POOL, [])
    assert set(scores.seeds.tolist()) == {NO_SEED}
    quarters = np.histogram(scores.values, bins=4, range=(0, 1))[0]
    assert quarters.sum() == 2000
    assert np.all(np.abs(quarters - 500) < 100)
