import math
import re

import numpy as np
import pytest

from ssae.retriever.base import NO_SEED
from ssae.retriever.bm25 import BM25

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "theta", "iota", "kappa", "lambda", "omega"]


def random_texts(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    return [
        " ".join(generator.choice(WORDS, size=generator.integers(1, 40), p=weights / weights.sum()))
        for _ in range(count)
    ]


def brute_force(pool: list[str], seeds: list[str], k1: float, b: float) -> np.ndarray:
    """The similarities (num_pool, num_seeds)."""
    documents = [re.findall(r"\w\w+", text.lower()) for text in pool]
    mean_length = sum(map(len, documents)) / len(documents)
    vocabulary = {word for document in documents for word in document}

    def idf(word: str) -> float:
        df = sum(word in document for document in documents)
        return math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))

    scores = []
    for document in documents:
        similarities = []
        for seed in seeds:
            query = [w for w in re.findall(r"\w\w+", seed.lower()) if w in vocabulary]
            numerator = 0.0
            for word in query:
                tf = document.count(word)
                length = 1 - b + b * len(document) / mean_length
                numerator += idf(word) * tf / (tf + k1 * length)
            similarities.append(numerator / sum(map(idf, query)) if query else 0.0)
        scores.append(similarities)
    return np.array(scores)


@pytest.mark.parametrize("nearest", [1, 3, 100])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_scores_match_a_brute_force_bm25(score_texts, nearest: int, k1: float, b: float):
    pool, seeds = random_texts(60, 0), [*random_texts(6, 1), "alpha unheard alpha"]
    bm25 = BM25(nearest_seeds=nearest, k1=k1, b=b, stop_words=None)
    scores = score_texts(bm25, pool, seeds)
    assert scores.values.dtype == np.float32
    similarities = brute_force(pool, seeds, k1, b)
    expected = np.sort(similarities, axis=1)[:, -nearest:].mean(axis=1)
    np.testing.assert_allclose(scores.values, expected, rtol=2e-5)
    assert scores.seeds.dtype == np.int32
    largest = similarities.max(axis=1)
    assert np.all((scores.seeds >= 0) == (largest > 0))
    named = similarities[np.arange(len(pool)), scores.seeds.clip(0)]
    np.testing.assert_allclose(named, largest, rtol=2e-5)


def test_a_document_that_shares_no_word_has_no_seed(score_texts):
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
    scores = score_texts(bm25, ["alpha alpha beta", "xylophone", "...", "beta"], ["beta", "alpha"])
    assert scores.seeds.tolist() == [1, NO_SEED, NO_SEED, 0]
    assert scores.values[1:3].tolist() == [0, 0]


def test_a_seed_repeated_to_ten_times_its_length_scores_the_same(score_texts):
    pool, seed = random_texts(40, 2), "beta gamma theta"
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
    long = " ".join([seed] * 10)
    short = score_texts(bm25, pool, [seed]).values
    np.testing.assert_allclose(short, score_texts(bm25, pool, [long]).values, rtol=1e-5)


def test_scores_stay_below_one_even_for_the_seed_itself(score_texts):
    pool = [*random_texts(40, 3), "omega omega kappa"]
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
    scores = score_texts(bm25, pool, [pool[-1]]).values
    assert 0 < scores.max() < 1
    assert scores.argmax() == 40


def test_stop_words_do_not_relate_documents(score_texts):
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words="english")
    scores = score_texts(bm25, ["the and of cat", "the and of dog"], ["the and of dog"]).values
    assert scores[0] == 0
    assert scores[1] > 0


@pytest.mark.parametrize("pool", [["alpha beta"], ["..."], ["the"]])
def test_seeds_without_a_word_of_the_pool_are_refused(score_texts, pool: list[str]):
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
    with pytest.raises(ValueError, match="none of the 1 seeds shares a word"):
        score_texts(bm25, pool, ["xylophone"])


@pytest.mark.parametrize("wrong", [{"k1": -1.0}, {"b": 1.5}, {"nearest_seeds": 0}])
def test_values_out_of_range_are_refused_with_the_override(wrong: dict):
    with pytest.raises(ValueError, match=r"set retriever\."):
        BM25(**{"nearest_seeds": 1, "k1": 1.2, "b": 0.75, "stop_words": None} | wrong)
