import numpy as np
import pytest
import torch

from ssae.theory import coded, coded_by, splits, splitting
from ssae.theory.splits import splits_of


def by_hand(narrow, wide, min_cosine: float, min_purity: float) -> list[tuple]:
    """Loops over samples (tokens, codes, decoder)."""
    _, z, D, _ = narrow.arrays
    x, other, E, _ = wide.arrays
    found = []
    for j in range(len(D)):
        on = z[:, j] > 0
        if not on.any():
            continue
        children = []
        for k in range(len(E)):
            theirs = other[:, k] > 0
            if theirs.any() and D[j] @ E[k] > min_cosine:
                purity = (on & theirs).sum() / theirs.sum()
                if purity >= min_purity:
                    coverage = (on & theirs).sum() / on.sum()
                    children.append((k, D[j] @ E[k], purity, coverage, theirs.sum()))
        children.sort(key=lambda child: -child[1])
        covered, absorbed = 0.0, np.nan
        if children:
            own = other[:, [child[0] for child in children]] > 0
            covered = own[on].any(1).mean()
            there = x @ E[children[0][0]]
            level = np.quantile(there[own[:, 0]], 0.05)
            asked = [i for i in range(len(x)) if on[i] and own[i, 1:].any()]
            if asked:
                absorbed = np.mean([not own[i, 0] and there[i] >= level for i in asked])
        found.append((j, children, on.sum(), covered, absorbed))
    return sorted(found, key=lambda split: -len(split[1]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize("bounds", [(0.05, 0.3), (0.3, 0.5)])
def test_every_number_is_that_of_a_loop(sample, seed, chunk, bounds, monkeypatch):
    monkeypatch.setattr(splits, "CHUNK", chunk)
    narrow = sample(seed, n=80, d_in=4, d_sae=7, rate=0.5)
    narrow.z[:, 2] = 0  # never fires: not reported
    wide = sample(seed + 10, n=80, d_in=4, d_sae=20, rate=0.3)._replace(x=narrow.x)
    wide.z[:, 5] = 0
    found = splits_of(
        coded(*narrow), coded(*wide), min_cosine=bounds[0], min_purity=bounds[1]
    )  # fmt: skip
    expected = by_hand(narrow, wide, *bounds)
    assert len(found) == len(expected) == 6
    for split, (j, children, fires, covered, absorbed) in zip(found, expected, strict=True):
        assert (split.parent, split.fires) == (j, fires)
        assert [child.latent for child in split.children] == [child[0] for child in children]
        for child, numbers in zip(split.children, children, strict=True):
            assert tuple(child) == pytest.approx(numbers, rel=1e-9)
        assert split.covered == pytest.approx(covered, rel=1e-12)
        assert split.absorbed == pytest.approx(absorbed, rel=1e-12, nan_ok=True)
        assert (split.asked == 0) == np.isnan(absorbed)
    assert any(len(split.children) > 1 for split in found)


def family(n: int = 300):
    """Concepts a and b; b never fires without a. Directions e0, e1, and e2 for a third."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(n, generator=generator) < 0.5
    b = a & (torch.rand(n, generator=generator) < 0.4)
    c = torch.rand(n, generator=generator) < 0.3
    strength = 1 + torch.rand(n, 3, generator=generator)
    x = torch.zeros(n, 4)
    x[:, :3] = torch.stack([a, b, c], 1) * strength
    return x.double(), a, b, c


def test_an_absorbed_parent_is_found_by_its_wider_sae(relu_sae):
    x, a, b, c = family()
    narrow = relu_sae(torch.eye(4).double()[[0, 2]], -0.1)
    # The wider SAE's own a falls silent where a + b fires: its encoder reads a less b.
    joint = torch.tensor([0.8, 0.6, 0.0, 0.0]).double()
    rows = torch.eye(4).double()
    wide = relu_sae(
        torch.stack([rows[2], joint, rows[0]]),
        torch.tensor([-0.1, -1.7, -0.1]),
        W_enc=torch.stack([rows[2], rows[0] + rows[1], rows[0] - 5 * rows[1]]),
    )
    latents = wide.encode(x) > 0
    assert torch.equal(latents[:, 2], a & ~b)
    own = splitting(narrow, wide, x)
    assert [split.parent for split in own] == [0, 1]
    split = own[0]
    assert [child.latent for child in split.children] == [2, 1]
    assert split.children[0].cosine == pytest.approx(1)
    assert split.children[1].cosine == pytest.approx(0.8)
    assert split.children[0].purity == split.children[1].purity == 1
    assert split.children[0].coverage == pytest.approx(((a & ~b).sum() / a.sum()).item(), rel=1e-6)
    assert split.children[0].fires == (a & ~b).sum()
    assert split.fires == a.sum()
    assert split.covered == 1
    heir_off = latents[:, 1] & ~latents[:, 2]
    level = x[latents[:, 2], 0].quantile(0.05)
    expected = (heir_off & (x[:, 0] >= level)).sum() / latents[:, 1].sum()
    assert split.absorbed == pytest.approx(expected.item(), rel=1e-6)
    assert split.absorbed > 0.2
    # The third concept has one child, so that nothing can be absorbed.
    assert [child.latent for child in own[1].children] == [0]
    assert np.isnan(own[1].absorbed)


def test_an_sae_of_the_same_latents_has_one_child_each(relu_sae):
    x, *_ = family()
    sae = relu_sae(torch.eye(4).double()[:3], -0.1)
    found = splitting(sae, sae, x)
    assert [[child.latent for child in split.children] for split in found] == [[0], [1], [2]]
    for split in found:
        [child] = split.children
        assert (child.cosine, child.purity, child.coverage) == (1, 1, 1)
        assert split.covered == 1


def test_a_concept_that_is_gone_has_no_children(relu_sae, topk_sae):
    x, *_ = family()
    narrow = relu_sae(torch.eye(4).double()[:3], -0.1)
    wide = topk_sae(torch.eye(4).double()[[0, 2]].repeat(2, 1), 1)
    found = {split.parent: split for split in splitting(narrow, wide, x)}
    assert found[1].children == []
    assert found[1].covered == 0
    assert np.isnan(found[1].absorbed)
    assert found[0].children


def test_the_biases_of_both_saes_are_their_own(relu_sae):
    # x . d_heir is read less the wider SAE's b_dec, which shifts both sides of the comparison.
    x, *_ = family()
    rows = torch.eye(4).double()
    narrow = relu_sae(rows[:2], -0.1, b_dec=torch.ones(4))
    wide = relu_sae(rows[[0, 0, 1]] + 0.3 * rows[[1, 3, 3]], -0.6, b_dec=torch.linspace(0, 1, 4))
    shifted = x + torch.ones(4)
    found = splitting(narrow, wide, shifted)
    expected = splits_of(coded_by(narrow, shifted), coded_by(wide, shifted))
    assert str(found) == str(expected)
    moved = relu_sae(wide.W_dec.detach(), -0.6)
    same = splits_of(coded_by(narrow, shifted), coded_by(moved, shifted - wide.b_dec.detach()))
    assert str(found) == str(same)


def test_a_purity_of_one_asks_that_no_token_is_outside(relu_sae):
    x, a, b, c = family()
    rows = torch.eye(4).double()
    narrow, wide = relu_sae(rows[:1], -0.1), relu_sae(rows[:1].repeat(3, 1), -0.1)
    assert len(splitting(narrow, wide, x, min_purity=1.0)[0].children) == 3
    x = x.clone()
    x[torch.nonzero(~a)[0, 0], 0] = 0.05  # fires in a wider SAE without a bias
    wide = relu_sae(rows[:1].repeat(3, 1), torch.tensor([-0.1, -0.1, 0.0]))
    assert len(splitting(narrow, wide, x, min_purity=1.0)[0].children) == 2
    assert len(splitting(narrow, wide, x, min_purity=0.9)[0].children) == 3


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_cosine": 0.0}, {"min_cosine": 1.0}, {"min_cosine": float("nan")},
        {"min_purity": 0.0}, {"min_purity": 1.1}, {"min_purity": -1.0},
    ],
)  # fmt: skip
def test_bounds_out_of_range_are_refused(relu_sae, bounds):
    sae = relu_sae(torch.eye(4).double())
    with pytest.raises(ValueError, match=r"min_cosine must lie in \(0, 1\) and min_purity"):
        splitting(sae, sae, torch.ones(3, 4), **bounds)


def test_saes_of_different_widths_are_refused(relu_sae):
    one, other = relu_sae(torch.eye(4).double()), relu_sae(torch.eye(5).double())
    with pytest.raises(ValueError, match="must read one width, got 4 and 5"):
        splitting(one, other, torch.ones(3, 4))
