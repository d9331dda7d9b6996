"""What L1 SAEs of toys do beside what theory says; measures take any SAEs, `demonstrate` trains."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssae.sae.base import SparseAutoencoder
from ssae.theory.absorption import Prediction, predict_absorption
from ssae.theory.antipodal import MAX_COSINE, AntipodalPair, pairs_of
from ssae.theory.coded import Coded, coded_by
from ssae.theory.fit import train_l1
from ssae.theory.gap import with_optimal_codes
from ssae.theory.limits import (
    Limit,
    Merging,
    excess_over_limit,
    measure_limit,
    measure_merging,
    nearest,
)
from ssae.theory.splits import Family, splits_of
from ssae.theory.toy import Hierarchical, Independent, Points, SignedDense
from ssae.theory.violations import stationarity

LAM = 0.1
# With 3e-3, which real activations want, toy SAEs need thrice the steps and stop in worse optima.
NUM_STEPS, LR, NUM_TOKENS, UNSEEN = 1000, 2e-2, 20_000, 10**6
SPREADS, CHILD_RATES, NUM_SAES = (0.5, 0.05), (0.5, 1.0), 3
LAMS = (0.1, 0.3, 0.6, 0.9)
WIDTHS = (4, 12, 24, 48)
NUM_POINTS, NUM_DIRECTIONS = 32, (4, 8, 16, 32, 64)
TOTAL = 2 * (2 * NUM_SAES + len(WIDTHS)) + len(LAMS) + 1 + len(NUM_DIRECTIONS)
"""SAEs that `demonstrate` trains."""


class Absorbed(NamedTuple):
    """What one SAE made of a parent (concept 0) and the other concepts."""

    cosines: list[float]
    """Of the latent nearest to each concept with the parent's direction."""
    has_own: bool
    """Whether that of the parent is nearer to it than to the sum of it and a child."""
    silent: list[float]
    """Share of each child's tokens on which the parent's own latent is silent; NaN without one."""


class Absorption(NamedTuple):
    """A parent and its children in SAEs of several seeds."""

    child_rate: float
    spread: float
    predictions: list[Prediction]
    expected: list[float]
    """The cosines, where d_child + d_parent is held as one latent and all others as they are."""
    found: list[Absorbed]


class Signed(NamedTuple):
    """A direction u along which x varies with both signs."""

    lam: float
    expected: float
    """1 - Phi(lam / scale), the share of tokens on which either latent fires."""
    densities: list[float]
    """Of the latents with |d_j . u| > 0.9."""
    pairs: list[AntipodalPair]
    """Among these."""
    num_others: int
    """Antipodal pairs of other directions."""


class Widened(NamedTuple):
    """An SAE among others of growing width."""

    families: list[int | None]
    """Of each latent: the parent of the concept that it is nearest to, None if it never fires."""
    per_concept: list[int]
    """Latents that are nearest to each concept."""
    excess: float
    """Objective over the wide limit, less 1."""
    splits: list[Family]
    """Of the latents of the SAE before it."""


class Demonstration(NamedTuple):
    """All of it, of one seed."""

    seed: int
    num_steps: int
    """That each SAE trained."""
    lam: float
    absorptions: list[Absorption]
    signed: list[Signed]
    num_control: int
    """Antipodal pairs in an SAE of activations without signed directions."""
    widths: dict[float, list[Widened]]
    """By spread."""
    limits: list[Limit]
    merging: Merging
    violations: dict[str, list[float]]
    """Quantiles 10, 50 and 90 %, by dictionary."""


def demonstrate(
    seed: int, done: Callable[[], object], *, num_steps: int = NUM_STEPS
) -> Demonstration:
    """Train TOTAL SAEs and measure them; `done` is called after each."""

    def fit(toy: Independent, d_sae: int, lam: float = LAM, number: int = 0) -> SparseAutoencoder:
        sae = train_l1(toy, d_sae, lam, num_steps=num_steps, lr=LR, seed=100 * seed + number)
        done()
        return sae

    absorptions, widths, small = [], {}, {"num_concepts": 8, "d_in": 8, "seed": seed}
    for child_rate in CHILD_RATES:
        for spread in SPREADS:
            toy = Hierarchical(num_parents=1, child_rate=child_rate, spread=spread, **small)
            saes = [fit(toy, 12, number=number) for number in range(NUM_SAES)]
            absorptions.append(measure_absorption(toy, saes))
    toy = SignedDense(**small)
    # A latent for each concept and two for the signed one: spare ones would share its density.
    signed = [measure_signed(toy, fit(toy, 9, lam), lam) for lam in LAMS]
    control = Independent(**small)
    plain = fit(control, 12)
    x = control.draw(NUM_TOKENS, UNSEEN + seed).x
    for spread in SPREADS:
        tree = Hierarchical(num_concepts=12, d_in=16, num_parents=4, spread=spread, seed=seed)
        widths[spread] = measure_widths(tree, [fit(tree, d_sae) for d_sae in WIDTHS], LAM)
    points = Points(num_concepts=NUM_POINTS, d_in=16, seed=seed)
    return Demonstration(
        seed=seed,
        num_steps=num_steps,
        lam=LAM,
        absorptions=absorptions,
        signed=signed,
        num_control=len(pairs_of(coded_by(plain, x))),
        widths=widths,
        limits=[measure_limit(points, fit(points, num), LAM) for num in NUM_DIRECTIONS],
        merging=measure_merging(LAM, seed),
        violations=measure_violations(x, plain, LAM),
    )


