"""What the page of `python -m ssae.theory` says holds of trained SAEs, and not of others."""

import functools
import math

import pytest
import torch

from ssae.sae.relu import ReLUSAE
from ssae.theory.demonstration import (
    LAM,
    LR,
    NUM_TOKENS,
    measure_absorption,
    measure_signed,
    measure_violations,
    measure_widths,
)
from ssae.theory.fit import train_l1
from ssae.theory.limits import measure_limit, measure_merging
from ssae.theory.toy import Hierarchical, Independent, Points, SignedDense

SEEDS = (0, 1)
fit = functools.cache(functools.partial(train_l1, num_steps=1000, lr=LR))


def untrained(d_in: int, d_sae: int, seed: int = 0) -> ReLUSAE:
    torch.manual_seed(seed + 1000)  # with the seed of the toy it would have its directions
    return ReLUSAE(d_in, d_sae, l1_coefficient=LAM, auxk_coefficient=0.0, k_aux=1)


def family(seed: int, **changes) -> Hierarchical:
    return Hierarchical(num_concepts=6, d_in=6, num_parents=1, seed=seed, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_children_turn_towards_a_constant_parent_and_silence_it(seed: int):
    toy = family(seed, spread=0.05)
    sae = fit(toy, 9, LAM, seed=100 * seed)
    result = measure_absorption(toy, [sae])
    assert [p.fate for p in result.predictions] == ["absorbed", *["child"] * 2, *["held"] * 3]
    assert result.expected == pytest.approx([1, 2**-0.5, 2**-0.5, 0, 0, 0], abs=1e-6)
    [found] = result.found
    # Half-way between the predictions, 0 of held concepts and 1 / sqrt 2 of children.
    bound = 2**-0.5 / 2
    assert min(found.cosines[1:3]) > bound
    assert max(map(abs, found.cosines[3:])) < bound
    assert found.has_own
    assert min(found.silent) > 0.5
    [chance] = measure_absorption(toy, [untrained(6, 9, seed)]).found
    assert not (min(chance.cosines[1:3]) > bound and max(map(abs, chance.cosines[3:])) < bound)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_parent_that_is_split_has_no_latent_of_its_own(seed: int):
    toy = family(seed, spread=0.05, child_rate=1.0)
    result = measure_absorption(toy, [fit(toy, 9, LAM, seed=100 * seed)])
    assert result.predictions[0].fate == "split"
    assert result.expected[0] == pytest.approx(2**-0.5)
    [found] = result.found
    assert not found.has_own
    assert all(map(math.isnan, found.silent))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_independent_concepts_do_not_turn(seed: int):
    toy = family(seed, spread=0.05)
    plain = Independent(num_concepts=6, d_in=6, seed=seed, spread=0.05)
    [found] = measure_absorption(toy, [fit(plain, 9, LAM, seed=100 * seed)]).found
    assert max(map(abs, found.cosines[1:])) < 2**-0.5 / 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_signed_direction_becomes_a_pair_of_the_predicted_density(seed: int):
    toy = SignedDense(num_concepts=4, d_in=4, seed=seed)
    sae = fit(toy, 5, LAM, seed=100 * seed)
    found = measure_signed(toy, sae, LAM)
    [pair] = found.pairs
    assert found.num_others == 0
    assert pair.joint < 0.01
    assert pair.cosine < -0.9
    assert pair.is_dense
    assert found.expected == pytest.approx(0.4602, abs=1e-4)
    # What b_dec holds along u shifts both densities, by at most that times the normal density.
    shift = float((sae.b_dec @ toy.directions[0]).abs()) / math.sqrt(2 * math.pi)
    room = shift + 3 * (0.25 / NUM_TOKENS) ** 0.5
    assert room < 0.03
    assert found.densities == pytest.approx([found.expected] * 2, abs=room)
    # The density is not that of another lam.
    assert abs(measure_signed(toy, sae, 0.3).expected - found.expected) > 2 * room


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_activations_without_a_signed_direction_have_no_pair(seed: int):
    toy = SignedDense(num_concepts=4, d_in=4, seed=seed)
    plain = Independent(num_concepts=4, d_in=4, seed=seed)
    found = measure_signed(toy, fit(plain, 5, LAM, seed=100 * seed), LAM)
    assert found.pairs == []
    assert found.num_others == 0
    assert measure_signed(toy, untrained(4, 5, seed), LAM).pairs == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_wider_saes_split_concepts_and_pay_less(seed: int):
    toy = Hierarchical(num_concepts=6, d_in=8, num_parents=2, seed=seed)
    saes = [fit(toy, d_sae, LAM, seed=100 * seed) for d_sae in (2, 6, 18)]
    narrow, own, wide = measure_widths(toy, saes, LAM)
    assert narrow.per_concept == [1, 1, 0, 0, 0, 0]
    assert sum(own.per_concept) == 6
    assert sum(wide.per_concept) > sum(own.per_concept)
    assert narrow.excess > own.excess >= 0
    assert wide.excess >= 0
    assert narrow.splits == []
    assert len(own.splits) == 2
    for split in own.splits:
        assert len(split.children) == 3  # the parent, and it with either child
        families = {own.families[child.latent] for child in split.children}
        assert families == {narrow.families[split.parent]}
    chance = measure_widths(toy, [untrained(8, d_sae, seed) for d_sae in (2, 6)], LAM)
    assert [len(split.children) for split in chance[1].splits] != [3, 3]
    assert chance[1].excess > own.excess


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_more_latents_than_points_approach_the_wide_limit_from_above(seed: int):
    toy = Points(num_concepts=12, d_in=8, seed=seed)
    few, many = (measure_limit(toy, fit(toy, d, LAM, seed=100 * seed), LAM) for d in (4, 24))
    for row in (few, many):
        assert row.sae >= row.optimal_codes - 1e-6 >= -2e-6
        assert row.dictionary >= -1e-6
    assert few.optimal_codes > 0.1 > many.optimal_codes
    assert few.dictionary > 0.1 > many.dictionary
    assert many.dictionary == pytest.approx(0, abs=1e-3)  # theory's; the encoder's is only near
    assert many.code == pytest.approx(1, abs=0.05)
    chance = measure_limit(toy, untrained(8, 24, seed), LAM)
    assert many.num_own > 6 > chance.num_own  # of 12
    assert chance.optimal_codes > 0.1
    assert abs(chance.code - 1) > 0.05


@pytest.mark.slow
def test_a_trained_sae_is_nearer_to_stationary_than_random_directions():
    toy = Independent(num_concepts=6, d_in=6)
    x = toy.draw(2000, 5).x
    trained = measure_violations(x, fit(toy, 6, LAM), LAM)
    before = measure_violations(x, untrained(6, 6), LAM)
    assert trained["trained SAE"][1] < 0.5 < trained["random directions"][0]
    assert before["trained SAE"][1] > 0.5
    assert trained["trained SAE"] == sorted(trained["trained SAE"])


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_of_a_family_share_directions_before_families_do(seed: int):
    found = measure_merging(LAM, seed)
    assert found.gap <= 1e-4
    assert found.num_used[0] == len(found.families) == 30
    assert found.num_used[-1] <= 1
    early = [m for m in found.merges if m.parent >= 0 and found.num_used[m.step] >= 6]
    assert len(early) >= 15
    own = sum(found.families[m.child] == found.families[m.parent] for m in early)
    assert own >= 0.85 * len(early)  # 4 of 29 by chance
