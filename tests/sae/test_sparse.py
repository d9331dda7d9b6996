import pytest
import torch
from torch import nn

from ssae.sae import scores
from ssae.sae.base import SparseAutoencoder
from ssae.sae.jvp import token_losses
from ssae.sae.sparse import ActiveSet, SparseLatents

CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def draw(n: int, d_in: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both(sae: SparseAutoencoder, x: torch.Tensor, gradients_of):
    """Outputs, losses and gradients of the sparse and of the dense path."""
    results = []
    for forward in (SparseAutoencoder.forward, SparseAutoencoder.forward_dense):
        out = forward(sae, x)
        penalty = sae.penalty(out)
        losses = sae.errors(x, out) + (0 if penalty is None else penalty)
        results.append((out, losses, gradients_of(sae, x, losses)))
    return results


def compare(sae: SparseAutoencoder, x: torch.Tensor, gradients_of) -> SparseLatents:
    sparse, dense = both(sae, x.clone().requires_grad_(), gradients_of)
    assert sparse[0].latents.active.indices is not None
    assert dense[0].latents.active.indices is None
    torch.testing.assert_close(sparse[0].latents.to_dense(), dense[0].latents.to_dense(), **CLOSE)
    torch.testing.assert_close(sparse[0].recon, dense[0].recon, **CLOSE)
    torch.testing.assert_close(sparse[1], dense[1], **CLOSE)
    for name, grad in sparse[2].items():
        torch.testing.assert_close(grad, dense[2][name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    return sparse[0].latents


@pytest.mark.parametrize("d_sae", [7, 16, 20, 33, 64, 100])
def test_sparse_equals_dense_for_any_number_of_latents(
    make_sae, kind, mode, d_sae, always_sparse, gradients_of
):
    sae = make_sae(kind, d_in=5, d_sae=d_sae).train(mode == "train")
    latents = compare(sae, draw(13, 5), gradients_of)
    assert 0 < latents.num_active().sum() < 13 * d_sae


@pytest.mark.parametrize("n", [1, 2, 40])
def test_sparse_equals_dense_over_several_chunks(
    make_sae, kind, mode, n, always_sparse, gradients_of, monkeypatch
):
    monkeypatch.setitem(scores.CHUNK_BYTES, "cpu", 7 * 32 * 8)  # seven tokens
    sae = make_sae(kind).train(mode == "train")
    compare(sae, draw(n, 6), gradients_of)


def test_sparse_equals_dense_on_duplicate_tokens(
    make_sae, kind, mode, always_sparse, gradients_of, monkeypatch
):
    monkeypatch.setitem(scores.CHUNK_BYTES, "cpu", 4 * 32 * 8)
    sae = make_sae(kind).train(mode == "train")
    x = draw(3, 6).repeat(5, 1)
    latents = compare(sae, x, gradients_of).to_dense()
    torch.testing.assert_close(latents, latents[:3].repeat(5, 1), **CLOSE)


def test_sparse_equals_dense_with_fewer_positive_pre_acts_than_k(
    make_sae, kind, mode, always_sparse, gradients_of
):
    sae = make_sae(kind, **({"k": 20} if "k" in make_sae(kind).hyperparameters else {}))
    with torch.no_grad():
        sae.b_enc.sub_(3.0)
    x = draw(11, 6)
    latents = compare(sae.train(mode == "train"), x, gradients_of)
    num_positive = (sae.pre_acts(x) > 0).sum(1)
    assert (num_positive < 20).all()
    assert (latents.num_active() <= num_positive).all()
    assert (latents.num_active() == 0).any()  # and tokens without any


def test_sparse_equals_dense_when_nothing_at_all_is_active(
    make_sae, kind, mode, always_sparse, gradients_of
):
    sae = make_sae(kind).train(mode == "train")
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
    x = draw(5, 6)
    latents = compare(sae, x, gradients_of)
    assert latents.num_active().tolist() == [0] * 5
    assert latents.fire_counts().tolist() == [0] * 32
    assert torch.equal(sae(x).recon, sae.b_dec.expand(5, -1))


def test_among_equal_pre_acts_any_k_may_be_kept_but_no_more(make_sae, always_sparse):
    """Twins of a latent: which of them is kept is open, how strong they are is not."""
    sae = make_sae("topk")
    with torch.no_grad():
        for weight in (sae.W_enc_T, sae.b_enc, sae.W_dec):
            weight[16:] = weight[:16]
    x = draw(30, 6)
    sparse, dense = sae(x), sae.forward_dense(x)
    values = [out.latents.to_dense().sort(1).values for out in (sparse, dense)]
    torch.testing.assert_close(*values, **CLOSE)
    torch.testing.assert_close(sparse.recon, dense.recon, **CLOSE)
    assert (sparse.latents.num_active() <= 3).all()


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_ties_at_the_end_of_a_batch_are_all_kept_by_both(
    make_sae, kind, always_sparse, gradients_of
):
    sae = make_sae(kind, group_sizes=[16, 16]) if kind == "matryoshka" else make_sae(kind)
    with torch.no_grad():
        for weight in (sae.W_enc_T, sae.b_enc):
            weight[16:] = weight[:16]
    latents = compare(sae.train(), draw(7, 6), gradients_of)
    assert latents.num_active().sum() == 22  # 3 * 7 and the twin of the last


@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu", "batchtopk", "matryoshka"])
def test_above_some_share_of_active_latents_forward_is_dense(make_sae, kind):
    own = {"k": 3} if kind in ("batchtopk", "matryoshka") else {}
    sae = make_sae(kind, d_in=6, d_sae=64, **own).eval()
    x = draw(50, 6)
    for shift, dense in ((0.0, True), (-20.0, False)):
        with torch.no_grad():
            sae.b_enc.add_(shift)
        assert (sae(x).latents.active.indices is None) is dense


@pytest.mark.parametrize("screened", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_weights_run_and_come_close(
    make_sae, kind, mode, always_sparse, dtype, screened, gradients_of
):
    exact = make_sae(kind, d_in=16, d_sae=64).train(mode == "train")
    x = draw(24, 16)
    sae = make_sae(kind, d_in=16, d_sae=64).to(dtype).train(mode == "train")
    sae.screen_dtype = torch.bfloat16 if screened else None
    out = sae(x.to(dtype))
    losses = token_losses(sae, x.to(dtype))
    losses.mean().backward()
    assert out.recon.dtype == out.latents.values.dtype == dtype
    assert all(w.grad.dtype == w.dtype for w in sae.parameters() if w.grad is not None)
    expected = exact(x)
    error = (out.recon - expected.recon).norm() / expected.recon.norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.1)


def test_autocast_of_the_trainer_runs(make_sae, kind, mode, path):
    sae = make_sae(kind, d_in=16, d_sae=64).float().train(mode == "train")
    x = draw(24, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(sae, x)
    losses.mean().backward()
    exact = token_losses(sae, x)
    assert (losses - exact).abs().mean() < 0.05 * exact.mean()
    assert all(w.grad.dtype == torch.float32 for w in sae.parameters() if w.grad is not None)


def random_set() -> ActiveSet:
    """Six tokens of which one has no latents, and latents that nobody has."""
    where = torch.rand(6, 9, generator=torch.Generator().manual_seed(4)) < 0.3
    where[2], where[:, 5] = False, False
    tokens, latents = where.nonzero(as_tuple=True)
    return ActiveSet.of_pairs(tokens, latents, 6, 9)


def test_operations_on_a_set_are_those_on_the_dense_matrix():
    active = random_set()
    values = torch.rand(len(active.indices), dtype=torch.float64) + 0.1
    dense = SparseLatents(active, values).to_dense()
    mask = dense > 0
    W, b, x = draw(9, 4), draw(9, 1)[:, 0], draw(6, 4, seed=1)
    torch.testing.assert_close(active.decode(values, W), dense @ W)
    torch.testing.assert_close(active.pre_acts(x, W, b), (x @ W.T + b)[mask])
    torch.testing.assert_close(active.take(b), b.expand(6, -1)[mask])
    torch.testing.assert_close(active.sum_per_token(values), dense.sum(1))
    large = dense > 0.6
    assert torch.equal(active.count_per_token(values > 0.6), large.sum(1))
    assert torch.equal(active.count_per_latent(values > 0.6), large.sum(0))
    wanted = torch.tensor([8, 0, 5])
    torch.testing.assert_close(SparseLatents(active, values).columns(wanted), dense[:, wanted])


def test_the_set_transposed_lists_every_entry_by_latent():
    active = random_set()
    offsets, tokens, entries = active.transposed
    pairs = [
        (int(tokens[t]), j, int(entries[t]))
        for j in range(9)
        for t in range(int(offsets[j]), int(offsets[j + 1]))
    ]
    expected = zip(active.tokens.tolist(), active.indices.tolist(), strict=True)
    assert sorted(pairs, key=lambda p: p[2]) == [(i, j, t) for t, (i, j) in enumerate(expected)]
    assert [pair[1] for pair in pairs] == sorted(pair[1] for pair in pairs)


def test_the_set_of_all_pairs_gives_the_same_as_any_other():
    every = ActiveSet.every(6, 9, torch.device("cpu"))
    listed = ActiveSet.of_rows(torch.arange(9).expand(6, -1), 9)
    W, b, x, values = draw(9, 4), draw(9, 1)[:, 0], draw(6, 4, seed=1), draw(54, 1)[:, 0]
    positive, wanted = values > 0, torch.tensor([3, 1])
    results = [
        (
            a.pre_acts(x, W, b), a.decode(values, W), a.take(b), a.sum_per_token(values),
            a.count_per_token(positive), a.count_per_latent(positive),
            SparseLatents(a, values).to_dense(), SparseLatents(a, values).columns(wanted),
        )
        for a in (every, listed)
    ]  # fmt: skip
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_no_tokens_are_no_trouble(make_sae):
    out = make_sae("topk")(torch.zeros(0, 6, dtype=torch.float64))
    assert out.recon.shape == (0, 6)
    assert out.latents.num_active().shape == (0,)


def test_frozen_weights_get_no_gradient(make_sae, kind, always_sparse):
    sae = make_sae(kind)
    sae.W_enc_T.requires_grad_(False)
    sae.b_dec.requires_grad_(False)
    token_losses(sae, draw(8, 6)).sum().backward()
    assert sae.W_enc_T.grad is None
    assert isinstance(sae.W_dec, nn.Parameter)
    assert sae.W_dec.grad.abs().sum() > 0


@pytest.mark.parametrize("latents", [[3, 0, 31], [5, 5], [7, 2, 7, 2], []])
def test_columns_are_those_of_the_dense_latents(make_sae, path, latents):
    out = make_sae("relu")(draw(20, 6))
    found = out.latents.columns(torch.tensor(latents, dtype=torch.int64))
    assert torch.equal(found, out.latents.to_dense()[:, latents])


def test_every_entry_knows_its_token(make_sae, path):
    active, values = make_sae("relu")(draw(7, 6)).latents
    found = torch.zeros(7, dtype=torch.float64).index_add(0, active.tokens, values.detach())
    torch.testing.assert_close(found, active.sum_per_token(values.detach()))


def test_a_batch_without_tokens_has_no_latents(make_sae, kind, mode, always_sparse):
    sae = make_sae(kind).train(mode == "train")
    out = sae(draw(0, 6))
    assert out.recon.shape == (0, 6)
    assert out.latents.to_dense().shape == (0, sae.d_sae)
    assert out.latents.fire_counts().sum() == 0


def test_activations_that_are_no_numbers_are_not_hidden(make_sae, kind, mode, always_sparse):
    x = draw(5, 6)
    x[2, 3] = float("nan")
    recon = make_sae(kind).train(mode == "train")(x).recon
    assert recon[2].isnan().all()


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6), (4, 5)])
def test_inputs_of_another_shape_are_refused(make_sae, shape):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 6\), got .* x.flatten"):
        make_sae("topk")(torch.zeros(shape, dtype=torch.float64))
