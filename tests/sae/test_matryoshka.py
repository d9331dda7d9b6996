import pytest
import torch

from ssae.sae.matryoshka import MatryoshkaSAE


def reference(sae, x):
    """arXiv 2503.17547, equation 3: BatchTopK latents, every prefix decoded on its own."""
    shifted = x - sae.b_dec if sae.subtract_b_dec else x
    pre_acts = shifted @ sae.W_enc + sae.b_enc
    limit = float(sae.threshold)
    keep = pre_acts > limit
    if sae.training:
        keep = pre_acts >= pre_acts.flatten().sort(descending=True).values[sae.k * len(x) - 1]
    latents = torch.where(keep & (pre_acts > 0), pre_acts, 0.0)
    losses, size, recon = torch.zeros(len(x), dtype=x.dtype), 0, x
    for group in sae.group_sizes:
        size += group
        recon = latents[:, :size] @ sae.W_dec[:size] + sae.b_dec
        losses = losses + ((x - recon) ** 2).sum(1) / len(sae.group_sizes)
    return latents, recon, losses


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("group_sizes", [[5, 11, 16], [32], [1, 31], [8, 8, 8, 8]])
def test_it_is_what_the_equations_say(
    make_sae, check_against, x, mode, path, subtract_b_dec, group_sizes
):
    own = {"group_sizes": group_sizes, "subtract_b_dec": subtract_b_dec}
    sae = make_sae("matryoshka", **own).train(mode == "train")
    grads = check_against(sae, x, reference)
    assert all(grad.abs().sum() > 0 for grad in grads.values())


def test_the_last_prefix_is_the_whole_dictionary(make_sae, x, path):
    out = make_sae("matryoshka")(x)
    assert out.prefix_recons.shape == (len(x), 3, 6)
    assert torch.equal(out.prefix_recons[:, -1], out.recon)


def test_latents_of_later_groups_do_not_change_earlier_prefixes(make_sae, x, path):
    sae = make_sae("matryoshka").eval()
    before = sae(x).prefix_recons
    with torch.no_grad():
        sae.W_dec[16:] += 1
    after = sae(x).prefix_recons
    torch.testing.assert_close(after[:, :2], before[:, :2], rtol=0, atol=1e-14)
    assert (after[:, 2] - before[:, 2]).abs().max() > 0.1


@pytest.mark.parametrize("group_sizes", [[], [8, 8], [20, 0], [10.0, 10], [30, -10], ["10", 10]])
def test_groups_that_do_not_fill_the_dictionary_are_refused(group_sizes):
    with pytest.raises(ValueError, match=r"group_sizes must be positive whole numbers that sum"):
        MatryoshkaSAE(6, 20, k=3, group_sizes=group_sizes, auxk_coefficient=0.1, k_aux=4)
