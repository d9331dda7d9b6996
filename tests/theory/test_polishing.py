import copy

import numpy as np
import pytest
import torch
from scipy import sparse

from ssae.sae.base import SparseAutoencoder
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.residual import ResidualSAE
from ssae.sae.sparse import SparseLatents
from ssae.theory.active_codes import encoded, support_of
from ssae.theory.fit import train_l1
from ssae.theory.polishing import polish_sae, score
from ssae.theory.refit import hold_l0, refit_encoder
from ssae.theory.toy import Independent

GROUPS = [4, 6, 6]
QUICK = {"rounds": 2, "encoder_steps": 60, "batch_size": 256, "lr": 3e-3, "seed": 0}
ARCHITECTURES = ["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"]
TOY = Independent(num_concepts=16, d_in=16, rate=0.15, noise=0.05, seed=3)


def crooked(all_saes, architecture: str, lam: float = 0.1) -> SparseAutoencoder:
    """An SAE whose directions are near the concepts', and whose encoder is their transpose."""
    torch.manual_seed(0)
    sae = all_saes(16, 2, GROUPS)[architecture](d_in=16)
    with torch.no_grad():
        W = torch.nn.functional.normalize(TOY.directions + 0.15 * torch.randn(16, 16))
        sae.W_dec.copy_(W)
        sae.W_enc_T.copy_(W)
        sae.b_enc.fill_(-lam if architecture == "relu" else -0.3)
        if architecture in ("batchtopk", "matryoshka", "jumprelu"):
            sae.threshold.fill_(0.2)
    return sae.eval()


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu", "gated"])
def test_thresholds_are_moved_until_l0_is_what_it_was(all_saes, architecture):
    sae, x = crooked(all_saes, architecture), TOY.draw(3000, 1).x
    for wanted in (1.3, 2.4):
        hold_l0(sae, x, wanted)
        latents = sae.encode(x)
        assert (latents > 0).sum(1).float().mean() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fitting_the_encoder_leaves_the_decoder_and_the_settings(all_saes, architecture):
    sae, x = crooked(all_saes, architecture), 3 * TOY.draw(2000, 1).x
    old, lam = copy.deepcopy(sae), 0.3 if architecture == "relu" else 0.0
    refit_encoder(sae, x, lam, 2.0, num_steps=40, batch_size=128, lr=3e-3, seed=0)
    assert torch.equal(sae.W_dec, old.W_dec)
    torch.testing.assert_close(sae.b_dec, old.b_dec)
    assert sae.hyperparameters == old.hyperparameters
    assert not sae.training
    assert not torch.equal(sae.W_enc_T, old.W_enc_T)
    if architecture != "gated":  # whose gate has an error of its own
        hold_l0(sae, x, score(old, x, lam).l0)
        assert score(sae, x, lam).objective < score(old, x, lam).objective


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_sae_with_crooked_directions_improves_at_the_l0_it_has(all_saes, architecture):
    sae, lam = crooked(all_saes, architecture), 0.1 if architecture == "relu" else 0.0
    weights = copy.deepcopy(sae.state_dict())
    x, held_out = TOY.draw(4000, 1).x, TOY.draw(2000, 2).x
    found = polish_sae(sae, x, held_out, lam, **QUICK)
    assert found.num_rounds >= 1
    assert found.sae is not sae
    for name, weight in sae.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    # By hand, on dense codes.
    costs = {}
    for which, one in (("before", sae), ("after", found.sae)):
        z = one.encode(held_out).double().detach()
        W, base = one.W_dec.detach().double(), one.b_dec.detach().double()
        sizes = one.group_sizes if isinstance(one, MatryoshkaSAE) else [16]
        ends = np.cumsum(sizes)
        errors = torch.stack(
            [(held_out - base - z[:, :end] @ W[:end]).square().sum(1) for end in ends]
        ).mean(0)
        costs[which] = float((errors / 2 + lam * (z * W.norm(dim=1)).sum(1)).mean())
        l0 = float((z > 0).double().sum(1).mean())
        assert getattr(found, which).objective == pytest.approx(costs[which], rel=1e-5)
        assert getattr(found, which).l0 == pytest.approx(l0, rel=1e-3)
    assert costs["after"] < 0.95 * costs["before"]
    assert lam > 0 or found.after.l0 <= 1.01 * found.before.l0
    cosines = ((found.sae.W_dec * TOY.directions).sum(1), (sae.W_dec * TOY.directions).sum(1))
    assert cosines[0].mean() > cosines[1].mean()
    first = found.rounds[0]
    assert first.turned_objective < first.codes_objective


