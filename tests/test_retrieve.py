"""`ssae retrieve` as one: what it writes, and what it refuses."""

import dataclasses
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from sklearn.metrics import average_precision_score, precision_score, recall_score

from ssae import cli
from ssae.artifact.store import Artifact
from ssae.corpus.base import fingerprint
from ssae.embedder.tfidf import TfidfSVD
from ssae.index.ann import Index
from ssae.pool.pool import Pool
from ssae.read_pool import open_pool
from ssae.retrieve import ranking_quality, retrieve
from ssae.retriever.base import UNSEEN
from ssae.retriever.bm25 import BM25
from ssae.retriever.dense import Dense
from ssae.retriever.hybrid import Hybrid
from ssae.retriever.random import Random
from ssae.retriever.tracin import TracIn
from ssae.score import read_scores, score

BM = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
DENSE = Dense(
    nearest_seeds=1, subtract_centre=True, candidates_per_seed=10,
    embedder=TfidfSVD(
        dim=4, max_features=1000, min_df=1, max_df=0.9, sample_documents=1000, seed=0
    ),
    index=Index(
        kind="auto", exact_below=10**6, compress_above=10**7, min_recall=0.95, recall_at=10,
        pq_bytes=8, seed=0,
    ),
)  # fmt: skip
RETRIEVERS = {
    "random": Random(seed=0, draw="x"),
    "bm25": BM,
    "dense": DENSE,
    "hybrid": Hybrid(retrievers={"dense": DENSE, "bm25": BM}, rank_constant=60),
    "tracin": TracIn(retriever=BM, oversample=2, budget_tokens=100, arm="first"),
}


def documents(retrieved: Artifact) -> datasets.Dataset:
    return datasets.Dataset.load_from_disk(retrieved.path / "documents")


@pytest.mark.parametrize("name", ["random", "bm25", "dense", "hybrid"])
def test_every_document_says_why_it_was_taken(make_study, tmp_path, name: str):
    study = make_study(tmp_path)
    retrieved = retrieve(study, RETRIEVERS[name], 500)
    found, pool = documents(retrieved), open_pool(study)
    scores = read_scores(score(study, RETRIEVERS[name]))
    ids = np.array(found["document"][:])
    assert list(found["text"]) == pool.fetch(ids)
    assert list(found["source"]) == pool.sources(ids)
    assert list(found["hash"]) == [fingerprint(text)[:16] for text in found["text"]]
    assert list(found["rank"]) == list(range(1, len(found) + 1))
    assert set(found["retriever"]) == {name}
    np.testing.assert_array_equal(np.float32(found["score"][:]), scores.values[ids])
    np.testing.assert_array_equal(found["query"][:], scores.seeds[ids])
    assert np.all(np.diff(found["score"][:]) <= 0)
    tokenizer = study.language_model.tokenizer
    lengths = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in found["text"]]
    assert list(found["num_tokens"]) == lengths
    assert sum(lengths[:-1]) < 500 <= sum(lengths)
    assert list(found["num_characters"]) == [len(text) for text in found["text"]]
    manifest = retrieved.manifest
    assert (manifest["num_documents"], manifest["num_tokens"]) == (len(found), sum(lengths))
    assert retrieved.corrupt_files() == []
    # Of a random draw there is nothing to judge.
    assert (retrieved.path / "retrieval.html").exists() == (name != "random")
    assert ((np.array(found["query"]) == -1).all()) == (name == "random")


def test_the_page_reads_nothing_more_of_the_pool(make_study, tmp_path, monkeypatch):
    study = make_study(tmp_path)
    score(study, BM)
    fetched, fetch = [], Pool.fetch

    def recording(self, ids):
        fetched.append(list(ids))
        return fetch(self, ids)

    monkeypatch.setattr(Pool, "fetch", recording)
    retrieved = retrieve(study, BM, 100)
    assert (retrieved.path / "retrieval.html").exists()
    assert len(fetched) == 1  # what the selection looked at


def test_the_quality_is_that_of_the_labels(make_study, tmp_path):
    study = make_study(tmp_path)
    labelled = dataclasses.replace(study.corpus, subdomain_source="pool.7")
    study = dataclasses.replace(study, corpus=labelled)
    retrieved = retrieve(study, BM, 100_000)
    assert retrieved.manifest["recall"] == 1
    num_pool = len(open_pool(study))
    assert retrieved.manifest["num_documents"] == num_pool
    assert retrieved.manifest["precision"] == pytest.approx(1 / num_pool)


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-6])
def test_ranking_quality_is_that_of_scikit_learn(scale: float):
    generator = np.random.default_rng(0)
    truth = generator.random(500) < 0.2
    scores = (scale * (generator.normal(size=500) + truth)).astype(np.float32)
    unseen = generator.random(500) < 0.4
    scores[unseen] = UNSEEN
    chosen = np.argsort(-scores)[:60]
    found = ranking_quality(truth, scores, chosen)
    taken = np.isin(np.arange(500), chosen)
    assert found["precision"] == precision_score(truth, taken)
    assert found["recall"] == recall_score(truth, taken)
    # Ranks instead of scores: the unseen ones share the last.
    ranks = np.unique(scores, return_inverse=True)[1]
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, ranks))


