import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssae.embedder.base import Embedder, Embeddings
from ssae.embedder.tfidf import TfidfSVD
from ssae.retriever.dense import Dense

SHARED = Path(__file__).parents[2] / "../shared/data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed(Embedder):
    pool: np.ndarray
    seeds: np.ndarray

    def embed(self, pool, seeds) -> Embeddings:
        return Embeddings(self.pool.copy(), self.seeds.copy())


def vectors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pool = generator.normal(1, 2, (300, 16)) * generator.uniform(0.1, 10, (300, 1))
    seeds = generator.normal(1, 2, (7, 16)) * generator.uniform(0.1, 10, (7, 1))
    return pool.astype(np.float32), seeds.astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def score(pool: np.ndarray, seeds: np.ndarray, nearest: int, centre: bool) -> np.ndarray:
    dense = Dense(
        nearest_seeds=nearest, subtract_centre=centre, embedder=Fixed(pool=pool, seeds=seeds)
    )
    return dense.score(["x"] * len(pool), ["x"] * len(seeds))


@pytest.mark.parametrize(
    ("nearest", "reduce"),
    [
        (1, lambda cosines: cosines.max(axis=1)),
        (3, lambda cosines: np.sort(cosines, axis=1)[:, -3:].mean(axis=1)),
        (7, lambda cosines: cosines.mean(axis=1)),
        (99, lambda cosines: cosines.mean(axis=1)),
    ],
)
def test_scores_are_the_cosines_that_plain_numpy_gives(nearest, reduce):
    pool, seeds = vectors()
    expected = reduce(unit(pool) @ unit(seeds).T)
    result = score(pool, seeds, nearest, centre=False)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_the_centre_is_the_mean_direction_of_the_pool():
    pool, seeds = vectors()
    centre = unit(pool).mean(axis=0)
    expected = (unit(unit(pool) - centre) @ unit(unit(seeds) - centre).T).max(axis=1)
    np.testing.assert_allclose(score(pool, seeds, 1, centre=True), expected, atol=2e-6)


def test_a_direction_shared_by_all_documents_does_not_decide_the_order():
    generator = np.random.default_rng(1)
    topic = np.repeat(np.eye(8)[:2], 50, axis=0)  # the first 50 documents share the seed's topic
    pool = topic * 0.3 + 10 * generator.uniform(0.5, 2, (100, 1)) * np.eye(8)[7]
    seeds = 0.3 * np.eye(8)[:1] + 10 * np.eye(8)[7:]
    truth = np.arange(100) < 50
    result = score(pool.astype(np.float32), seeds.astype(np.float32), 1, centre=True)
    assert average_precision_score(truth, result) == 1


def test_a_document_without_a_known_word_scores_zero():
    pool, seeds = vectors()
    pool[5] = 0
    for centre in (True, False):
        assert score(pool, seeds, 1, centre)[5] == 0


@pytest.mark.parametrize("empty", ["pool", "seeds"])
def test_nothing_known_at_all_is_refused(empty: str):
    pool, seeds = vectors()
    (pool if empty == "pool" else seeds)[:] = 0
    with pytest.raises(ValueError, match=f"nothing it knows in the {empty}"):
        score(pool, seeds, 1, centre=False)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real text in {SHARED}")
def test_physics_abstracts_are_found_among_reviews_and_newsgroups():
    with gzip.open(SHARED / "pool.jsonl.gz", "rt") as file:
        pool = [json.loads(line) for line in file][::6]
    with gzip.open(SHARED / "physics_seeds.jsonl.gz", "rt") as file:
        seeds = [json.loads(line)["text"] for line in file]
    embedder = TfidfSVD(
        dim=128, max_features=20_000, min_df=2, max_df=0.5, sample_documents=10_000, seed=0
    )
    dense = Dense(nearest_seeds=5, subtract_centre=True, embedder=embedder)
    truth = [document["source"] == "physics" for document in pool]
    scores = dense.score([document["text"] for document in pool], seeds)
    assert np.mean(truth) < 0.1  # what a random order would reach
    assert average_precision_score(truth, scores) > 0.93
