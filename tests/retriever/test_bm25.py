import math
import re

import numpy as np
import pytest

from ssae.retriever.bm25 import BM25

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "theta", "iota", "kappa", "lambda", "omega"]


def random_texts(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    return [
        " ".join(generator.choice(WORDS, size=generator.integers(1, 40), p=weights / weights.sum()))
        for _ in range(count)
    ]


def brute_force(
    pool: list[str], seeds: list[str], k1: float, b: float, nearest: int
) -> list[float]:
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
        largest = sorted(similarities, reverse=True)[:nearest]
        scores.append(sum(largest) / len(largest))
    return scores


@pytest.mark.parametrize("nearest", [1, 3, 100])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_scores_match_a_brute_force_bm25(nearest: int, k1: float, b: float):
    pool, seeds = random_texts(60, 0), [*random_texts(6, 1), "alpha unheard alpha"]
    scores = BM25(nearest_seeds=nearest, k1=k1, b=b, stop_words=None).score(pool, seeds)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, brute_force(pool, seeds, k1, b, nearest), rtol=2e-5)


def test_a_seed_repeated_to_ten_times_its_length_scores_the_same():
    pool, seed = random_texts(40, 2), "beta gamma theta"
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
    long = " ".join([seed] * 10)
    np.testing.assert_allclose(bm25.score(pool, [seed]), bm25.score(pool, [long]), rtol=1e-5)


def test_scores_stay_below_one_even_for_the_seed_itself():
    pool = [*random_texts(40, 3), "omega omega kappa"]
    scores = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None).score(pool, [pool[-1]])
    assert 0 < scores.max() < 1
    assert scores.argmax() == 40


def test_stop_words_do_not_relate_documents():
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words="english")
    scores = bm25.score(["the and of cat", "the and of dog"], ["the and of dog"])
    assert scores[0] == 0
    assert scores[1] > 0


def test_seeds_without_a_word_of_the_pool_are_refused():
    bm25 = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
    with pytest.raises(ValueError, match="none of the 1 seeds shares a word"):
        bm25.score(["alpha beta"], ["xylophone"])


@pytest.mark.parametrize("wrong", [{"k1": -1.0}, {"b": 1.5}, {"nearest_seeds": 0}])
def test_values_out_of_range_are_refused_with_the_override(wrong: dict):
    with pytest.raises(ValueError, match=r"set retriever\."):
        BM25(**{"nearest_seeds": 1, "k1": 1.2, "b": 0.75, "stop_words": None} | wrong)
