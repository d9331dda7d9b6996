import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssae.corpus.base import load_split
from ssae.embedder.base import Embedder
from ssae.embedder.tfidf import TfidfSVD
from ssae.index.ann import Index
from ssae.read_pool import open_pool
from ssae.retriever.base import NO_SEED, UNSEEN, Scores
from ssae.retriever.dense import Dense
from ssae.score import read_scores, score

SHARED = Path(__file__).parents[2] / "../shared/data"
INDEX = Index(
    kind="auto", exact_below=1_000_000, compress_above=50_000_000, min_recall=0.95, recall_at=10,
    pq_bytes=8, seed=0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed(Embedder):
    """The vector of "document 7 ..." is row 7 of `pool`, of "seed 7 ..." that of `seeds`."""

    pool: np.ndarray = dataclasses.field(metadata={"content": False})
    seeds: np.ndarray = dataclasses.field(metadata={"content": False})

    def identity(self):
        return [self.pool.tobytes().hex(), self.seeds.tobytes().hex()]

    def open(self, folder):
        tables = {"document": self.pool, "seed": self.seeds}

        def embed(texts):
            names = [text.split() for text in texts]
            return np.stack([tables[kind][int(number)] for kind, number, *_ in names])

        return embed


def vectors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pool = generator.normal(1, 2, (300, 16)) * generator.uniform(0.1, 10, (300, 1))
    seeds = generator.normal(1, 2, (7, 16)) * generator.uniform(0.1, 10, (7, 1))
    return pool.astype(np.float32), seeds.astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def stored(x: np.ndarray) -> np.ndarray:
    """Unit rows as the artifact rounds them."""
    return unit(unit(x).astype(np.float16).astype(np.float32))


def dense(pool: np.ndarray, seeds: np.ndarray, **changes) -> Dense:
    settings = {
        "nearest_seeds": 1, "subtract_centre": False, "embedder": Fixed(pool=pool, seeds=seeds),
        "index": INDEX, "candidates_per_seed": 10,
    }  # fmt: skip
    return Dense(**settings | changes)


@pytest.fixture
def run(listed, make_study, tmp_path: Path) -> Callable[..., Scores]:
    """Return a function that scores a pool of vectors, in two parts."""

    def run(pool: np.ndarray, seeds: np.ndarray, **changes) -> Scores:
        texts = [f"document {i}" for i in range(len(pool))]
        corpus = listed(
            texts[: len(pool) // 3], texts[len(pool) // 3 :],
            seeds=[f"seed {i}" for i in range(len(seeds))],
        )  # fmt: skip
        study = make_study(tmp_path, corpus=corpus)
        return read_scores(score(study, dense(pool, seeds, **changes)))

    return run


@pytest.mark.parametrize(
    ("nearest", "reduce"),
    [
        (1, lambda cosines: cosines.max(axis=1)),
        (3, lambda cosines: np.sort(cosines, axis=1)[:, -3:].mean(axis=1)),
        (7, lambda cosines: cosines.mean(axis=1)),
        (99, lambda cosines: cosines.mean(axis=1)),
    ],
)
def test_scores_are_the_cosines_that_plain_numpy_gives(run, nearest, reduce):
    pool, seeds = vectors()
    found = run(pool, seeds, nearest_seeds=nearest)
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, reduce(stored(pool) @ unit(seeds).T), atol=2e-6)
    # What storing the vectors in float16 costs.
    np.testing.assert_allclose(found.values, reduce(unit(pool) @ unit(seeds).T), atol=1e-3)
    assert found.seeds.dtype == np.int32
    assert np.array_equal(found.seeds, (stored(pool) @ unit(seeds).T).argmax(axis=1))


def test_the_centre_is_the_mean_direction_of_the_pool(run):
    pool, seeds = vectors()
    centre = stored(pool).mean(axis=0)
    cosines = unit(stored(pool) - centre) @ unit(unit(seeds) - centre).T
    found = run(pool, seeds, subtract_centre=True)
    # 1e-5: the centre is the mean of rows as they are stored, of norm 1 up to 2e-4.
    np.testing.assert_allclose(found.values, cosines.max(axis=1), atol=1e-5)
    assert np.array_equal(found.seeds, cosines.argmax(axis=1))


def test_a_direction_shared_by_all_documents_does_not_decide_the_order(run):
    generator = np.random.default_rng(1)
    topic = np.repeat(np.eye(8)[:2], 50, axis=0)  # the first 50 documents share the seed's topic
    pool = topic * 0.3 + 10 * generator.uniform(0.5, 2, (100, 1)) * np.eye(8)[7]
    seeds = 0.3 * np.eye(8)[:1] + 10 * np.eye(8)[7:]
    truth = np.arange(100) < 50
    found = run(pool.astype(np.float32), seeds.astype(np.float32), subtract_centre=True)
    assert average_precision_score(truth, found.values) == 1


@pytest.mark.parametrize("centre", [True, False])
def test_a_document_without_a_known_word_scores_zero_and_has_no_seed(run, centre: bool):
    pool, seeds = vectors()
    pool[5] = 0
    found = run(pool, seeds, subtract_centre=centre)
    assert found.values[5] == 0
    assert found.seeds[5] == NO_SEED
    assert (np.delete(found.seeds, 5) >= 0).all()


@pytest.mark.parametrize("empty", ["pool", "seeds"])
def test_nothing_known_at_all_is_refused(run, tmp_path: Path, empty: str):
    pool, seeds = vectors()
    (pool if empty == "pool" else seeds)[:] = 0
    with pytest.raises(ValueError, match=f"nothing it knows in the {empty}"):
        run(pool, seeds)
    assert not list(tmp_path.glob("artifacts/score/*"))


@pytest.mark.parametrize("kind", ["ivf_flat", "hnsw", "ivf_pq"])
def test_an_index_finds_the_same_best_documents_with_the_same_scores(run, kind: str):
    generator = np.random.default_rng(3)
    topics = generator.normal(size=(20, 16))
    pool = topics[generator.integers(20, size=1000)] + 0.4 * generator.normal(size=(1000, 16))
    seeds = topics[:3] + 0.2 * generator.normal(size=(3, 16))
    pool, seeds = pool.astype(np.float32), seeds.astype(np.float32)
    exact = run(pool, seeds, nearest_seeds=2, subtract_centre=True)
    index = dataclasses.replace(INDEX, kind=kind, exact_below=0, min_recall=1.0, recall_at=60)
    found = run(
        pool, seeds, nearest_seeds=2, subtract_centre=True, index=index, candidates_per_seed=60
    )
    seen = found.values > UNSEEN
    assert 60 <= seen.sum() <= 180
    np.testing.assert_allclose(found.values[seen], exact.values[seen], atol=2e-6)
    assert np.array_equal(found.seeds[seen], exact.seeds[seen])
    assert (found.values[~seen] == UNSEEN).all()
    assert (found.seeds[~seen] == NO_SEED).all()
    centre = stored(pool).mean(axis=0)
    cosines = unit(stored(pool) - centre) @ unit(unit(seeds) - centre).T
    for own in cosines.T:
        assert seen[np.argsort(-own)[:40]].all()  # of 60 that the index was asked for


def test_more_candidates_than_documents_are_all_of_them(run):
    pool, seeds = vectors()
    index = dataclasses.replace(INDEX, kind="ivf_flat", min_recall=1.0, recall_at=300)
    found = run(pool, seeds, index=index, candidates_per_seed=1000)
    assert (found.values > UNSEEN).mean() > 0.9
    seen = found.values > UNSEEN
    exact = (stored(pool) @ unit(seeds).T).max(axis=1)
    np.testing.assert_allclose(found.values[seen], exact[seen], atol=2e-6)


def test_no_candidates_are_refused_with_the_override():
    with pytest.raises(ValueError, match=r"got 0; set retriever\.candidates_per_seed=1000"):
        dense(*vectors(), candidates_per_seed=0)


def test_an_index_is_made_once_for_all_numbers_of_seeds(run, tmp_path: Path):
    pool, seeds = vectors()
    index = dataclasses.replace(INDEX, kind="ivf_flat", recall_at=10)
    for nearest in (1, 3):
        run(pool, seeds, nearest_seeds=nearest, index=index)
    assert len(list(tmp_path.glob("artifacts/index/*/DONE"))) == 1
    assert len(list(tmp_path.glob("artifacts/embed/*/DONE"))) == 1
    assert len(list(tmp_path.glob("artifacts/score/*/DONE"))) == 2


def test_seeds_that_lie_in_the_pool_have_an_index_of_their_own(listed, make_study, tmp_path):
    pool, seeds = vectors()
    texts = [f"document {i}" for i in range(len(pool))]
    index = dataclasses.replace(INDEX, kind="ivf_flat", min_recall=1.0)
    for number in (3, 200):  # each leaves the pool, so that the others are numbered anew
        study = make_study(tmp_path, corpus=listed(texts, seeds=[texts[number]]))
        found, exact = (
            read_scores(score(study, dense(pool, seeds, index=kind))).values
            for kind in (index, INDEX)
        )
        assert set(np.argsort(-found)[:9]) == set(np.argsort(-exact)[:9])
    assert len(list(tmp_path.glob("artifacts/embed/*/DONE"))) == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real text in {SHARED}")
def test_physics_abstracts_are_found_among_reviews_and_newsgroups(listed, make_study, tmp_path):
    with gzip.open(SHARED / "pool.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file][::6]
    with gzip.open(SHARED / "physics_seeds.jsonl.gz", "rt") as file:
        seeds = [json.loads(line)["text"] for line in file]
    embedder = TfidfSVD(
        dim=128, max_features=20_000, min_df=2, max_df=0.5, sample_documents=10_000, seed=0
    )
    retriever = Dense(
        nearest_seeds=5, subtract_centre=True, embedder=embedder, index=INDEX,
        candidates_per_seed=1000,
    )  # fmt: skip
    corpus = listed(
        [(row["text"], row["source"]) for row in rows], seeds=seeds, subdomain_source="physics"
    )
    study = make_study(tmp_path, corpus=corpus)
    scores = read_scores(score(study, retriever))
    pool = open_pool(study)
    truth = pool.in_subdomain()
    assert truth is not None
    assert len(load_split(pool.artifact, "seeds")) == len(seeds)
    assert np.mean(truth) < 0.1  # what a random order would reach
    assert average_precision_score(truth, scores.values) > 0.93
