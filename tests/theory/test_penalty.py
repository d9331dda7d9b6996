import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE
from ssae.theory import coded, lam_of_l0, optimal_codes, penalty_of

COMMON = {"auxk_coefficient": 0.0, "k_aux": 1}
OTHERS = {
    "gated": lambda: GatedSAE(7, 10, l1_coefficient=0.7, **COMMON),  # its objective prices the gate
    "topk": lambda: TopKSAE(7, 10, k=3, **COMMON),
    "batchtopk": lambda: BatchTopKSAE(7, 10, k=3, **COMMON),
    "matryoshka": lambda: MatryoshkaSAE(7, 10, k=3, group_sizes=[4, 6], **COMMON),
    "jumprelu": lambda: JumpReLUSAE(
        7, 10, l0_coefficient=0.4, target_l0=None, bandwidth=0.6, initial_threshold=0.5,
        threshold_lr=None, **COMMON,
    ),
}  # fmt: skip


def relu() -> ReLUSAE:
    return ReLUSAE(7, 10, l1_coefficient=0.7, **COMMON)


@pytest.fixture
def optimal(sample):
    """Codes that are optimal at a known price, of a decoder of other norms."""

    def make(lam: float):
        drawn = sample(0, n=80)
        z = optimal_codes(drawn.x, drawn.W_dec, lam).z / drawn.W_dec.norm(dim=1)
        return coded(drawn.x, z, drawn.W_dec)

    return make


@pytest.mark.parametrize("lam", [0.05, 0.3, 1.0])
def test_the_price_that_codes_are_optimal_at_is_found(optimal, lam):
    found = penalty_of(relu(), optimal(lam))
    assert found.origin == "estimated"
    for value in (found.lam, found.median, found.low, found.high):
        assert value == pytest.approx(lam, rel=1e-5)


def test_a_price_that_training_names_is_that_of_the_objective(optimal):
    batch = optimal(0.3)
    found = penalty_of(relu(), batch, input_scale=5.0)
    # ||s x - recon||^2 + l1 sum z of s x is 2 s^2 [1/2 ||x - recon / s||^2 + l1 / (2 s) sum z / s].
    assert (found.lam, found.origin) == (0.7 / 2 / 5.0, "objective")
    assert found.median == pytest.approx(0.3, rel=1e-5)


def test_the_objective_in_units_of_x_is_half_that_of_training(sample, relu_sae):
    # The same minimiser: both objectives of the same codes differ by a factor alone.
    drawn, s, l1 = sample(1), 3.0, 0.8
    sae = relu_sae(drawn.W_dec, -0.1, l1_coefficient=l1)
    batch = coded(drawn.x, drawn.z, drawn.W_dec)
    lam = penalty_of(sae, batch, s).lam
    training = (s * batch.x - s * (batch.x - batch.residual)).square().sum(1)
    training += l1 * s * batch.z.to_dense().sum(1)
    torch.testing.assert_close(training, 2 * s**2 * batch.objective(lam))


def test_without_a_coefficient_the_price_is_estimated(optimal, relu_sae):
    sae = relu_sae(torch.eye(7).double(), l1_coefficient=0.0)
    found = penalty_of(sae, optimal(0.3), input_scale=5.0)
    assert found.origin == "estimated"
    assert found.lam == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_saes_without_a_price_have_none(optimal, kind):
    found = penalty_of(OTHERS[kind](), optimal(0.3), input_scale=5.0)
    assert (found.lam, found.origin) == (0.0, "none")
    assert found.median == pytest.approx(0.3, rel=1e-5)


def test_quantiles_are_those_of_every_active_pair(sample):
    drawn = sample(2)
    _, z, D, r = drawn.arrays
    values = [D[j] @ r[i] for i in range(len(z)) for j in range(len(D)) if z[i, j] > 0]
    found = penalty_of(relu(), coded(*drawn))
    expected = np.quantile(values, [0.05, 0.5, 0.95])
    np.testing.assert_allclose([found.low, found.median, found.high], expected, rtol=1e-9)
    assert found.low < found.median < found.high
    assert found.lam == max(0.0, found.median)


def test_a_negative_estimate_is_no_price(sample):
    drawn = sample(3)
    found = penalty_of(relu(), coded(drawn.x, 50 * drawn.z, drawn.W_dec))
    assert found.median < 0
    assert found.lam == 0


def test_a_price_cannot_be_estimated_without_an_active_latent(sample):
    drawn = sample(4)
    batch = coded(drawn.x, torch.zeros_like(drawn.z), drawn.W_dec)
    for make in (relu, *OTHERS.values()):
        with pytest.raises(ValueError, match="no latent of the SAE is active"):
            penalty_of(make(), batch)


@pytest.mark.parametrize("l0", [0.5, 1.0, 2.0])
def test_of_an_orthonormal_dictionary_the_price_is_a_quantile_of_projections(l0):
    generator = torch.Generator().manual_seed(0)
    D = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    found = lam_of_l0(x, D, l0)
    reached = ((x @ D.T) > found).sum(1).double().mean()
    assert reached == pytest.approx(l0, rel=0.02)


@pytest.mark.parametrize("l0", [1.0, 3.0, 6.0])
def test_the_price_reaches_the_l0_that_is_asked_for(sample, l0):
    drawn = sample(5, n=150, d_in=12, d_sae=30)
    W_dec = drawn.W_dec / drawn.W_dec.norm(dim=1, keepdim=True)
    found = lam_of_l0(drawn.x, W_dec, l0)
    model = Lasso(alpha=found / 12, positive=True, fit_intercept=False, tol=1e-10, max_iter=20_000)
    codes = np.stack([model.fit(W_dec.T.numpy(), row).coef_ for row in drawn.x.numpy()])
    assert (codes > 1e-7).sum(1).mean() == pytest.approx(l0, rel=0.025)


@pytest.mark.parametrize(
    "scale",
    [
        1.0,
        0.05,
        1e4,
    ],
)
def test_the_norms_of_directions_do_not_matter(sample, scale):
    # The search begins at the largest x . W_dec_j, whereas codes are those of unit directions.
    drawn = sample(6, n=150, d_in=12, d_sae=30)
    W_dec = drawn.W_dec / drawn.W_dec.norm(dim=1, keepdim=True)
    found = lam_of_l0(drawn.x, scale * W_dec, 2.0)
    reached = (optimal_codes(drawn.x, W_dec, found).z > 0).sum(1).double().mean()
    assert reached == pytest.approx(2.0, rel=0.025)


def test_an_l0_that_cannot_be_reached_is_refused(sample):
    drawn = sample(7, n=40, d_in=6, d_sae=5)
    with pytest.raises(ValueError, match=r"never have 5\.0 active latents per token, at most"):
        lam_of_l0(drawn.x, drawn.W_dec / drawn.W_dec.norm(dim=1, keepdim=True), 5.0)
    for l0 in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="l0 must be positive"):
            lam_of_l0(drawn.x, drawn.W_dec, l0)


def test_tokens_that_no_direction_reaches_are_refused_as_such():
    with pytest.raises(ValueError, match="no direction points along any token"):
        lam_of_l0(-torch.rand(5, 3) - 0.1, torch.rand(4, 3) + 0.1, 1.0)
