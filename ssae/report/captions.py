"""What is seen in a figure, in one sentence: computed, so that it cannot say more than the data.

Each function takes what the figure of the same name takes and returns "" where there is no data.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from ssae.report.latent_figures import thinned
from ssae.report.marks import Row, drawn_rows, share_above, short
from ssae.report.table import Metric, find, finite, spell
from ssae.report.tail_figures import filled_bins

MOST_NAMED = 4
"""More SAEs than this are told by their extremes."""


def by_sae(metrics: Sequence[Metric], *, name: str, split: str, styles: Iterable[str]) -> str:
    """Say which SAE has which value."""
    found = {sae: finite(find(metrics, name, sae=sae, split=split)) for sae in styles}
    values = {sae: value for sae, value in found.items() if value is not None}
    return f"{name} on {split}: {each(values, spell)}." if values else ""


def represented_by_frequency(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say which share of the rarer half of the frequency bins is represented."""
    rows = [row for row in drawn_rows(rows, split, styles) if filled_bins(row)]
    if not rows:
        return ""
    rare = {row["sae"]: filled_bins(row)[: math.ceil(len(filled_bins(row)) / 2)] for row in rows}
    shares = {
        sae: sum(b["num_represented"] for b in bins) / sum(b["num_types"] for b in bins)
        for sae, bins in rare.items()
    }
    last = rare[rows[0]["sae"]]
    types, limit = sum(b["num_types"] for b in last), finite(last[-1], "high")
    below = f" that occur fewer than {short(limit)} times per million tokens" if limit else ""
    return f"Represented of the {types:,} types{below}: {each(shares, percent)}."


def cumulative_represented(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say which share of the represented types lies beyond 80 % of the tokens."""
    shares = {}
    for row in drawn_rows(rows, split, styles):
        if row.get("cumulative"):
            tokens, represented = np.array(row["cumulative"], float).T
            if tokens.max() < 0.8:  # types of too few tokens are not in it
                continue
            shares[row["sae"]] = float(1 - np.interp(0.8, tokens, represented))
    if not shares:
        return ""
    return (
        "Of the types that an SAE represents, those outside the most frequent 80% of the tokens "
        f"make up {each(shares, percent)}."
    )


def error_by_rank(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say what the mean error of the tokens of the rarest third of the rank bins is."""
    rows = [r for r in drawn_rows(rows, split, styles) if finite(r, "mean") is not None]
    first = _first_rare(row["rank_low"] for row in rows)
    means = {}
    for sae in dict.fromkeys(row["sae"] for row in rows):
        own = [row for row in rows if row["sae"] == sae and row["rank_low"] >= first]
        weights = [row.get("num_tokens") or 1 for row in own]
        if own:
            means[sae] = float(np.average([row["mean"] for row in own], weights=weights))
    text = f"Mean error of tokens whose type has rank {first:,} or more"
    return f"{text}: {each(means, spell)}." if means else ""


def firing_rates(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say which share of the latents that fire does so on at least 1 % of the tokens."""
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["counts"])]
    shares = {row["sae"]: share_above(row, -2) for row in rows}
    text = "Of the latents that fire, these fire on more than 1% of the tokens"
    return f"{text}: {each(shares, percent)}." if shares else ""


def activation_counts(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say on how many tokens the latent in the middle of the ranks fires."""
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["counts"])]
    if not rows:
        return ""
    rank = max(1, min(row["ranks"][-1] for row in rows) // 2)
    counts = {row["sae"]: float(np.interp(rank, row["ranks"], row["counts"])) for row in rows}
    return (
        f"The latent of rank {rank:,} fires, of {rows[0]['num_tokens']:,} tokens, on "
        f"{each(counts, lambda value: f'{value:,.0f}')}."
    )


def effective_types(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say what the median effective number of types is."""
    found = {r["sae"]: finite(r, "median_effective_types") for r in drawn_rows(rows, split, styles)}
    medians = {sae: value for sae, value in found.items() if value is not None}
    return (
        f"The median latent spreads over as many token types: {each(medians, spell)}."
        if medians
        else ""
    )


def entropy_against_maximum(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say how strongly the order of the entropies is that of the largest activations."""
    found = {}
    for row in drawn_rows(rows, split, styles):
        points = np.array(thinned(row["points"]))
        if len(points) > 2 and np.ptp(points, axis=0).min() > 0:
            found[row["sae"]] = float(np.corrcoef(stats.rankdata(points, axis=0).T)[0, 1])
    text = "Rank correlation of the two over the latents drawn"
    return f"{text}: {each(found, lambda value: f'{value:.2f}')}." if found else ""


def largest_by_rank(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say how strongly the types of the rarest third of the rank bins excite a latent."""
    rows = [row for row in drawn_rows(rows, split, styles) if row["max_per_type"]["mean"]]
    first = _first_rare(low for row in rows for low in row["max_per_type"]["rank_low"])
    means = {}
    for row in rows:
        bins = row["max_per_type"]
        own = [
            mean
            for low, mean in zip(bins["rank_low"], bins["mean"], strict=True)
            if low >= first and mean is not None
        ]
        if own:
            means[row["sae"]] = float(np.mean(own))
    text = f"Mean largest activation over the bins from rank {first:,} on"
    return f"{text}: {each(means, spell)}." if means else ""


def log_ratios(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say which share of the latents fires more than twice, or less than half, as often."""
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["counts"])]
    whose = " and ".join(dict.fromkeys(f"the {row['reference']}'s" for row in rows))
    more = {row["sae"]: share_above(row, math.log(2)) for row in rows}
    less = {row["sae"]: 1 - share_above(row, -math.log(2)) for row in rows}
    return (
        f"Latents with more than twice {whose} share of the firings: {each(more, percent)}; with "
        f"less than half: {each(less, percent)}."
        if rows
        else ""
    )


def decoder_cosines(rows: Sequence[Row], *, split: str, styles: Iterable[str]) -> str:
    """Say which share of the directions has turned away."""
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["counts"])]
    turned = {row["sae"]: 1 - share_above(row, 0.95) for row in rows}
    text = "Directions with a cosine below 0.95 to that of the reference"
    return f"{text}: {each(turned, percent)}." if rows else ""


def each(values: Mapping[str, float], spelt: Callable[[float], str]) -> str:
    """Return the values of the SAEs as one reads them: all of a few, the extremes of many.

    >>> each({"generalist": 0.1, "specialist": 0.25}, percent)
    '10.0% (generalist), 25.0% (specialist)'
    """
    if len(values) <= MOST_NAMED:
        return ", ".join(f"{spelt(value)} ({sae})" for sae, value in values.items())
    low, high = (pick(values, key=values.__getitem__) for pick in (min, max))
    return f"from {spelt(values[low])} ({low}) to {spelt(values[high])} ({high})"


def percent(share: float) -> str:
    """Return a share in per cent; what is no more than rounding is no negative zero."""
    return f"{100 * max(share, 0.0):.1f}%"


def _first_rare(lows: Iterable[int]) -> int:
    """Return where the last third of the bins begins."""
    lows = sorted(set(lows))
    return lows[len(lows) - math.ceil(len(lows) / 3)] if lows else 1
