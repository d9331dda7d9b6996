import numpy as np
import pytest
import torch

from ssae.sae.sparse import ActiveSet, SparseLatents
from ssae.theory import candidates_of, coded, coded_by, penalty_of, stationarity
from ssae.theory.coded import as_csc


@pytest.mark.parametrize("seed", range(3))
def test_the_latent_takes_the_norm_of_its_direction(sample, seed):
    drawn = sample(seed)
    x, z, D, r = drawn.arrays
    found = coded(*drawn)
    np.testing.assert_allclose(found.x, x, rtol=0)
    np.testing.assert_allclose(found.z.to_dense(), z, rtol=1e-12)
    np.testing.assert_allclose(found.directions, D, rtol=1e-12)
    np.testing.assert_allclose(found.residual, r, rtol=1e-10, atol=1e-12)
    assert np.abs(z - drawn.z.numpy()).max() > 0.5  # the norms were not 1


def test_the_objective_of_every_token_is_half_the_squared_error_and_the_price_of_the_codes(sample):
    drawn = sample(1)
    _, z, _, r = drawn.arrays
    expected = [(r[i] @ r[i]) / 2 + 0.3 * sum(z[i]) for i in range(len(r))]
    np.testing.assert_allclose(coded(*drawn).objective(0.3), expected, rtol=1e-12)


def test_projections_are_those_of_every_active_pair_token_by_token(sample):
    drawn = sample(2)
    _, z, D, r = drawn.arrays
    expected = [D[j] @ r[i] for i in range(len(z)) for j in range(len(D)) if z[i, j] > 0]
    np.testing.assert_allclose(coded(*drawn).projections(), expected, rtol=1e-9, atol=1e-12)


def test_sums_per_latent_are_those_of_a_loop(sample):
    drawn = sample(3)
    x, z, D, _ = drawn.arrays
    found = coded(*drawn)
    expected = np.zeros((len(D), x.shape[1]))
    for i in range(len(x)):
        for j in range(len(D)):
            expected[j] += z[i, j] * x[i]
    np.testing.assert_allclose(found.sums_per_latent(found.z.values, found.x), expected, rtol=1e-10)
    np.testing.assert_allclose(found.masses(found.z.values), z.sum(0), rtol=1e-12)


@pytest.mark.parametrize("form", ["listed", "listed with zeros", "every"])
def test_dense_and_sparse_codes_are_the_same(sample, listed, form):
    drawn = sample(4)
    if form == "every":
        active = ActiveSet.every(*drawn.z.shape, drawn.z.device)
        z = SparseLatents(active, drawn.z.flatten())
    else:
        zeros = torch.rand(drawn.z.shape) < 0.3 if form == "listed with zeros" else None
        z = listed(drawn.z, zeros)
    found, expected = coded(drawn.x, z, drawn.W_dec), coded(*drawn)
    assert torch.equal(found.z.to_dense(), expected.z.to_dense())
    assert torch.equal(found.residual, expected.residual)
    assert (found.z.values > 0).all()