def measure_absorption(toy: Hierarchical, saes: Sequence[SparseAutoencoder]) -> Absorption:
    """Return what theory and SAEs make of a toy with one parent."""
    x, z = toy.draw(NUM_TOKENS, UNSEEN + toy.seed)
    D = toy.directions.double()
    predictions = predict_absorption(z, D)
    expected = []
    for p in predictions:
        others = p.children[:1] if p.fate == "split" else p.parents
        expected.append(float(normalize(D[[p.concept, *others]].sum(0), dim=0) @ D[0]))
    return Absorption(
        toy.child_rate, toy.spread, predictions, expected,
        [_found(coded_by(sae, x), z, D, list(toy.parents)) for sae in saes],
    )  # fmt: skip


def _found(batch: Coded, z: Tensor, D: Tensor, children: list[int]) -> Absorbed:
    near = nearest(D, batch).argmax(1)
    parent = batch.directions[near[0]]
    has_own = bool((parent @ D[0] > normalize(D[0] + D[children]) @ parent).all())
    silent = batch.z.to_dense()[:, near[0]] == 0
    shares = [float(silent[z[:, c] > 0].double().mean()) if has_own else math.nan for c in children]
    return Absorbed((batch.directions[near] @ D[0]).tolist(), has_own, shares)


def measure_signed(toy: SignedDense, sae: SparseAutoencoder, lam: float) -> Signed:
    """Return what an SAE makes of concept 0, the signed one."""
    batch = coded_by(sae, toy.draw(NUM_TOKENS, UNSEEN + toy.seed).x)
    fires = batch.z.fire_counts()
    along = (batch.directions @ toy.directions[0].double()).abs() > -MAX_COSINE
    pairs = pairs_of(batch)
    own = [pair for pair in pairs if along[pair.first] and along[pair.second]]
    densities = (fires[along & (fires > 0)] / NUM_TOKENS).tolist()
    expected = math.erfc(lam / toy.scale / 2**0.5) / 2
    return Signed(lam, expected, densities, own, len(pairs) - len(own))


def measure_widths(
    toy: Hierarchical, saes: Sequence[SparseAutoencoder], lam: float
) -> list[Widened]:
    """Return how concepts and latents split from each SAE to the next."""
    x = toy.draw(NUM_TOKENS, UNSEEN + toy.seed).x
    rows, last = [], None
    for sae in saes:
        batch = coded_by(sae, x)
        alive = (batch.z.fire_counts() > 0).tolist()
        near = nearest(toy.directions, batch).argmax(0).tolist()
        held = [concept for concept, fires in zip(near, alive, strict=True) if fires]
        rows.append(
            Widened(
                [toy.parents.get(c, c) if a else None for c, a in zip(near, alive, strict=True)],
                [held.count(concept) for concept in range(toy.num_concepts)],
                excess_over_limit(batch, lam),
                splits_of(last, batch) if last is not None else [],
            )
        )
        last = batch
    return rows


def measure_violations(x: Tensor, sae: SparseAutoencoder, lam: float) -> dict[str, list[float]]:
    """Return quantiles of the violations of an SAE and of random directions with optimal codes."""
    own = coded_by(sae, x[:2000])
    chance = torch.randn(own.directions.shape, generator=torch.Generator().manual_seed(0))
    codes, found = with_optimal_codes(own.x, chance, lam), {}
    for name, batch in (("trained SAE", own), ("random directions", codes)):
        violation = stationarity(batch.x, batch.z, batch.directions, lam).violation
        found[name] = violation.nanquantile(violation.new_tensor([0.1, 0.5, 0.9])).tolist()
    return found
