import numpy as np
import pytest
import torch
from torch import Tensor

from ssae.theory import optimal_codes, predict_absorption
from ssae.theory.toy import Hierarchical


def labels(num: int = 5, n: int = 2000, rate: float = 0.2, seed: int = 0) -> Tensor:
    """Concepts that fire independently, with strengths."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, num, generator=generator) < rate
    return on * (0.5 + torch.rand(n, num, generator=generator)).double()


def fates(z: Tensor, directions: Tensor | None = None, **settings) -> list[str]:
    D = torch.eye(z.shape[1]).double() if directions is None else directions
    return [one.fate for one in predict_absorption(z, D, **settings)]


def test_independent_concepts_are_held(unit):
    z = labels()
    for directions in (torch.eye(5), unit(0, 5, 12)):
        found = predict_absorption(z, directions)
        assert [one.concept for one in found] == list(range(5))
        for one in found:
            assert one.fate == "held"
            assert one.residual < 1e-6
            assert (one.children, one.parents, one.merged_with, one.covered) == ((), (), (), 0)


def test_a_parent_is_absorbed_by_the_child_that_never_fires_without_it(unit):
    z = labels()
    z[:, 3] *= z[:, 1] > 0
    for directions in (torch.eye(5), unit(1, 5, 12)):
        found = predict_absorption(z, directions)
        assert [one.fate for one in found] == ["held", "absorbed", "held", "child", "held"]
        assert found[1].children == (3,)
        assert found[3].parents == (1,)
        share = ((z[:, 3] > 0) & (z[:, 1] > 0)).sum() / (z[:, 1] > 0).sum()
        assert found[1].covered == pytest.approx(share.item(), rel=1e-6)
        assert found[1].residual > 0.05


def test_a_parent_whose_children_cover_all_of_its_tokens_is_split():
    z = labels()
    first = torch.rand(2000, generator=torch.Generator().manual_seed(1)) < 0.6
    strength = z[:, 1].clone()
    z[:, 2], z[:, 3] = strength * first, strength * ~first
    found = predict_absorption(z, torch.eye(5))
    assert [one.fate for one in found] == ["held", "split", "child", "child", "held"]
    assert set(found[1].children) == {2, 3}
    assert found[1].children[0] == 2  # more mass to save
    assert found[1].covered == 1
    # Below the bound it keeps tokens of its own.
    left = torch.nonzero(z[:, 1])[:20, 0]
    z[left, 2] = z[left, 3] = 0
    assert fates(z)[1] == "absorbed"


def test_concepts_of_the_same_tokens_are_merged():
    z = labels()
    z[:, 4] = 2 * z[:, 0]
    found = predict_absorption(z, torch.eye(5))
    assert [one.fate for one in found] == ["merged", "held", "held", "held", "merged"]
    assert found[0].merged_with == (4,)
    assert found[4].merged_with == (0,)
    assert found[0].children == found[0].parents == ()


@pytest.mark.parametrize(("share", "fate"), [(0.005, "merged"), (0.05, "absorbed")])
def test_nearly_the_same_tokens_are_the_same(share, fate):
    z = labels()
    z[:, 4] = z[:, 0]
    on = torch.nonzero(z[:, 0])[:, 0]
    z[on[: int(share * len(on))], 4] = 0  # 0 fires on a few more
    assert fates(z)[0] == fate


def test_a_chain_is_absorbed_at_every_level():
    z = labels(rate=0.4)
    z[:, 1] *= z[:, 0] > 0
    z[:, 2] *= z[:, 1] > 0
    found = predict_absorption(z, torch.eye(5))
    assert [one.fate for one in found] == ["absorbed", "absorbed", "child", "held", "held"]
    assert set(found[2].parents) == {0, 1}
    assert found[1].parents == (0,)


def test_what_is_predicted_is_cheaper():
    # By the objective itself: the child's direction is turned towards its parent's a little, so
    # that the weakest parent still suffices for the strongest child.
    z = labels(3)
    z[:, 1] *= z[:, 0] > 0
    D = torch.eye(3).double()
    held, absorbed = D, D.clone()
    absorbed[1] = (0.3 * D[0] + D[1]) / 1.09**0.5
    x, lam = z @ D, 0.05

    def objective(dictionary: Tensor) -> float:
        codes = optimal_codes(x, dictionary, lam).z
        left = x - codes @ dictionary
        return float((left.square().sum(1) / 2 + lam * codes.sum(1)).mean())

    assert fates(z) == ["absorbed", "child", "held"]
    assert objective(absorbed) < objective(held) - 1e-4
    other = D.clone()  # an independent concept gains nothing
    other[2] = (0.3 * D[0] + D[2]) / 1.09**0.5
    assert objective(other) > objective(held) + 1e-4


def test_the_toy_hierarchy_is_predicted():
    toy = Hierarchical(num_concepts=8, num_parents=2, children=2, rate=0.2)
    drawn = toy.draw(4000, 0)
    found = predict_absorption(drawn.z, toy.directions)
    assert [one.fate for one in found] == ["absorbed"] * 2 + ["child"] * 4 + ["held"] * 2
    assert [one.parents for one in found[2:6]] == [(0,), (0,), (1,), (1,)]
    whole = Hierarchical(num_concepts=8, num_parents=2, children=2, rate=0.2, child_rate=1.0)
    found = predict_absorption(whole.draw(4000, 0).z, whole.directions)
    assert [one.fate for one in found] == ["split"] * 2 + ["child"] * 4 + ["held"] * 2


def test_bool_labels_are_strengths_of_one():
    z = labels()
    z[:, 3] *= z[:, 1] > 0
    D = torch.eye(5)
    assert predict_absorption(z > 0, D) == predict_absorption((z > 0).double(), D)
    assert fates(z > 0) == ["held", "absorbed", "held", "child", "held"]


def test_a_rare_concept_is_a_child_only_from_min_fires_on():
    z = labels()
    rows = torch.nonzero(z[:, 1])[:4, 0]
    z[:, 3] = 0
    z[rows, 3] = 20.0
    assert fates(z, min_fires=4)[1] == "absorbed"
    assert fates(z, min_fires=5)[1] == "held"


def test_a_condition_below_min_residual_is_held():
    z = labels()
    z[:, 3] *= z[:, 1] > 0
    residual = predict_absorption(z, torch.eye(5))[1].residual
    assert fates(z, min_residual=0.99 * residual)[1] == "absorbed"
    assert set(fates(z, min_residual=1.01 * residual)) == {"held"}


def test_concepts_that_never_fire_change_nothing():
    z = labels()
    z[:, 3] *= z[:, 1] > 0
    z[:, 4] = 0
    found = predict_absorption(z, torch.eye(5))
    assert [one.fate for one in found[:4]] == ["held", "absorbed", "held", "child"]
    assert found[4].covered == 0
    assert found[4].children == found[4].parents == found[4].merged_with == ()
    assert np.isfinite(found[4].residual)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.ones(4, 3), r"labels must have shape \(n, 5\), got \(4, 3\)"),
        (torch.ones(5), r"labels must have shape \(n, 5\)"),
        (-torch.ones(4, 5), "nowhere negative"),
        (torch.full((4, 5), torch.nan), "finite"),
        (torch.full((4, 5), torch.inf), "finite"),
    ],
)
def test_what_are_no_labels_is_refused(z, message):
    with pytest.raises(ValueError, match=message):
        predict_absorption(z, torch.eye(5))


def test_directions_that_are_none_are_refused():
    with pytest.raises(ValueError, match="W_dec must be a finite"):
        predict_absorption(torch.ones(4, 5), torch.full((5, 5), torch.nan))
