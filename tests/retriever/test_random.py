import numpy as np

from ssae.retriever.random import Random

POOL = [f"document {i}" for i in range(2000)]


def test_the_same_seed_and_draw_give_the_same_scores():
    first = Random(seed=3, draw="control").score(POOL, ["seed"])
    again = Random(seed=3, draw="control").score(POOL, ["another seed"])
    assert np.array_equal(first, again)
    assert first.dtype == np.float32
    assert first.shape == (2000,)


def test_another_seed_or_draw_is_independent():
    base = Random(seed=0, draw="control").score(POOL, [])
    for other in (Random(seed=1, draw="control"), Random(seed=0, draw="generalist")):
        assert abs(np.corrcoef(base, other.score(POOL, []))[0, 1]) < 0.1


def test_scores_are_uniform():
    quarters = np.histogram(Random(seed=0, draw="x").score(POOL, []), bins=4, range=(0, 1))[0]
    assert quarters.sum() == 2000
    assert np.all(np.abs(quarters - 500) < 100)
