import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssae.sae import scores, screen
from ssae.sae.jvp import token_losses
from ssae.sae.screen import kth_largest
from ssae.sae.topk import TopKSAE

BF16 = torch.bfloat16


def activations(n: int, d_in: int, centred: bool = True) -> torch.Tensor:
    """Heavy-tailed tokens in which two dimensions outweigh all others; mean norm sqrt(d_in)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d_in, generator=generator)
    x = x / torch.rand(n, 1, generator=generator).clamp_min(0.02).sqrt()
    x = x * torch.randn(d_in, generator=generator).exp()
    x[:, 3] *= 60
    x[:, d_in // 2] *= 25
    if not centred:
        x = x + 5 * torch.randn(d_in, generator=generator)
    return x * (d_in**0.5 / x.norm(dim=1).mean())


def encoder(x: torch.Tensor, d_sae: int, b_enc: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions of tokens, with noise: all of them lean towards the large dimensions."""
    generator = torch.Generator().manual_seed(1)
    W = torch.nn.functional.normalize(x[torch.randint(len(x), (d_sae,), generator=generator)])
    W = W + 0.7 * torch.randn(d_sae, x.shape[1], generator=generator) / x.shape[1] ** 0.5
    return torch.nn.functional.normalize(W), torch.randn(d_sae, generator=generator) / 2 + b_enc


