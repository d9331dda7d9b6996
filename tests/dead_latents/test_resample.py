import functools

import pytest
import torch

from ssae.dead_latents.resample import Resampler
from ssae.dead_latents.silence import DeadLatents
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.residual import ResidualSAE
from ssae.sae.topk import TopKSAE

D_IN, D_SAE = 5, 12
DEAD = [2, 7, 11]
COMMON = {"auxk_coefficient": 0.0, "k_aux": 1}
MAKERS = {
    "topk": functools.partial(TopKSAE, D_IN, D_SAE, k=3, **COMMON),
    "not_subtracting": functools.partial(TopKSAE, D_IN, D_SAE, k=3, subtract_b_dec=False, **COMMON),
    "gated": functools.partial(GatedSAE, D_IN, D_SAE, l1_coefficient=1.0, **COMMON),
    "jumprelu": functools.partial(
        JumpReLUSAE, D_IN, D_SAE, l0_coefficient=1.0, target_l0=None, bandwidth=0.1,
        initial_threshold=0.25, threshold_lr=None, **COMMON,
    ),
}  # fmt: skip


def trained(kind: str):
    """An SAE some steps into training, its optimiser, and counters by which DEAD are dead."""
    torch.manual_seed(0)
    sae = MAKERS[kind]().double()
    with torch.no_grad():
        for weight in sae.parameters():
            weight.add_(0.1 * torch.rand_like(weight))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    x = batch()
    for _ in range(3):
        out = sae(x)
        losses = sae.errors(x, out)
        penalty = sae.penalty(out)
        optimizer.zero_grad()
        (losses if penalty is None else losses + penalty).mean().backward()
        optimizer.step()
        sae.normalise_decoder()
    dead_latents = DeadLatents(D_SAE, dead_after_tokens=10)
    dead_latents.tokens_since_fired[DEAD] = 11
    return sae, optimizer, dead_latents


def batch(n: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(n, D_IN, dtype=torch.float64, generator=generator) + 0.3


def resampler(**changes) -> Resampler:
    return Resampler(**({"every_steps": 10, "last_step": 30, "seed": 4} | changes))


@pytest.mark.parametrize("kind", list(MAKERS))
def test_it_does_what_the_appendix_says_to_dead_latents_and_nothing_to_others(kind):
    sae, optimizer, dead_latents = trained(kind)
    old = {name: value.clone() for name, value in sae.state_dict().items()}
    old_state = {
        name: {key: value.clone() for key, value in optimizer.state[weight].items()}
        for name, weight in sae.named_parameters()
    }
    x = batch()
    assert resampler().resample(sae, optimizer, x, dead_latents, 10) == 3
    living = [j for j in range(D_SAE) if j not in DEAD]
    for name, value in sae.state_dict().items():
        same = value if name == "b_dec" else value[living]
        assert torch.equal(same, old[name] if name == "b_dec" else old[name][living]), name
    # Each direction is that of a token of the batch, seen from b_dec; no token twice.
    cosines = torch.nn.functional.normalize(x - sae.b_dec, dim=1) @ sae.W_dec[DEAD].T
    best, tokens = cosines.max(0)
    torch.testing.assert_close(best, torch.ones(3).double())
    assert len(set(tokens.tolist())) == 3
    norm = old["W_enc_T"][living].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_enc_T[DEAD], 0.2 * norm * sae.W_dec[DEAD])
    pre_acts = sae.pre_acts(sae.b_dec[None])[0, DEAD]
    torch.testing.assert_close(pre_acts, torch.zeros(3).double(), rtol=0, atol=1e-12)
    if kind != "not_subtracting":
        assert (sae.b_enc[DEAD] == 0).all()
    if kind == "jumprelu":
        assert sae.threshold[DEAD].tolist() == [0.25] * 3
    if kind == "gated":
        assert sae.r_mag[DEAD].abs().sum() + sae.b_mag[DEAD].abs().sum() == 0
    for name, weight in sae.named_parameters():
        for key, value in optimizer.state[weight].items():
            before = old_state[name][key]
            if key == "step" or name == "b_dec":
                assert torch.equal(value, before), (name, key)
            else:
                assert (value[DEAD] == 0).all(), (name, key)
                assert torch.equal(value[living], before[living]), (name, key)
                assert before.abs().sum() > 0
    assert dead_latents.tokens_since_fired.tolist() == [0] * D_SAE
    assert dead_latents.recycled.nonzero()[:, 0].tolist() == DEAD


def test_tokens_are_drawn_by_their_squared_error():
    errors = torch.tensor([1.0, 2.0, 0.0, 3.0])
    counts = torch.zeros(4)
    for step in range(4000):
        counts[resampler()._draw(errors, 1, step)] += 1
    expected = 4000 * errors.square() / errors.square().sum()
    assert counts[2] == 0
    chi_squared = ((counts - expected)[errors > 0] ** 2 / expected[errors > 0]).sum()
    assert chi_squared < 13.8  # 99.9 % with 2 degrees of freedom


def test_a_draw_is_a_function_of_seed_and_step():
    errors = torch.rand(50)
    drawn = [resampler(seed=seed)._draw(errors, 8, step) for seed in (0, 1) for step in (10, 20)]
    torch.manual_seed(99)
    assert torch.equal(drawn[0], resampler(seed=0)._draw(errors, 8, 10))
    assert len({tuple(draw.tolist()) for draw in drawn}) == 4


def test_it_is_due_at_multiples_up_to_the_last_step_but_never_at_the_first():
    assert [step for step in range(100) if resampler().is_due(step)] == [10, 20, 30]


def test_without_dead_latents_nothing_changes():
    sae, optimizer, dead_latents = trained("topk")
    dead_latents.tokens_since_fired.zero_()
    old = {name: value.clone() for name, value in sae.state_dict().items()}
    assert resampler().resample(sae, optimizer, batch(), dead_latents, 10) == 0
    assert all(torch.equal(value, old[name]) for name, value in sae.state_dict().items())


def test_more_dead_latents_than_tokens_leave_the_rest_for_later():
    sae, optimizer, dead_latents = trained("topk")
    assert resampler().resample(sae, optimizer, batch(2), dead_latents, 10) == 2
    assert dead_latents.dead.nonzero()[:, 0].tolist() == DEAD[2:]


def test_extra_latents_are_resampled_to_the_residual_of_the_generalist():
    base, *_ = trained("topk")
    torch.manual_seed(3)
    sae = ResidualSAE(base, MAKERS["topk"]().double())
    optimizer = torch.optim.Adam(sae.extra.parameters())
    x = batch()
    sae.errors(x, sae(x)).mean().backward()
    optimizer.step()
    dead_latents = DeadLatents(sae.d_sae, 10, sae.num_frozen)
    dead_latents.tokens_since_fired[[D_SAE + j for j in DEAD]] = 11
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    assert resampler().resample(sae, optimizer, x, dead_latents, 10) == 3
    assert all(torch.equal(value, frozen[name]) for name, value in base.state_dict().items())
    residual = torch.nn.functional.normalize(x - base(x).recon, dim=1)
    best = (residual @ sae.extra.W_dec[DEAD].T).max(0).values
    torch.testing.assert_close(best, torch.ones(3).double())
    assert (optimizer.state[sae.extra.W_dec]["exp_avg"][DEAD] == 0).all()
