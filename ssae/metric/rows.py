"""Rows of metrics.json: {name, value, low, high, sae, split, band, num_tokens, formula}.

Two more keys where they apply: reference (a difference or ratio is to this SAE) and retriever. low
and high are the 95 % interval over resampled documents; null where a number has none. split
is a test split, or both_tests where a number is of both together.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ssae.metric.change import forgetting
from ssae.metric.concept import RECALLED_AUROC, ConceptScores, concept_scores
from ssae.metric.formulas import (
    FORMULAS,
    delta_ce_current,
    fvu,
    fvu_predicted,
    l0,
    l0_predicted,
    perplexity_spliced,
)
from ssae.metric.frequency import BANDS
from ssae.metric.measures import Measured
from ssae.metric.sums import intervals, resample
from ssae.metric.tail import tail_error, tail_recall

COMPARED = (fvu, perplexity_spliced)
"""Formulas whose difference to every other SAE gets an interval of its own."""
COUNTED = {
    fvu: "tokens",
    l0: "tokens",
    fvu_predicted: "tokens_predicted",
    l0_predicted: "tokens_predicted",
    delta_ce_current: "predictions_current",
}
"""What the others divide by is predictions."""

PAIRED = {"difference": np.subtract, "ratio": np.divide}
"""How a number of one SAE is set against that of another, in every resample."""

Draws = Mapping[str, np.ndarray]
"""{sae: (1 + num_bootstraps,)} of one number: of the whole set, then of its resamples."""


def ratio_rows(
    measured: Mapping[str, Measured], split: str, num_bootstraps: int, seed: int
) -> list[dict[str, Any]]:
    """Return every formula for every SAE and band, and the paired differences over all bands."""
    rows: list[dict[str, Any]] = []
    draws: dict[Any, dict[str, np.ndarray]] = {formula: {} for formula in FORMULAS}
    for sae, result in measured.items():
        sums = resample(result.sums, num_bootstraps, seed)
        for formula in FORMULAS:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                drawn = formula(sums)
            draws[formula][sae] = drawn[:, 0]
            counted = sums[COUNTED.get(formula, "predictions")][0]
            for band, count, *numbers in zip(
                ("all", *BANDS), counted, *intervals(drawn), strict=True
            ):
                if count > 0:  # nothing was measured: no row is more honest than a zero
                    rows.append(row(formula.__name__, numbers, sae, split, band, count, formula))
    for formula in COMPARED:
        num_tokens = {sae: result.num_tokens for sae, result in measured.items()}
        rows += paired_rows(formula, "difference", draws[formula], split, num_tokens)
    return rows


def tail_rows(measured: Mapping[str, Measured], split: str) -> list[dict[str, Any]]:
    """Return tail_recall and tail_error of every SAE, and their paired differences and ratios.

    num_tokens is that of the tail types; a split without any has no row.
    """
    rows: list[dict[str, Any]] = []
    num_tokens = {sae: int(result.tail.counts.sum()) for sae, result in measured.items()}
    if not all(num_tokens.values()):
        return rows
    for formula in (tail_recall, tail_error):
        name = formula.__name__
        draws: Draws = {sae: getattr(result, name) for sae, result in measured.items()}
        for sae, own in draws.items():
            count = num_tokens[sae]
            rows.append(row(name, intervals(own), sae, split, "all", count, formula))
        for kind in PAIRED:
            rows += paired_rows(formula, kind, draws, split, num_tokens)
    return rows


def forgetting_rows(
    measured: Mapping[str, Measured], split: str, generalist: str, num_bootstraps: int, seed: int
) -> list[dict[str, Any]]:
    """Return by how much every other SAE's fvu exceeds that of the generalist, relatively."""
    draws: dict[str, np.ndarray] = {}
    for sae, result in measured.items():
        parts = {name: result.sums[name] for name in ("residual_sq", "deviation_sq")}
        drawn = resample(parts, num_bootstraps, seed)
        draws[sae] = fvu({name: values[:, 0] for name, values in drawn.items()})
    rows = []
    for sae, own in draws.items():
        if sae != generalist:
            numbers = intervals(forgetting(own, draws[generalist]))
            found = row("forgetting", numbers, sae, split, "all", measured[sae].num_tokens,
                        forgetting)  # fmt: skip
            rows.append(found | {"reference": generalist})
    return rows


def concept_metrics(scores: ConceptScores, sae: str, num_tokens: int) -> list[dict[str, Any]]:
    """Return the share of concepts that are recalled, and means, over both test splits together.

    None where fewer than two concepts have documents enough.
    """
    auroc, f1 = scores.auroc[scores.measured], scores.f1[scores.measured]
    if len(auroc) < 2:
        return []
    values = {
        "concept_recall": (auroc >= RECALLED_AUROC).mean(),
        "concept_auroc": auroc.mean(),
        "concept_f1": f1.mean(),
    }
    return [
        row(name, (value, None, None), sae, "both_tests", "all", num_tokens, concept_scores)
        for name, value in values.items()
    ]


def paired_rows(
    formula: Callable[..., Any], kind: str, draws: Draws, split: str, num_tokens: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return a number of every SAE against that of every other one, over the same resamples.

    Args:
        formula: what the number is.
        kind: difference or ratio.
        draws: of every SAE.
        split: on which it was measured.
        num_tokens: by SAE.
    """
    rows = []
    for sae, own in draws.items():
        for reference, other in draws.items():
            if reference != sae:
                with np.errstate(divide="ignore", invalid="ignore"):
                    numbers = intervals(PAIRED[kind](own, other))
                name = f"{formula.__name__}_{kind}"
                found = row(name, numbers, sae, split, "all", num_tokens[sae], formula)
                rows.append(found | {"reference": reference})
    return rows


def count_rows(
    counts: Mapping[str, int], formula: Callable[..., Any], num_tokens: int, sae: str, split: str
) -> list[dict[str, Any]]:
    """Return counts, which have no interval."""
    return [
        row(name, (value, None, None), sae, split, "all", num_tokens, formula)
        for name, value in counts.items()
    ]


def row(
    name: str,
    numbers: Any,
    sae: str | None,
    split: str,
    band: str,
    num_tokens: float,
    formula: Callable[..., Any],
) -> dict[str, Any]:
    """Return one row; numbers that are not finite become null."""
    value, low, high = (float(n) if n is not None and np.isfinite(n) else None for n in numbers)
    return {
        "name": name, "value": value, "low": low, "high": high, "sae": sae, "split": split,
        "band": band, "num_tokens": int(num_tokens),
        "formula": f"{formula.__module__}.{formula.__name__}",
    }  # fmt: skip