def test_what_is_given_stays_as_it_is(sample, listed):
    drawn = sample(5)
    z = listed(drawn.z, drawn.z == 0)
    parts = (drawn.x, z.values, z.active.indices, z.active.offsets, drawn.W_dec)
    before = [part.clone() for part in parts]
    stationarity(drawn.x, z, drawn.W_dec, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(parts, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_everything_becomes_float64(sample, dtype):
    drawn = sample(6)
    rounded = [part.to(dtype) for part in drawn]
    found, expected = coded(*rounded), coded(*(part.double() for part in rounded))
    for a, b in zip(found, expected, strict=True):
        a, b = (part.to_dense() if isinstance(part, SparseLatents) else part for part in (a, b))
        assert a.dtype == torch.float64
        assert torch.equal(a, b)


def test_an_sae_is_read_less_its_b_dec(relu_sae, topk_sae, sample):
    drawn = sample(7)
    b_dec = torch.arange(7.0).double()
    for sae in (relu_sae(drawn.W_dec, -0.5, b_dec=b_dec), topk_sae(drawn.W_dec, 3, b_dec=b_dec)):
        found = coded_by(sae, drawn.x)
        assert torch.equal(found.x, drawn.x - b_dec)
        with torch.no_grad():
            recon, latents = sae.decode(sae.encode(drawn.x)), sae.encode(drawn.x)
        torch.testing.assert_close(found.residual, drawn.x - recon)
        norms = drawn.W_dec.norm(dim=1)
        torch.testing.assert_close(found.z.to_dense(), latents * norms)
        assert not found.residual.requires_grad


def test_codes_without_any_active_latent_leave_x(sample):
    drawn = sample(8)
    found = coded(drawn.x, torch.zeros_like(drawn.z), drawn.W_dec)
    assert torch.equal(found.residual, drawn.x)
    assert found.projections().shape == (0,)
    assert found.masses(found.z.values).tolist() == [0] * 10


def test_codes_with_a_graph_are_detached(sample, relu_sae):
    drawn = sample(9)
    sae = relu_sae(drawn.W_dec)
    found = coded(drawn.x, sae.encode(drawn.x), sae.W_dec)
    assert not found.z.values.requires_grad
    penalty_of(sae, found)


def test_a_latent_without_a_direction_has_no_entries():
    W_dec = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    found = coded(torch.ones(3, 2), torch.ones(3, 2), W_dec)
    assert (found.z.values > 0).all()  # "nothing but the entries > 0"
    assert stationarity(torch.ones(3, 2), torch.ones(3, 2), W_dec, 0.1).fires.tolist() == [0, 3]


def test_candidates_have_norm_one():
    found = candidates_of(torch.tensor([[1e-13, 0.0], [0.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(found.norm(dim=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "z", "W_dec", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), torch.ones(4, 5), r"x must have shape \(n, 5\)"),
        (torch.ones(3), torch.ones(3, 4), torch.ones(4, 3), r"x must have shape \(n, 3\)"),
        (torch.ones(0, 2), torch.ones(0, 4), torch.ones(4, 2), "with n > 0"),
        (torch.full((3, 2), torch.nan), torch.ones(3, 4), torch.ones(4, 2), "x must be finite"),
        (torch.full((3, 2), torch.inf), torch.ones(3, 4), torch.ones(4, 2), "x must be finite"),
        (torch.ones(3, 2), torch.ones(2, 4), torch.ones(4, 2), r"z must have shape \(3, 4\)"),
        (torch.ones(3, 2), torch.ones(3, 5), torch.ones(4, 2), r"z must have shape \(3, 4\)"),
        (torch.ones(3, 2), -torch.ones(3, 4), torch.ones(4, 2), "nowhere negative"),
        (torch.ones(3, 2), torch.full((3, 4), torch.nan), torch.ones(4, 2), "z must be finite"),
        (torch.ones(3, 2), torch.full((3, 4), torch.inf), torch.ones(4, 2), "z must be finite"),
        (torch.ones(3, 2), torch.ones(3, 4), torch.ones(4), "W_dec must be a finite"),
        (torch.ones(3, 2), torch.ones(3, 4), torch.full((4, 2), torch.nan), "W_dec must be"),
    ],
)
def test_what_is_no_input_is_refused(x, z, W_dec, message, listed):
    with pytest.raises(ValueError, match=message):
        coded(x, z, W_dec)
    if z.ndim == 2 and len(z):  # the same as a list of entries
        active = ActiveSet.of_rows(torch.arange(z.shape[1]).expand(z.shape), z.shape[1])
        with pytest.raises(ValueError, match=message):
            coded(x, SparseLatents(active, z.flatten()), W_dec)


@pytest.mark.parametrize("name", ["x", "z", "W_dec"])
def test_arrays_are_refused_with_what_to_do(sample, name):
    given = sample(0)._asdict()
    message = rf"{name} must be a torch.Tensor, got numpy.ndarray; use torch.as_tensor\({name}\)"
    with pytest.raises(TypeError, match=message):
        coded(**given | {name: given[name].numpy()})


def test_arrays_are_refused_by_what_reads_an_sae_or_codes_alone(sample, relu_sae):
    drawn = sample(0)
    with pytest.raises(TypeError, match="x must be a torch.Tensor"):
        coded_by(relu_sae(drawn.W_dec), drawn.x.numpy())
    with pytest.raises(TypeError, match="z must be a torch.Tensor, got builtins.list"):
        as_csc(drawn.z.tolist())
