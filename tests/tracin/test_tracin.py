import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ssae.activation.capture import NonFinite
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.tracin import Checkpoint, score_documents, seed_gradients

HOOKPOINT = "gpt_neox.layers.1"
SCALE = 0.13
SEEDS = ["normal distribution", "", "gamma poisson variance " * 9, "random"]
CANDIDATES = [
    "the mean of a sample",
    "a normal distribution has mean and variance: array_like, optional. " * 4,
    "",
    "x",
    "file<|endoftext|>string path list of the module " * 3,
    "gamma",
    "test file of a random number",
    "poisson variance of a gamma distribution",
]


@pytest.fixture
def packed(lm, make_rows):
    """Rows of seeds and candidates; long documents span several, short ones share one."""
    return tuple(make_rows(lm, own, 16, "row", "packed") for own in (SEEDS, CANDIDATES))


@pytest.fixture
def expected_scores(activations_of, by_hand):
    """Return a function that scores each document by its own gradient."""
    mean_loss, gradient = by_hand

    def score(checkpoints, seeds, candidates, scale) -> np.ndarray:
        seeds, candidates = activations_of(seeds), activations_of(candidates)
        scores = torch.zeros(len(candidates), dtype=torch.float64)
        for sae, weight in checkpoints:
            sae = copy.deepcopy(sae)
            sae.rescale_input(scale)
            losses = [mean_loss(sae, scale * x) for x in seeds if len(x)]
            g = gradient(sae, torch.stack(losses).mean())
            for index, x in enumerate(candidates):
                if len(x):
                    own = gradient(sae, mean_loss(sae, scale * x))
                    scores[index] += weight * sum((own[name] * g[name]).sum() for name in g)
        return scores.numpy()

    return score


def run(lm, checkpoints, texts, batch_tokens=100, scale: float | None = SCALE):
    return score_documents(lm, HOOKPOINT, checkpoints, *texts, batch_tokens, scale)


def test_scores_are_the_products_of_the_gradients_of_whole_documents(
    lm, make_checkpoints, kind, path, packed, expected_scores
):
    checkpoints = make_checkpoints(kind)
    expected = expected_scores(checkpoints, *packed, SCALE)
    scores = run(lm, checkpoints, packed)
    assert (scores.dtype, scores.shape) == (np.float64, (len(CANDIDATES),))
    assert scores[2] == 0  # has no text
    assert np.all(np.abs(np.delete(expected, 2)) > 1e-4)
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-10)


def test_rows_of_one_document_are_scored_likewise(lm, make_checkpoints, make_rows, expected_scores):
    texts = tuple(make_rows(lm, own, 16, "row", "documents") for own in (SEEDS, CANDIDATES))
    checkpoints = make_checkpoints("batchtopk")
    expected = expected_scores(checkpoints, *texts, SCALE)
    np.testing.assert_allclose(run(lm, checkpoints, texts), expected, rtol=1e-8, atol=1e-10)


def test_float32_is_near_that(lm, make_checkpoints, kind, packed, expected_scores):
    """An active set may differ by one latent that rounding moved over a threshold."""
    checkpoints = make_checkpoints(kind)
    expected = expected_scores(checkpoints, *packed, SCALE)
    narrow = [Checkpoint(copy.deepcopy(sae).float(), weight) for sae, weight in checkpoints]
    scores = run(lm, narrow, packed)
    assert np.linalg.norm(scores - expected) < 1e-4 * np.linalg.norm(expected)


def test_batches_do_not_change_the_scores(lm, make_checkpoints, kind, packed):
    checkpoints = make_checkpoints(kind)
    expected = run(lm, checkpoints, packed, 10_000)
    scores = run(lm, checkpoints, packed, 1)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


def test_the_score_of_a_document_does_not_depend_on_the_others(
    lm, make_checkpoints, make_rows, kind
):
    seeds = make_rows(lm, SEEDS, 16)
    checkpoints = make_checkpoints(kind)
    # Not packed: the language model itself reads what stands before a document in its row.
    together = make_rows(lm, CANDIDATES, 16, "row", "documents")
    scores = run(lm, checkpoints, (seeds, together))
    for index in (0, 1, 3):
        alone = make_rows(lm, [CANDIDATES[index]], 16, "row", "documents")
        [score] = run(lm, checkpoints, (seeds, alone), batch_tokens=7)
        assert score == pytest.approx(scores[index], rel=1e-9)


def test_the_sum_over_checkpoints_is_weighted(lm, make_checkpoints, packed):
    checkpoints = make_checkpoints("topk")
    each = [run(lm, [Checkpoint(sae, 1.0)], packed) for sae, _ in checkpoints]
    total = sum(w * own for (_, w), own in zip(checkpoints, each, strict=True))
    np.testing.assert_allclose(run(lm, checkpoints, packed), total, rtol=1e-10)


def test_without_an_input_scale_the_seeds_have_mean_norm_sqrt_d_in(
    lm, make_checkpoints, packed, activations_of
):
    checkpoints = make_checkpoints("relu")
    norms = torch.cat([x for x in activations_of(packed[0]) if len(x)]).norm(dim=1)
    expected = run(lm, checkpoints, packed, scale=4 / float(norms.mean()))
    found = run(lm, checkpoints, packed, scale=None)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert not np.allclose(found, run(lm, checkpoints, packed, scale=1.0), rtol=0.1)