def test_labels_that_no_document_has_are_refused():
    with pytest.raises(ValueError, match="corpus.subdomain_source"):
        ranking_quality(np.zeros(3, bool), np.arange(3.0), np.array([0]))


def test_a_budget_larger_than_the_pool_takes_all_of_it(make_study, tmp_path, caplog):
    study = make_study(tmp_path)
    found = documents(retrieve(study, BM, 10**9))
    assert sorted(found["document"]) == list(range(len(open_pool(study))))
    assert "the pool holds no more" in caplog.text


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_of_nothing_is_refused_and_leaves_nothing(make_study, tmp_path, budget: int):
    study = make_study(tmp_path)
    with pytest.raises(ValueError, match=f"budget_tokens must be at least 1, got {budget}"):
        dataclasses.replace(study.arms["first"], budget_tokens=budget)
    with pytest.raises(ValueError, match="nothing is selected"):
        retrieve(study, BM, budget)
    assert not list(tmp_path.glob("artifacts/retrieve/*"))


@pytest.mark.parametrize("name", RETRIEVERS)
def test_an_empty_pool_is_refused_and_leaves_nothing(listed, make_study, tmp_path, name: str):
    study = make_study(tmp_path, corpus=listed(["x"] * 5))
    with pytest.raises(ValueError, match=r"split 'pool' has no document of at least 3"):
        retrieve(study, RETRIEVERS[name], 100)
    assert not list(tmp_path.glob("artifacts/*/*/DONE"))


@pytest.mark.parametrize("name", ["bm25", "dense", "hybrid"])
def test_seeds_without_a_known_word_are_refused_and_leave_no_scores(
    listed, make_study, tmp_path, name: str
):
    texts = [f"mean variance gamma word{i % 9} number{i % 5}" for i in range(60)]
    corpus = listed([f"{text} {i}" for i, text in enumerate(texts)], seeds=["xylophone", "!!!"])
    study = make_study(tmp_path, corpus=corpus)
    with pytest.raises(ValueError, match=r"shares a word with the pool|nothing it knows in the se"):
        retrieve(study, RETRIEVERS[name], 100)
    assert not list(tmp_path.glob("artifacts/score/*"))
    assert not list(tmp_path.glob("artifacts/retrieve/*"))


def test_copies_of_seeds_and_tests_are_never_retrieved(listed, make_study, tmp_path):
    seed = "the normal distribution has a mean and a variance, and a density that is symmetric"
    test = "a poisson variable counts events in an interval of time at a constant mean rate"
    near = [seed.replace("symmetric", "symmetrical"), test.replace("constant", "Constant")]
    pool = [seed.upper(), *near, f"{seed}!", "something else about a mean and files", f" {test}"]
    corpus = listed(pool, seeds=[seed], subdomain_test=[test])
    retrieved = retrieve(make_study(tmp_path, corpus=corpus), BM, 10_000)
    assert list(documents(retrieved)["text"]) == [pool[4]]
    assert retrieved.manifest["num_near_held_out"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["random", "bm25", "dense", "hybrid", "dense_tracin", "bm25_tracin"]
)
def test_the_command_retrieves_with_every_retriever(
    run_overrides, tmp_path: Path, monkeypatch, capsys, name: str
):
    monkeypatch.chdir(tmp_path)
    inner = "retriever." + {"hybrid": "retrievers.dense.", "dense_tracin": "retriever."}.get(
        name, ""
    )
    words = [word.replace("retriever.embedder.", f"{inner}embedder.") for word in run_overrides]
    if name in ("random", "bm25", "bm25_tracin"):
        words = [word for word in words if "embedder" not in word]
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["ssae", "retrieve", *words, f"retriever={name}"])
    cli.main()
    [place] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("artifacts/")
    ]
    retrieved = tmp_path / place
    manifest = json.loads((retrieved / "manifest.json").read_text())
    assert manifest["num_tokens"] >= 500
    assert manifest["retriever"] == name
    assert {"precision", "recall", "average_precision"} <= set(manifest)
    assert not list(tmp_path.glob("artifacts/*/*.partial"))
