"""Rows of metrics.json: {name, value, low, high, sae, split, band, num_tokens, formula}.

Two more keys where they apply: reference (a difference is to this SAE) and retriever. low and high
are the 95 % interval over resampled documents; null where a number has none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ssae.metric.formulas import FORMULAS, fvu, l0, perplexity_spliced
from ssae.metric.frequency import BANDS
from ssae.metric.splice import SplitSums
from ssae.metric.sums import intervals, resample

COMPARED = (fvu, perplexity_spliced)
"""Formulas whose difference to every other SAE gets an interval of its own."""


def ratio_rows(
    measured: Mapping[str, SplitSums], split: str, num_bootstraps: int, seed: int
) -> list[dict[str, Any]]:
    """Return every formula for every SAE and band, and the paired differences over all bands."""
    rows: list[dict[str, Any]] = []
    draws: dict[tuple[str, Any], np.ndarray] = {}
    for sae, result in measured.items():
        sums = resample(result.sums, num_bootstraps, seed)
        for formula in FORMULAS:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                drawn = formula(sums)
            draws[sae, formula] = drawn[:, 0]
            counted = sums["tokens" if formula in (fvu, l0) else "predictions"][0]
            for band, count, *numbers in zip(
                ("all", *BANDS), counted, *intervals(drawn), strict=True
            ):
                if count > 0:  # nothing was measured: no row is more honest than a zero
                    rows.append(row(formula.__name__, numbers, sae, split, band, count, formula))
    for formula in COMPARED:
        for sae in measured:
            for reference in measured:
                if reference != sae:
                    numbers = intervals(draws[sae, formula] - draws[reference, formula])
                    count = measured[sae].num_tokens
                    name = f"{formula.__name__}_difference"
                    rows.append(row(name, numbers, sae, split, "all", count, formula)
                                | {"reference": reference})  # fmt: skip
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