def test_checkpoints_stay_as_they_are(lm, make_checkpoints, kind, packed):
    checkpoints = make_checkpoints(kind)
    before = copy.deepcopy(checkpoints)
    run(lm, checkpoints, packed)
    for (sae, _), (old, _) in zip(checkpoints, before, strict=True):
        assert sae.hyperparameters == old.hyperparameters
        for name, weight in old.state_dict().items():
            assert torch.equal(sae.state_dict()[name], weight), name
        assert all(p.grad is None for p in sae.parameters())


def test_the_mode_of_the_caller_does_not_count(lm, make_checkpoints, kind, packed):
    checkpoints = make_checkpoints(kind)
    expected = run(lm, checkpoints, packed)
    for sae, _ in checkpoints:
        sae.train()
    np.testing.assert_array_equal(run(lm, checkpoints, packed), expected)
    assert all(sae.training for sae, _ in checkpoints)


def test_seed_gradients_are_those_of_the_mean_over_documents(
    lm, make_sae, kind, path, packed, activations_of, by_hand
):
    mean_loss, gradient = by_hand
    saes = [make_sae(kind), make_sae(kind, 7)]
    documents = [x for x in activations_of(packed[0]) if len(x)]
    x = torch.cat(documents)
    weights = torch.cat([torch.full((len(d),), 1 / (len(d) * len(documents))) for d in documents])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    pieces = order.split(7)
    found = seed_gradients(saes, ((x[rows], weights[rows].double()) for rows in pieces))
    for sae, grads in zip(saes, found, strict=True):
        expected = gradient(sae, torch.stack([mean_loss(sae, d) for d in documents]).mean())
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-6, atol=1e-6 * x.norm())


def test_what_has_no_gradient_in_eval_mode(make_sae):
    """And what is frozen is not among the parameters."""
    sae = make_sae("jumprelu")
    x = 30 * torch.randn(50, 16, dtype=torch.float64)
    [grads] = seed_gradients([sae], [(x, torch.full((50,), 1 / 50).double())])
    assert not grads["threshold"].any()
    assert grads["W_dec"].any()
    [grads] = seed_gradients([make_sae("residual")], [(x, torch.ones(50).double())])
    assert set(grads) == {f"extra.{name}" for name, _ in sae.named_parameters()}


def test_targets_of_a_batch_do_not_couple_its_tokens_or_ranks(
    lm, make_checkpoints, packed, monkeypatch
):
    """A rank may score alone: nothing may wait for the others."""

    def refuse(*_):
        raise AssertionError("a collective")

    checkpoints = make_checkpoints("jumprelu")
    assert all(isinstance(s, JumpReLUSAE) and s.target_l0 is not None for s, _ in checkpoints)
    monkeypatch.setattr("ssae.sae.jumprelu.all_reduce", refuse)
    run(lm, checkpoints, packed)


# Not gated, whose gradient is not that of its loss: part of it reads a detached decoder.
@pytest.mark.parametrize(
    "kind", ["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "residual"]
)
def test_a_step_down_the_gradient_of_the_seeds_lowers_losses_by_the_scores(
    lm, make_sae, kind, packed, activations_of
):
    """l(doc; theta) - l(doc; theta - eps g) = eps score(doc): sign and size, by losses alone."""
    sae = make_sae(kind)
    scores = run(lm, [Checkpoint(sae, 1.0)], packed)
    documents = [SCALE * x for x in activations_of(packed[1])]
    seeds = [SCALE * x for x in activations_of(packed[0]) if len(x)]
    sae.rescale_input(SCALE)
    weights = [torch.full((len(x),), 1 / (len(x) * len(seeds))).double() for x in seeds]
    [g] = seed_gradients([sae], zip(seeds, weights, strict=True))

    def losses() -> np.ndarray:
        with torch.no_grad():
            outs = [(x, sae.forward_dense(x)) for x in documents if len(x)]
            return np.array([float(sae.errors(x, o).mean() + penalty(sae, o)) for x, o in outs])

    def penalty(sae, out) -> torch.Tensor | float:
        # The count of active latents has no slope, and jumps.
        found = None if kind in ("jumprelu", "residual") else sae.penalty(out)
        return 0.0 if found is None else found.mean()

    before, eps = losses(), 1e-7
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            if name in g:
                weight.sub_(eps * g[name])
    lowered = (before - losses()) / eps
    with_text = np.delete(scores, 2)
    np.testing.assert_allclose(lowered, with_text, rtol=1e-3, atol=1e-3 * np.abs(with_text).max())
    assert spearmanr(lowered, with_text).statistic == pytest.approx(1)


def test_no_checkpoint_is_refused(lm, packed):
    with pytest.raises(ValueError, match="at least one SAE, got none"):
        run(lm, [], packed)


def test_a_score_that_is_not_finite_is_refused(lm, make_sae, packed):
    sae = make_sae("relu")
    with torch.no_grad():
        sae.b_dec[0] = float("nan")
    with pytest.raises(NonFinite, match=r"scores of 7 of 8 documents .* document 0"):
        run(lm, [Checkpoint(sae, 1.0)], packed)
