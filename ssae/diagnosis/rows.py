"""Rows of metrics.json of a diagnosis, with 95 % intervals over resampled latents.

A number of latents is their median; latents are what is resampled, so an interval says how far it
would move with other latents of the same SAE on the same text, not with another seed of training,
nor with other documents, which latents share. A share of few latents has Wilson's interval.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import binomtest, rankdata

from ssae.diagnosis.measure import Diagnosis, diagnose_split
from ssae.metric.rows import row
from ssae.metric.tail import tail_types
from ssae.theory.antipodal import antipodal_pairs
from ssae.theory.cone import cone_condition
from ssae.theory.gap import OptimalityGap, optimality_gap
from ssae.theory.pairs import pair_identity
from ssae.theory.penalty import penalty_of
from ssae.theory.residual import residual_structure
from ssae.theory.violations import stationarity

QUARTERS = ("rarest quarter", "second quarter", "third quarter", "most common quarter")
"""Of the latents, by how common in the pool the tokens are on which they fire."""
TAIL, OTHERS = "latents of tail types", "all other latents"
"""Those that represent a rare token type of the split, and the rest."""
EXCESS = "tangent_excess"
"""What is compared over SAEs, with a penalty or without: one unit for all."""
CONE_VIOLATED = 0.01
"""Relative residual of the cone condition that counts as a violation."""

Rows = list[dict[str, Any]]


def counted(own: Diagnosis, min_fires: int) -> np.ndarray:
    """Return which latents (d_sae,) fire often enough for their violation to count."""
    found = own.stationarity
    known = found.tangent_excess.isfinite() & (found.fires >= min_fires)
    return known.cpu().numpy()


def diagnosis_rows(
    diagnoses: Mapping[str, Diagnosis],
    relatives: Mapping[str, list[str]],
    split: str,
    min_fires: int,
    draws: "Draws",
) -> Rows:
    """Return the rows of all SAEs on one split.

    Args:
        diagnoses: by SAE.
        relatives: of each SAE, those with the same latents that it is compared with.
        split: the test split.
        min_fires: tokens on which a latent must fire for its violation to count.
        draws: resamples of latents.
    """
    rows: Rows = []
    for name, own in diagnoses.items():
        for metric, band, value, formula in _numbers(own, min_fires, draws):
            values = value if isinstance(value, tuple) else (value, None, None)
            rows.append(row(metric, values, name, split, band, own.num_tokens, formula))
        for other in relatives[name]:
            change = _change(own, diagnoses[other], min_fires, draws)
            if change is not None:
                made = row(
                    f"{EXCESS}_change", change, name, split, "all", own.num_tokens, stationarity
                )
                rows.append(made | {"reference": other})
    return rows


def _numbers(own: Diagnosis, min_fires: int, draws: "Draws") -> list[tuple[str, str, Any, Any]]:
    """Return (metric, band, value or interval, formula) of one SAE."""
    known = counted(own, min_fires)
    dense = [pair for pair in own.pairs if pair.is_dense]
    residual = own.residual
    found: list[tuple[str, str, Any, Any]] = [
        ("fvu", "all", own.fvu, diagnose_split),
        ("l0", "all", own.l0, diagnose_split),
        ("lam", "all", own.penalty.lam, penalty_of),
        ("latents_counted", "all", int(known.sum()), counted),
        ("shrinkage_share", "all", residual.shrinkage_share, residual_structure),
        ("linear_share", "all", residual.linear_share, residual_structure),
        ("effective_dimensions", "all", residual.effective_dimensions, residual_structure),
        ("antipodal_pairs", "all", len(own.pairs), antipodal_pairs),
        ("dense_antipodal_pairs", "all", len(dense), antipodal_pairs),
        ("antipodal_share", "all", sum(pair.share for pair in dense), antipodal_pairs),
    ]
    if own.cones:
        violated = [cone.residual > CONE_VIOLATED for cone in own.cones]
        found.append(("cone_violated", "all", share_of(violated), cone_condition))
        found.append(("cone_examined", "all", len(violated), cone_condition))
    if own.identity is not None:
        error = (own.identity.expected - own.identity.cosine).abs()
        error = error[error.isfinite()].cpu().numpy()
        found.append(("pair_identity_error", "all", draws.of(np.median, error), pair_identity))
    for metric in ("violation", "excess", "tangent", "tangent_excess") if known.any() else ():
        median = draws.of(np.median, _of(own, metric)[known])
        found.append((f"{metric}_median", "all", median, stationarity))
    if own.own_risk is not None and known.any():
        weighted = getattr(own.own_risk, EXCESS).cpu().numpy()
        median = draws.of(np.nanmedian, weighted[known])
        found.append((f"{EXCESS}_own_risk_median", "all", median, stationarity))
    return found + _by_rarity(own, known, draws)


def _by_rarity(
    own: Diagnosis, known: np.ndarray, draws: "Draws"
) -> list[tuple[str, str, Any, Any]]:
    """Return likewise what violations have to do with rare tokens."""
    excess, rarity, finds = (v[known] for v in (_of(own, EXCESS), own.rarity, own.finds_tail))
    found: list[tuple[str, str, Any, Any]] = [("tail_latents", "all", int(finds.sum()), tail_types)]
    if len(excess) < 2 * len(QUARTERS):
        return found
    correlation = draws.of(rank_correlation, -rarity, excess)
    found.append((f"{EXCESS}_rarity_correlation", "all", correlation, rank_correlation))
    place = np.searchsorted(np.quantile(rarity, [0.25, 0.5, 0.75]), rarity)
    bands = {quarter: place == number for number, quarter in enumerate(QUARTERS)}
    for band, own_band in (bands | {TAIL: finds, OTHERS: ~finds}).items():
        if own_band.any():
            median = draws.of(np.median, excess[own_band])
            found.append((f"{EXCESS}_median", band, median, stationarity))
    if finds.any() and not finds.all():
        of_tail = draws.of(_difference, finds, excess)
        found.append((f"{EXCESS}_tail_difference", "all", of_tail, stationarity))
    return found


def _difference(finds: np.ndarray, excess: np.ndarray) -> float:
    """Return by how much the median of latents of tail types exceeds that of the others."""
    if finds.all() or not finds.any():
        return np.nan  # a resample without one of them
    return float(np.median(excess[finds]) - np.median(excess[~finds]))


def share_of(found: list[bool]) -> tuple[float, float, float]:
    """Return the share of what is true, with Wilson's 95 % interval."""
    interval = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    return sum(found) / len(found), float(interval.low), float(interval.high)


