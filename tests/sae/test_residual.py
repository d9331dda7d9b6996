import functools

import pytest
import torch

import ssae
from ssae.objective.erm import ERM
from ssae.sae.residual import ResidualSAE
from ssae.training.lit_sae import LitSAE

KINDS = ["relu", "gated", "topk", "batchtopk", "jumprelu", "matryoshka"]
EXTRA = 16


def pair(make_sae, generalist: str = "topk", extra: str = "topk") -> ResidualSAE:
    return ResidualSAE(make_sae(generalist), make_sae(extra, d_sae=EXTRA))


def lit_of(sae, **changes) -> LitSAE:
    options = {
        "optimizer": functools.partial(torch.optim.Adam), "lr": 1e-2, "warmup_steps": 0,
        "decay_share": 0.0, "num_steps": 10, "mean_norm": 3.7, "variance": 2.0,
        "dead_after_tokens": 5, "sparsity_warmup_steps": 0, "screening": "exact",
    }  # fmt: skip
    return LitSAE(sae, ERM(), **(options | changes))


def steps(lit: LitSAE, x: torch.Tensor, num: int) -> torch.optim.Optimizer:
    """What a trainer does, without one; the seventh part of the batch is enough for latents."""
    optimizer = lit.configure_optimizers()["optimizer"]
    for _ in range(num):
        loss, *_ = lit.loss(lit.input_scale * x)
        optimizer.zero_grad()
        loss.backward()
        lit.sae.remove_parallel_gradient()
        optimizer.step()
        lit.sae.normalise_decoder()
    return optimizer


def frozen_bits(sae: ResidualSAE) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in sae.generalist.state_dict().items()}


@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("extra", KINDS)
@pytest.mark.parametrize("generalist", KINDS)
def test_recon_latents_and_losses_are_those_of_two_saes(
    make_sae, x, always_sparse, generalist, extra, scale
):
    first, second = make_sae(generalist).eval(), make_sae(extra, d_sae=EXTRA)
    sae = pair(make_sae, generalist, extra)
    sae.rescale_input(scale)
    first.rescale_input(scale)
    second.rescale_input(scale)
    base, more = first.forward_dense(x), second.forward_dense(x)
    recon = base.recon + more.recon
    latents = torch.cat([base.latents.to_dense(), more.latents.to_dense()], 1)
    errors = second.errors(x - base.recon.detach(), more)
    for out in (sae(x), sae.forward_dense(x)):
        torch.testing.assert_close(out.recon, recon)
        torch.testing.assert_close(out.latents.to_dense(), latents)
        torch.testing.assert_close(sae.errors(x, out), errors)
        if second.penalty(more) is not None:
            torch.testing.assert_close(sae.penalty(out), second.penalty(more))
        assert torch.equal(out.latents.num_active(), (latents > 0).sum(1))
        assert torch.equal(out.latents.fire_counts(), (latents > 0).sum(0))
    if extra not in ("gated", "matryoshka"):  # whose errors have a second part
        torch.testing.assert_close(errors, (x - recon).square().sum(1))
    torch.testing.assert_close(sae.encode(x), latents)
    torch.testing.assert_close(sae.decode(latents), recon)
    torch.testing.assert_close(latents @ sae.W_dec + sae.b_dec, recon)


@pytest.mark.parametrize("extra", KINDS)
def test_only_the_extra_latents_have_gradients_and_optimiser_state(make_sae, x, extra):
    sae = pair(make_sae, "gated", extra)
    optimizer = steps(lit_of(sae), x, 3)
    assert all(weight.grad is None for weight in sae.generalist.parameters())
    assert any(weight.grad.abs().sum() > 0 for weight in sae.extra.parameters())
    trained = {id(weight) for weight in sae.extra.parameters()}
    assert {id(weight) for weight in optimizer.state} <= trained
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


@pytest.mark.parametrize("generalist", KINDS)
def test_the_generalist_stays_the_same_to_the_bit(make_sae, x, tmp_path, generalist):
    sae = pair(make_sae, generalist).float()
    before, extra = frozen_bits(sae), sae.extra.W_dec.clone()
    lit = lit_of(sae.train())
    assert not sae.generalist.training
    assert sae.extra.training
    steps(lit, x.float(), 4)
    ssae.save(lit.finished_sae(), tmp_path)
    for found in (sae, ssae.load(tmp_path)):
        assert isinstance(found, ResidualSAE)
        assert not torch.equal(found.extra.W_dec, extra)
        for name, value in frozen_bits(found).items():
            assert torch.equal(value, before[name]), name
        assert found.scale == 1
    reread = ssae.load(tmp_path)
    assert torch.equal(reread(x.float()).recon, sae(x.float()).recon)
    assert not any(weight.requires_grad for weight in reread.generalist.parameters())


def test_frozen_latents_do_not_die_and_auxk_is_that_of_the_extra_ones(make_sae, x, monkeypatch):
    sae = pair(make_sae)
    with torch.no_grad():
        sae.generalist.b_enc[:5] = -100
        sae.extra.b_enc[3] = -100
    lit = lit_of(sae)
    steps(lit, x, 3)
    since = lit.dead_latents.tokens_since_fired
    assert (since[: sae.num_frozen] == 0).all()
    assert lit.dead_latents.fire_counts[:5].sum() == 0
    assert lit.dead_latents.dead[sae.num_frozen + 3]
    dead = torch.tensor([3, 7])
    residual = torch.randn_like(x)
    expected = sae.extra.auxk_errors(x, residual, dead)
    assert torch.equal(sae.auxk_errors(x, residual, dead + sae.num_frozen), expected)


def test_a_residual_sae_can_be_the_generalist_of_another(make_sae, x, tmp_path):
    inner = pair(make_sae)
    outer = ResidualSAE(inner, make_sae("relu", d_sae=EXTRA)).float()
    assert outer.num_frozen == inner.d_sae
    ssae.save(outer, tmp_path)
    found = ssae.load(tmp_path)
    torch.testing.assert_close(found(x.float()).recon, outer.eval()(x.float()).recon)


def test_the_precision_of_the_search_reaches_both(make_sae):
    sae = pair(make_sae)
    sae.screen_dtype = torch.bfloat16
    assert sae.generalist.screen_dtype == sae.extra.screen_dtype == torch.bfloat16


def test_two_widths_do_not_fit(make_sae):
    with pytest.raises(ValueError, match="must read one width, got 6 and 7"):
        ResidualSAE(make_sae("topk"), make_sae("topk", d_in=7))
