from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from ssae.embedder.tfidf import TfidfSVD

SETTINGS = {
    "dim": 8,
    "max_features": 200,
    "min_df": 2,
    "max_df": 0.9,
    "sample_documents": 10_000,
    "seed": 0,
}


def texts(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 301)
    words = np.array([f"word{i}" for i in range(300)])
    return [
        " ".join(generator.choice(words, size=30, p=weights / weights.sum())) for _ in range(count)
    ]


POOL, SEEDS = texts(500, 0), texts(9, 1)


class Embedded(NamedTuple):
    pool: np.ndarray
    seeds: np.ndarray


@pytest.fixture
def embed(tmp_path: Path) -> Callable[..., Embedded]:
    """Return a function that fits on a sample of the pool and embeds pool and seeds."""

    def run(embedder: TfidfSVD, pool: list[str], seeds: list[str]) -> Embedded:
        embedder.fit([pool[i] for i in embedder.sample(len(pool))], tmp_path)
        vectors = embedder.open(tmp_path)
        return Embedded(vectors(pool), vectors(seeds))

    return run


def test_vectors_are_those_of_scikit_learn_used_directly(embed):
    embedded = embed(TfidfSVD(**SETTINGS), POOL, SEEDS)
    tfidf = TfidfVectorizer(
        max_features=200, min_df=2, max_df=0.9, sublinear_tf=True, dtype=np.float32
    )
    counts = tfidf.fit_transform(POOL)
    svd = TruncatedSVD(8, random_state=0).fit(counts)
    np.testing.assert_allclose(embedded.pool, svd.transform(counts), atol=1e-5)
    np.testing.assert_allclose(embedded.seeds, svd.transform(tfidf.transform(SEEDS)), atol=1e-5)
    assert embedded.pool.dtype == embedded.seeds.dtype == np.float32


def test_a_vector_depends_on_its_own_text_alone(embed, tmp_path: Path):
    embedded = embed(TfidfSVD(**SETTINGS), POOL, SEEDS)
    vectors = TfidfSVD(**SETTINGS).open(tmp_path)
    alone = np.concatenate([vectors([text]) for text in POOL[:20]])
    np.testing.assert_allclose(alone, embedded.pool[:20], atol=1e-6)
    assert not vectors(["unheard words"]).any()


def test_the_same_arguments_give_the_same_bits(embed):
    first, again = (embed(TfidfSVD(**SETTINGS), POOL, SEEDS) for _ in range(2))
    assert np.array_equal(first.pool, again.pool)
    assert np.array_equal(first.seeds, again.seeds)


def test_a_fit_on_a_sample_embeds_every_document(embed):
    embedder = TfidfSVD(**SETTINGS | {"sample_documents": 100})
    sample = embedder.sample(500)
    assert len(set(sample.tolist())) == 100
    assert np.array_equal(sample, np.sort(sample))
    embedded = embed(embedder, POOL, SEEDS)
    assert embedded.pool.shape == (500, 8)
    assert np.array_equal(embedded.pool, embed(embedder, POOL, SEEDS).pool)
    other = embed(TfidfSVD(**SETTINGS | {"sample_documents": 100, "seed": 1}), POOL, SEEDS)
    assert not np.allclose(embedded.pool, other.pool, atol=1e-3)


def test_a_dim_beyond_the_pool_is_refused_with_one_that_fits(embed):
    with pytest.raises(ValueError, match=r"dim=250 for 500 documents and 200 words; .*dim=100"):
        embed(TfidfSVD(**SETTINGS | {"dim": 250}), POOL, SEEDS)


def test_a_pool_without_a_repeated_word_is_refused(embed):
    with pytest.raises(ValueError, match=r"set retriever\.embedder\.min_df=1"):
        embed(TfidfSVD(**SETTINGS), ["one two", "three four"], SEEDS)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"max_df": 1.5}, {"sample_documents": 0}])
def test_values_out_of_range_are_refused_with_the_override(wrong: dict):
    with pytest.raises(ValueError, match=r"retriever\.embedder\."):
        TfidfSVD(**SETTINGS | wrong)