def _change(
    own: Diagnosis, before: Diagnosis, min_fires: int, draws: "Draws"
) -> tuple[float, float, float] | None:
    """Return the median change of a latent's excess tangent, over latents known in both."""
    both = counted(own, min_fires) & counted(before, min_fires)
    if not both.any():
        return None
    return draws.of(np.median, (_of(own, EXCESS) - _of(before, EXCESS))[both])


def _of(own: Diagnosis, name: str) -> np.ndarray:
    return getattr(own.stationarity, name).cpu().numpy()


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's correlation of a (n,) and b (n,); 0 where one is constant."""
    ranks = rankdata(a), rankdata(b)
    spread = float(np.prod([rank.std() for rank in ranks]))
    return float(np.cov(*ranks, bias=True)[0, 1]) / spread if spread > 0 else 0.0


def gap_rows(gaps: Mapping[str, OptimalityGap], split: str, num_tokens: int) -> Rows:
    """Return the scale of objectives of every SAE, on the tokens that were held out."""
    rows: Rows = []
    for name, gap in gaps.items():
        scale = gap.held_out or gap.scale
        for metric, value in scale._asdict().items():
            rows.append(
                row(f"objective_{metric}", (value, None, None), name, split, "all", num_tokens,
                    optimality_gap)
            )  # fmt: skip
    return rows


class Draws:
    """Resamples of latents, the same for every number of as many latents."""

    def __init__(self, num_bootstraps: int, seed: int) -> None:
        self.num_bootstraps, self.seed = num_bootstraps, seed

    def of(self, statistic: Any, *values: np.ndarray) -> tuple[float, float, float]:
        """Return a statistic of values (n,) with its 95 % interval."""
        generator, n = np.random.default_rng(self.seed), len(values[0])
        drawn = []
        for _ in range(self.num_bootstraps):
            chosen = generator.integers(n, size=n)
            drawn.append(statistic(*(v[chosen] for v in values)))
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return float(statistic(*values)), float(low), float(high)