def trained_sae(x: torch.Tensor, subtract_b_dec: bool) -> TopKSAE:
    torch.manual_seed(0)
    sae = TopKSAE(
        x.shape[1], 2048, k=32, auxk_coefficient=0.0, k_aux=1, subtract_b_dec=subtract_b_dec
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    for batch in x.split(256):
        optimizer.zero_grad()
        token_losses(sae, batch).mean().backward()
        optimizer.step()
        sae.normalise_decoder()
    return sae.requires_grad_(False)


def pairs(choice, d_sae: int) -> torch.Tensor:
    """The chosen positive entries as numbers."""
    active, values = choice
    return (active.tokens * d_sae + active.indices)[values > 0]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_the_k_largest_are_found_in_bfloat16_and_have_their_float32_values(centred, subtract_b_dec):
    x = activations(6000, 64, centred)
    sae = trained_sae(x[:5000], subtract_b_dec)
    with torch.no_grad():
        sae.b_dec.add_(3.0)
        sae.b_enc.add_(0.5 * torch.randn(2048, generator=torch.Generator().manual_seed(2)) + 2)
    shifted = sae.encoder_input(x[5000:])
    choices = [screen.top_k(shifted, sae.W_enc_T, sae.b_enc, 32, dtype) for dtype in (None, BF16)]
    expected, found = (pairs(choice, 2048) for choice in choices)
    assert torch.isin(expected, found).double().mean() >= 0.999
    pre_acts = (shifted @ sae.W_enc_T.T + sae.b_enc).flatten()
    active, values = choices[1]
    exact = pre_acts[active.tokens * 2048 + active.indices]
    torch.testing.assert_close(values, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("b_enc", [-0.5, -10.0])
@pytest.mark.parametrize("method", ["above", "largest_of_batch"])
def test_what_exceeds_a_limit_is_found_in_bfloat16(method, centred, b_enc, monkeypatch):
    monkeypatch.setattr(screen, "DENSE_SHARE", 1.0)
    monkeypatch.setitem(scores.CHUNK_BYTES, "cpu", 2**20)
    x = activations(800, 64, centred)
    W, b = encoder(x, 1024, b_enc)
    pre_acts = (x @ W.T + b).flatten()
    limit = pre_acts.sort(descending=True).values[16 * 800 - 1]
    expected = (pre_acts >= limit).nonzero()[:, 0]
    if method == "above":
        per_latent = torch.full((1024,), float(limit) - 1e-5)
        choice = screen.above(x, W, b, per_latent, BF16)
    else:
        choice = screen.largest_of_batch(x, W, b, 16, BF16)
    assert choice is not None
    found = pairs(choice, 1024)
    assert len(found) <= 1.001 * len(expected)
    assert torch.isin(expected, found).double().mean() >= 0.999
    exact = pre_acts[choice[0].tokens * 1024 + choice[0].indices]
    torch.testing.assert_close(choice[1], exact, rtol=1e-5, atol=1e-4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 0.5, 1.0, 3e-3, 7.25, 300.0]), max_size=40),
    st.integers(1, 45),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_kth_largest_is_that_of_a_sort_also_among_ties(values, k, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    positive = tensor[tensor > 0].sort(descending=True).values
    expected = positive[k - 1] if k <= len(positive) else torch.zeros((), dtype=dtype)
    found = kth_largest(tensor, k)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_kth_largest_of_many_is_that_of_torch(dtype):
    values = torch.randn(100, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    num_positive = int((values > 0).sum())
    for k in (1, 2, 17, 1000, num_positive):
        expected = values.flatten().kthvalue(values.numel() - k + 1).values
        assert torch.equal(kth_largest(values, k), expected)
    assert kth_largest(values, num_positive + 1) == 0
    assert kth_largest(values[:, ::3].T, 5) == values[:, ::3].flatten().sort().values[-5]


def test_what_is_not_a_number_does_not_count():
    values = torch.tensor([float("nan"), 2.0, float("inf"), 1.0, -float("inf")])
    assert [float(kth_largest(values, k)) for k in (1, 2, 3, 4)] == [float("inf"), 2.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize(
    ("first", "others"),
    [(50.0, 1.0), (1.0, 50.0), (1.0, 1e-3)],
    ids=["guess_too_high", "guess_low", "others_tiny"],
)
def test_the_largest_of_a_batch_do_not_depend_on_its_first_chunk(dtype, first, others, monkeypatch):
    monkeypatch.setattr(screen, "DENSE_SHARE", 1.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, generator=generator) * others
    x[:8] *= first / others
    W = torch.randn(256, 16, generator=generator)
    monkeypatch.setitem(scores.CHUNK_BYTES, "cpu", 8 * 256 * (4 if dtype is None else 2))
    choice = screen.largest_of_batch(x, W, torch.zeros(256), 4, dtype)
    assert choice is not None
    expected = (x @ W.T).flatten().topk(4 * 64).indices
    assert sorted(pairs(choice, 256).tolist()) == sorted(expected.tolist())


def test_fewer_positive_pre_acts_than_wanted_are_all_taken(monkeypatch):
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    W = torch.randn(160, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(scores.CHUNK_BYTES, "cpu", 7 * 160 * 4)
    b = torch.full((160,), -9.0)
    choice = screen.largest_of_batch(x, W, b, 10, None)
    assert choice is not None
    expected = ((x @ W.T + b).flatten() > 0).nonzero()[:, 0]
    assert 0 < len(expected) < 300
    assert sorted(pairs(choice, 160).tolist()) == expected.tolist()


def test_too_many_active_latents_are_left_to_dense_products():
    x, W, b = torch.randn(10, 4), torch.randn(64, 4), torch.zeros(64)
    assert screen.above(x, W, b, 0.0, None) is None
    assert screen.above(x, W, b, 50.0, None) is not None
    assert screen.largest_of_batch(x, W, b, 5, None) is None
    assert screen.largest_of_batch(x, W, b, 4, None) is not None


class LargestTensor(TorchDispatchMode):
    """Records the most numbers that any operation gave out in one new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            strided = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            # A pattern (n, d_sae) of a sparse matrix, and what is expanded, holds less.
            if strided and tensor.untyped_storage().nbytes() >= tensor.numel():
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("screened", [False, True])
def test_a_step_allocates_no_large_tensor(make_sae, kind, screened, monkeypatch):
    n, d_in, d_sae, k = 256, 64, 512, 8
    chunk = 16 * d_sae
    monkeypatch.setitem(scores.CHUNK_BYTES, "cpu", chunk * 4)
    own = {} if kind in ("relu", "gated", "jumprelu") else {"k": k}
    sae = make_sae(kind, d_in=d_in, d_sae=d_sae, **own).float()
    sae.screen_dtype = BF16 if screened else None
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(0))
    if kind in ("relu", "gated", "jumprelu"):
        with torch.no_grad():  # two per cent remain active
            sae.b_enc.sub_(sae.pre_acts(x).flatten().quantile(0.98))
    with LargestTensor() as largest:
        out = sae.train()(x)
        loss = token_losses(sae, x).mean()
        loss.backward()
        sae.update_statistics(out)
    assert 0 < len(out.latents.values) < n * d_sae / 20
    groups = n * d_sae // scores.GROUP if kind in ("batchtopk", "matryoshka") else 0
    weights, tokens = (d_in + 32) * d_sae, (d_in + 32) * n
    histogram = 2**16 if kind in ("batchtopk", "matryoshka") else 0
    most = max(weights, tokens, 2 * chunk, groups, histogram, 3 * len(out.latents.values))
    assert largest.numel <= most < min(n * d_sae, n * k * d_in)


@pytest.mark.parametrize("threads", [1, 2], ids=["topk", "partition"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("width", "num"),
    [(7, 7), (64, 1), (1000, 3), (1001, 3), (1002, 40), (4096, 40), (6250, 20), (70_003, 11)],
)
def test_the_largest_of_each_row_are_those_of_a_sort(monkeypatch, width, num, dtype, threads):
    monkeypatch.setattr(scores, "PARTITION_THREADS", torch.get_num_threads() * (threads - 1))
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(5, width, generator=generator, dtype=torch.float32)
    values[1] = values[1].round()  # ties
    values[2, : width // 2] = 0
    if dtype == torch.int16:
        values = values.bfloat16().view(torch.int16)
    values = values.to(dtype)
    before = values.clone()
    found = scores.largest_per_row(values, num)
    assert found.shape == (5, num)
    assert all(len(set(row.tolist())) == num for row in found)
    expected = values.sort(1, descending=True).values[:, :num]
    assert torch.equal(values.gather(1, found).sort(1, descending=True).values, expected)
    assert torch.equal(values, before)


def test_what_partitions_and_what_does_not_agree_without_ties(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(2**15, generator=generator) for _ in range(20)]
    values = torch.stack(rows).short()
    found = scores.largest_per_row(values, 37).sort(1).values
    monkeypatch.setattr(scores, "PARTITION_THREADS", 0)
    assert torch.equal(scores.largest_per_row(values, 37).sort(1).values, found)
