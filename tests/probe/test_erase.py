import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssae.language_model.frozen import LanguageModel
from ssae.probe.erase import embedding_edit, leace, mean_difference


def data(n: int = 300, d: int = 8, seed: int = 0, rank: int | None = None):
    """Correlated coordinates of different size, some of which tell z."""
    generator = np.random.default_rng(seed)
    z = (generator.random(n) < 0.4).astype(np.int64)
    x = generator.normal(size=(n, rank or d)) @ generator.normal(size=(rank or d, d))
    x = x + np.outer(z, generator.normal(size=d)) * 2
    return x * 10.0 ** np.linspace(-1, 1, d) + 3, z


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float32)


def whitened(x: np.ndarray, train: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The paper's formula: x' = x - W^+ P W (x - mu), P onto the whitened covariance with z."""
    mu, centred = train.mean(0), train - train.mean(0)
    sizes, vectors = np.linalg.eigh(np.cov(train.T, bias=True))
    kept = sizes > 1e-9 * sizes.max()
    vectors, roots = vectors[:, kept], np.sqrt(sizes[kept])
    W, W_plus = (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T
    sigma = W @ (centred.T @ (z - z.mean()) / len(z))[:, None]
    P = sigma @ np.linalg.pinv(sigma)
    return x - (x - mu) @ (W_plus @ P @ W).T


@pytest.mark.parametrize("rank", [None, 4])
def test_leace_is_the_projection_of_the_paper(rank: int | None):
    train, z = data(rank=rank)
    new, _ = data(seed=1)
    for x in (train, new):
        found = leace(tensor(x), torch.tensor(train), z).numpy()
        expected = whitened(tensor(x).double().numpy(), train, z)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
        assert np.abs(expected - x).max() > 0.1


def test_after_leace_nothing_is_correlated_with_the_attribute():
    train, z = data()
    found = leace(torch.tensor(train), torch.tensor(train), z).double().numpy()
    scale = np.abs((train - train.mean(0)).T @ (z - z.mean())).max()
    covariance = (found - found.mean(0)).T @ (z - z.mean())
    assert np.abs(covariance).max() < 1e-5 * scale
    np.testing.assert_allclose(found[z == 1].mean(0), found[z == 0].mean(0), rtol=1e-4, atol=1e-4)


def test_after_leace_a_linear_classifier_tells_no_more_than_chance():
    train, z = data()
    found = leace(torch.tensor(train), torch.tensor(train), z).double().numpy()
    scale = train.std(0)
    before, after = (
        LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(x / scale, z)
        for x in (train, found)
    )
    assert before.score(train / scale, z) > 0.9
    assert np.abs(after.coef_).max() < 1e-4
    assert after.score(found / scale, z) <= max(z.mean(), 1 - z.mean()) + 1e-9


def test_leace_changes_less_than_any_other_projection_in_whitened_distance():
    # The least change among those that erase, here in the norm of S^-1: also the mean difference's.
    train, z = data()
    found = leace(torch.tensor(train), torch.tensor(train), z).double().numpy()
    difference = mean_difference(
        torch.tensor(train), torch.tensor(train[z == 0]), torch.tensor(train[z == 1])
    ).numpy()
    for metric in (np.eye(8), np.linalg.inv(np.cov(train.T))):
        sizes = [np.einsum("nd,de,ne->", x - train, metric, x - train) for x in (found, difference)]
        assert sizes[0] < sizes[1]


def test_leace_of_what_tells_nothing_changes_nothing():
    train, z = data()
    same = leace(tensor(train), torch.tensor(train), np.ones_like(z))
    assert torch.equal(same, tensor(train))
    constant = torch.ones(300, 3)
    assert torch.equal(leace(constant, constant, z), constant)


def test_leace_of_more_coordinates_than_documents_still_erases():
    train, z = data(n=20, d=50)
    found = leace(torch.tensor(train), torch.tensor(train), z).double().numpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[z == 1].mean(0), found[z == 0].mean(0), rtol=1e-3, atol=1e-3)


def test_the_mean_difference_is_taken_out_of_both_readings():
    train, z = data()
    first, second = torch.tensor(train[z == 0]), torch.tensor(train[z == 1])
    u = second.mean(0) - first.mean(0)
    left = [mean_difference(own, first, second).double() for own in (first, second)]
    torch.testing.assert_close(left[0].mean(0), left[1].mean(0), rtol=1e-4, atol=1e-4)
    midpoint = (first.mean(0) + second.mean(0)) / 2
    for own in left:  # every document lies on the midpoint, along u
        along = (own - midpoint) @ u / (u @ u)
        assert along.abs().max() < 1e-5


def test_the_mean_difference_leaves_what_is_orthogonal_to_it():
    train, z = data()
    first, second = torch.tensor(train[z == 0]), torch.tensor(train[z == 1])
    u = (second.mean(0) - first.mean(0)).numpy()
    x, _ = data(seed=3)
    found = mean_difference(torch.tensor(x), first, second).double().numpy()
    basis = np.linalg.svd(u[None])[2][1:]
    np.testing.assert_allclose(found @ basis.T, x @ basis.T, rtol=1e-4, atol=1e-4)
    midpoint = (first.mean(0) + second.mean(0)).numpy() / 2
    on_the_plane = midpoint + basis[:3]
    same = mean_difference(torch.tensor(on_the_plane), first, second)
    np.testing.assert_allclose(same.numpy(), on_the_plane, rtol=1e-5)


def test_readings_without_a_difference_change_nothing():
    x, _ = data()
    same = mean_difference(tensor(x), torch.tensor(x), torch.tensor(x))
    assert torch.equal(same, tensor(x))


PAIRS = [["sample", "mean"], ["matrix", "vector"], ["he", "xylophones"]]


def embedded(lm: LanguageModel, words: list[str]) -> dict[str, np.ndarray]:
    """Mean embeddings of words with a space before them."""
    weight = lm.model.get_input_embeddings().weight.detach().double().cpu().numpy()
    ids = {word: lm.tokenizer.encode(f" {word}", add_special_tokens=False) for word in words}
    return {word: weight[own].mean(0) for word, own in ids.items()}


@pytest.mark.parametrize("name", ["neox", "llama"])
def test_the_embeddings_of_a_pair_cannot_be_told_apart_after_the_edit(name, request):
    lm: LanguageModel = request.getfixturevalue(name)
    hookpoint, edit = embedding_edit(lm, PAIRS)
    assert lm.model.get_submodule(hookpoint) is lm.model.get_input_embeddings()
    vectors = embedded(lm, [word for pair in PAIRS for word in pair])
    for first, second in PAIRS:
        before = torch.tensor(np.stack([vectors[first], vectors[second]]), dtype=torch.float32)
        assert (before[0] - before[1]).abs().max() > 0.1
        after = edit(before[None], None)[0]
        torch.testing.assert_close(after[0], after[1], rtol=1e-4, atol=1e-5)


def test_the_edit_is_the_orthogonal_projection(neox: LanguageModel):
    _, edit = embedding_edit(neox, PAIRS)
    vectors = embedded(neox, [word for pair in PAIRS for word in pair])
    A = np.stack([vectors[second] - vectors[first] for first, second in PAIRS]).T
    x = np.random.default_rng(0).normal(size=(2, 5, A.shape[0]))
    expected = x - (x @ A) @ np.linalg.solve(A.T @ A, A.T)
    found = edit(tensor(x), None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(edit(found, None), found, rtol=1e-4, atol=1e-5)


def test_pairs_that_repeat_or_do_not_differ_count_once_or_not_at_all(neox: LanguageModel):
    x = tensor(np.random.default_rng(1).normal(size=(1, 4, 16)))
    once, again = (
        embedding_edit(neox, pairs)[1](x, None)
        for pairs in (PAIRS[:1], [*PAIRS[:1], PAIRS[0][::-1], ["the", "the"]])
    )
    torch.testing.assert_close(again, once, rtol=1e-4, atol=1e-5)
    assert torch.equal(embedding_edit(neox, [["the", "the"]])[1](x, None), x)