def test_a_second_run_is_the_same_to_the_bit(all_saes):
    sae, x, held_out = crooked(all_saes, "topk"), TOY.draw(2000, 1).x, TOY.draw(500, 2).x
    one, other = (polish_sae(sae, x, held_out, 0.0, **QUICK) for _ in range(2))
    for name, weight in one.sae.state_dict().items():
        assert torch.equal(weight, other.sae.state_dict()[name])
    assert one.rounds == other.rounds


def test_tokens_that_choose_teach_nothing(all_saes):
    sae, x = crooked(all_saes, "topk"), TOY.draw(2000, 1).x
    settings = QUICK | {"rounds": 1}
    one, other = (polish_sae(sae, x, TOY.draw(500, s).x, 0.0, **settings) for s in (2, 3))
    assert one.after.objective != other.after.objective
    for name, weight in one.sae.state_dict().items():
        assert torch.equal(weight, other.sae.state_dict()[name])


def test_what_does_not_help_is_not_chosen(all_saes):
    sae, x = crooked(all_saes, "topk"), TOY.draw(2000, 1).x
    weights = copy.deepcopy(sae.state_dict())
    # Tokens that it reconstructs exactly: any other dictionary is worse.
    held_out = 2 * sae.W_dec.detach().repeat(20, 1)
    with torch.no_grad():
        sae.b_enc.zero_()
        sae.k = 1
    weights["b_enc"].zero_()
    found = polish_sae(sae, x, held_out, 0.0, **QUICK)
    assert found.sae is sae
    assert found.num_rounds == 0
    assert [one.helps for one in found.rounds] == [False]
    for name, weight in sae.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert found.after is found.before


def test_an_sae_whose_decoder_norms_differ_is_polished_as_the_same_function(all_saes):
    sae, lam = crooked(all_saes, "relu"), 0.1
    other = copy.deepcopy(sae)
    with torch.no_grad():
        factors = torch.linspace(0.5, 2, 16)
        other.W_dec.mul_(factors[:, None])
        other.W_enc_T.div_(factors[:, None])
        other.b_enc.div_(factors)
    x, held_out = TOY.draw(2000, 1).x, TOY.draw(500, 2).x
    one, two = (polish_sae(s, x, held_out, lam, **QUICK) for s in (sae, other))
    assert two.before.objective == pytest.approx(one.before.objective, rel=1e-5)
    assert two.after.objective == pytest.approx(one.after.objective, rel=1e-3)


def test_codes_that_the_encoder_gives_are_read_as_they_are(all_saes):
    sae, x = crooked(all_saes, "jumprelu"), TOY.draw(300, 1).x
    pieces = list(encoded(sae, x))
    z = sparse.vstack([z for _, z in pieces]).toarray()
    np.testing.assert_allclose(z, sae.encode(x).detach().numpy(), atol=1e-6)
    support = support_of(pieces[0][1], [16])
    latents = SparseLatents(support.active, torch.from_numpy(pieces[0][1].data))
    np.testing.assert_allclose(latents.to_dense(), z[: len(pieces[0][0])], atol=1e-6)


def test_what_cannot_be_polished_is_refused(all_saes):
    made = all_saes(16, 2, GROUPS)
    x = TOY.draw(50, 0).x
    residual = ResidualSAE(made["topk"](d_in=16), made["topk"](d_in=16))
    with pytest.raises(
        ValueError, match="residual SAE cannot be polished: the generalist in it is"
    ):
        polish_sae(residual, x, x, 0.0, **QUICK)
    with pytest.raises(ValueError, match=r"a topk SAE chooses .* got 0.5; set polish.lam=null"):
        polish_sae(made["topk"](d_in=16), x, x, 0.5, **QUICK)
    with pytest.raises(ValueError, match="lam must be a finite number of at least 0, got -1"):
        polish_sae(made["relu"](d_in=16), x, x, -1.0, **QUICK)


@pytest.mark.slow
def test_a_briefly_trained_sae_gains_and_a_long_trained_one_hardly():
    lam = 0.1
    x, held_out = TOY.draw(20_000, 11).x, TOY.draw(5000, 12).x
    settings = QUICK | {"encoder_steps": 200}
    gains = {}
    for num_steps in (60, 3000):
        sae = train_l1(TOY, 24, lam, num_steps=num_steps)
        found = polish_sae(sae, x, held_out, lam, **settings)
        gains[num_steps] = 1 - found.after.objective / found.before.objective
    assert gains[60] > 0.05
    assert 0 <= gains[3000] < 0.01
