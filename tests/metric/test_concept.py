import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import f1_score, roc_auc_score

from ssae.metric import concept as concept_module
from ssae.metric.concept import (
    ConceptRecall,
    DocumentPeaks,
    concept_labels,
    concept_scores,
)

NUM_DOCUMENTS, D_SAE = 60, 12


def make_features(seed: int, num_concepts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features with many zeros and ties, and labels that some of them follow."""
    generator = np.random.default_rng(seed)
    labels = generator.random((NUM_DOCUMENTS, num_concepts)) < 0.4
    features = generator.integers(0, 4, (NUM_DOCUMENTS, D_SAE)).astype(np.float32)
    features[generator.random(features.shape) < 0.5] = 0
    for concept in range(num_concepts):
        features[:, concept + 2] += 2 * labels[:, concept] * generator.integers(0, 2, NUM_DOCUMENTS)
    features[:, 1] = 0
    return features, labels


def brute_force(features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, list[float]]:
    """Scores of scikit-learn, concept by concept and latent by latent."""
    halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    scores: dict[str, list[float]] = {"auroc": [], "f1": [], "latent": []}
    for own in labels.T:
        for name, score in (
            ("auroc", lambda y, z: roc_auc_score(y, z)),
            ("f1", lambda y, z: f1_score(y, z > 0, zero_division=0)),
        ):
            by_half = [[score(own[h], features[h, j]) for j in range(D_SAE)] for h in halves]
            best = [int(np.argmax(values)) for values in by_half]
            scores[name].append((by_half[1][best[0]] + by_half[0][best[1]]) / 2)
            if name == "auroc":
                scores["latent"].append(best[0])
    return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [2, 64])
def test_scores_are_those_of_scikit_learn_on_the_half_that_did_not_choose(seed, chunk, monkeypatch):
    monkeypatch.setattr(concept_module, "CHUNK", chunk)
    features, labels = make_features(seed)
    found = concept_scores(sparse.csr_matrix(features), labels, seed)
    expected = brute_force(features, labels, seed)
    np.testing.assert_allclose(found.auroc, expected["auroc"], rtol=1e-12)
    np.testing.assert_allclose(found.f1, expected["f1"], rtol=1e-12)
    assert found.latent.tolist() == expected["latent"]


def test_labels_without_meaning_score_near_a_half_though_the_best_of_many_is_chosen():
    generator = np.random.default_rng(0)
    features = sparse.csr_matrix(generator.random((200, 300)))
    labels = generator.random((200, 20)) < 0.5
    assert concept_scores(features, labels, 0).auroc.mean() == pytest.approx(0.5, abs=0.03)


def test_concepts_with_few_documents_in_a_half_are_not_measured():
    features, _ = make_features(0)
    half, other = np.array_split(np.random.default_rng(7).permutation(NUM_DOCUMENTS), 2)
    labels = np.zeros((NUM_DOCUMENTS, 4), dtype=bool)
    labels[np.concatenate([half[:5], other[:5]]), 0] = True
    labels[np.concatenate([half[:4], other[:9]]), 1] = True
    labels[:, 2] = ~labels[:, 1]
    found = concept_scores(sparse.csr_matrix(features), labels, seed=7)
    assert found.measured.tolist() == [True, False, False, False]
    assert np.isnan(found.auroc).tolist() == np.isnan(found.f1).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("k", [None, 4], ids=["dense", "sparse"])
def test_peaks_are_the_largest_activations_of_documents(measure, draw_tokens, k):
    tokens = draw_tokens(1)
    found = measure(DocumentPeaks(D_SAE, 11), tokens, k=k).toarray()
    for document in range(11):
        own = tokens.latents[tokens.document_ids == document]
        expected = own.max(0) if len(own) else np.zeros(D_SAE)
        np.testing.assert_array_equal(found[document], expected)


def test_the_metric_scores_the_peaks_of_its_documents(measure, draw_tokens):
    tokens = draw_tokens(2, num_documents=40)
    labels = np.random.default_rng(0).random((40, 2)) < 0.5
    found = measure(ConceptRecall(D_SAE, labels, seed=3), tokens)
    peaks = measure(DocumentPeaks(D_SAE, 40), tokens)
    expected = brute_force(peaks.toarray(), labels, seed=3)
    np.testing.assert_allclose(found.auroc, expected["auroc"], rtol=1e-12)


def test_sources_of_ten_documents_are_concepts():
    sources = ["rec.sport.hockey"] * 10 + ["rec.autos"] * 11 + ["few"] * 9 + [None, ""] * 20
    names, labels = concept_labels(sources)
    assert names == ["rec.autos", "rec.sport.hockey"]
    assert labels.sum(0).tolist() == [11, 10]
    assert labels[:10, 1].all()


def test_sources_that_are_too_fine_are_joined_by_their_first_parts():
    sources = [f"scipy.stats.f{i}" for i in range(12)] + [f"torch.nn.m{i}" for i in range(12)]
    assert concept_labels([*sources, "other"])[0] == ["scipy.stats", "torch.nn"]
    sources = [f"scipy.m{i}.f" for i in range(12)] + [f"torch.m{i}.f" for i in range(12)]
    assert concept_labels([*sources, "other"])[0] == ["scipy", "torch"]


def test_two_sources_of_all_documents_are_one_question_and_no_concepts():
    sources = ["physics.jsonl"] * 20 + ["general.jsonl"] * 30
    assert concept_labels(sources)[0] == []
    assert len(concept_labels([*sources, *["reviews.jsonl"] * 10])[0]) == 3


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([None, "", "a", "b.c", "b.d"]), max_size=40))
def test_there_are_two_concepts_of_ten_documents_or_none(sources):
    names, labels = concept_labels(sources)
    assert len(names) != 1
    assert labels.shape == (len(sources), len(names))
    assert (labels.sum(0) >= 10).all()
    assert (labels.sum(1) <= 1).all()
