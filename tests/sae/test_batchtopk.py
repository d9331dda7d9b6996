import pytest
import torch

from ssae.sae.batchtopk import MOMENTUM, BatchTopKSAE


def reference(sae, x):
    """arXiv 2412.06410, section 3: the k n largest in training, a threshold afterwards."""
    shifted = x - sae.b_dec if sae.subtract_b_dec else x
    pre_acts = shifted @ sae.W_enc + sae.b_enc
    if sae.training:
        ranked = sorted(pre_acts.flatten().tolist(), reverse=True)
        keep = pre_acts >= ranked[sae.k * len(x) - 1]
    else:
        keep = pre_acts > sae.threshold
    latents = torch.where(keep & (pre_acts > 0), pre_acts, 0.0)
    recon = latents @ sae.W_dec + sae.b_dec
    return latents, recon, ((x - recon) ** 2).sum(1)


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("k", [1, 3, 30])
def test_it_is_what_the_equations_say(make_sae, check_against, x, mode, path, subtract_b_dec, k):
    sae = make_sae("batchtopk", k=k, subtract_b_dec=subtract_b_dec).train(mode == "train")
    grads = check_against(sae, x, reference)
    assert all(grad.abs().sum() > 0 for grad in grads.values())


def test_in_training_a_token_may_have_more_or_less_than_k(make_sae, x, path):
    num_active = make_sae("batchtopk").train()(x).latents.num_active()
    assert num_active.sum() == 3 * len(x)
    assert len(num_active.unique()) > 1


def test_in_eval_a_token_does_not_depend_on_its_neighbours(make_sae, x, path):
    sae = make_sae("batchtopk").eval()
    together = sae(x).recon
    torch.testing.assert_close(torch.cat([sae(token[None]).recon for token in x]), together)


def test_equal_values_at_the_end_are_all_kept(path):
    sae = BatchTopKSAE(1, 16, k=1, auxk_coefficient=0.0, k_aux=1)
    with torch.no_grad():
        sae.W_enc_T.fill_(-1.0)
        sae.W_enc_T[[2, 5, 11]] = torch.tensor([[1.0], [2.0], [1.0]])
    latents = sae(torch.ones(2, 1)).latents.to_dense()  # asks for the two largest of six
    assert latents.nonzero().tolist() == [[0, 5], [1, 5]]
    sae.k = 2
    assert sae(torch.ones(2, 1)).latents.num_active().tolist() == [3, 3]


def test_the_threshold_is_a_running_mean_of_the_smallest_kept_value(make_sae, x, path):
    sae = make_sae("batchtopk").train()
    sae.threshold.zero_()
    expected = None
    for scale in (1.0, 1.5, 0.7):
        out = sae(scale * x)
        kept = out.latents.to_dense()
        smallest = kept[kept > 0].min()
        first = expected is None
        expected = smallest if first else MOMENTUM * expected + (1 - MOMENTUM) * smallest
        sae.update_statistics(out)
        torch.testing.assert_close(sae.threshold, expected.detach(), rtol=1e-12, atol=0)


def test_the_threshold_stays_when_nothing_is_active(make_sae, x, path):
    sae = make_sae("batchtopk").train()
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
    out = sae(x)
    assert out.latents.num_active().sum() == 0
    sae.update_statistics(out)
    assert float(sae.threshold) == pytest.approx(1.1)


def test_forward_leaves_the_threshold_alone(make_sae, x):
    sae = make_sae("batchtopk").train()
    sae(x)
    assert float(sae.threshold) == pytest.approx(1.1)


def test_a_short_run_ends_with_the_threshold_of_its_own_weights(make_sae):
    torch.manual_seed(0)
    x = 3 * torch.randn(4096, 6, dtype=torch.float64)
    sae = make_sae("batchtopk").train()
    sae.threshold.zero_()
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for step in range(60):
        batch = x[torch.randint(len(x), (512,))]
        out = sae(batch)
        sae.errors(batch, out).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (60 - step) / 12)  # as in training: a fall at the end
        optimizer.step()
        optimizer.zero_grad()
        sae.update_statistics(out)
    l0 = sae.eval()(x).latents.num_active().double().mean()
    assert float(l0) == pytest.approx(sae.k, rel=0.1)
