import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import roc_auc_score

from ssae.probe.judge import MIN_FIRING, aurocs, cosines, selectivity

D_SAE = 12


def readings(seed: int, num: int, other: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Two readings with many zeros and ties, which some latents tell apart."""
    generator = np.random.default_rng(seed)
    found = []
    for side, size in enumerate((num, other or num)):
        values = generator.integers(1, 4, (size, D_SAE)) / 2
        rate = np.where(np.arange(D_SAE) % 3 == side, 0.7, 0.35)
        found.append(np.where(generator.random((size, D_SAE)) < rate, values, 0.0))
    return found[0], found[1]


def judged(how, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return how(sparse.csr_array(first), sparse.csr_array(second))


def expected(first: np.ndarray, second: np.ndarray) -> float:
    target = np.r_[np.zeros(len(first)), np.ones(len(second))]
    return roc_auc_score(target, np.r_[first, second])


@pytest.mark.parametrize("sizes", [(40, None), (30, 55)])
@pytest.mark.parametrize("seed", range(3))
def test_readings_are_told_as_scikit_learn_does(sizes: tuple, seed: int):
    first, second = readings(seed, *sizes)
    found = judged(aurocs, first, second)
    scores = [expected(first[:, j], second[:, j]) for j in range(D_SAE)]
    np.testing.assert_allclose(found, scores, rtol=1e-12)
    assert found.max() - found.min() > 0.2


@pytest.mark.parametrize("sizes", [(40, None), (30, 55)])
def test_selectivity_is_the_share_of_the_activation_in_second_readings(sizes: tuple):
    first, second = readings(0, *sizes)
    found = judged(selectivity, first, second)
    for latent in range(D_SAE):
        a = sum(first[:, latent]) / len(first)
        b = sum(second[:, latent]) / len(second)
        assert found[latent] == pytest.approx(b / (a + b), rel=1e-12)


def test_a_rare_word_is_told_perfectly_where_auroc_sees_little():
    first, second = np.zeros((200, 2)), np.zeros((200, 2))
    second[:8, 0] = 1.5
    first[20:28, 1] = 0.5
    assert judged(selectivity, first, second).tolist() == [1.0, 0.0]
    assert judged(aurocs, first, second) == pytest.approx([0.52, 0.48])


def test_how_documents_differ_otherwise_does_not_hide_the_word():
    """A latent of everything whose activation doubles with the word: 2/3 of it, whatever texts."""
    first = np.random.default_rng(0).exponential(size=(100, 1)) ** 3 + 1e-3
    assert judged(selectivity, first, 2 * first) == pytest.approx([2 / 3])


def test_a_latent_that_reads_anything_else_is_no_different_in_both_readings():
    first, _ = readings(0, 50)
    for how in (selectivity, aurocs):
        assert judged(how, first, first.copy()) == pytest.approx([0.5] * D_SAE)


@pytest.mark.parametrize(("how", "score"), [(selectivity, 1.0), (aurocs, 0.5 + MIN_FIRING / 100)])
def test_latents_that_fire_in_few_documents_tell_nothing(how, score: float):
    first, second = np.zeros((50, 3)), np.zeros((50, 3))
    second[: MIN_FIRING - 1, 0] = 1
    second[:MIN_FIRING, 1] = 1
    found = judged(how, first, second)
    assert found[0] == found[2] == 0.5
    assert found[1] == pytest.approx(score)


def test_exchanging_the_readings_turns_the_score_around():
    first, second = readings(4, 40)
    for how in (selectivity, aurocs):
        there, back = (judged(how, *pair) for pair in ((first, second), (second, first)))
        np.testing.assert_allclose(there + back, 1, rtol=1e-12)


def test_cosines_are_with_the_difference_of_the_means():
    generator = np.random.default_rng(0)
    W_dec, first, second = (generator.normal(size=(n, 6)) for n in (9, 30, 20))
    found = cosines(*(torch.tensor(x, dtype=torch.float32) for x in (W_dec, first, second)))
    direction = second.mean(0) - first.mean(0)
    sizes = np.linalg.norm(W_dec, axis=1) * np.linalg.norm(direction)
    np.testing.assert_allclose(found, W_dec @ direction / sizes, rtol=1e-5)
    parameter = torch.nn.Parameter(torch.tensor(W_dec))
    own = torch.tensor(first), torch.tensor(first)
    assert cosines(parameter, *own).tolist() == [0.0] * 9
