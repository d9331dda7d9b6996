"""Figures of latents: each function returns inline SVG, or "" where there is no data.

All take the rows of one table of tables.json, the split, the SAEs to draw (`marks.styles`) and a
title that says what is seen.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from ssae.report.marks import (
    Row,
    Style,
    dots,
    drawn_rows,
    log_numbers,
    middle,
    occupied,
    positive,
    short,
    steps,
)
from ssae.report.svg import INK, RC, canvas, to_svg

NUM_POINTS = 300
"""Latents of an SAE in the scatter: more would hide each other and weigh down the page."""


@matplotlib.rc_context(RC)
def activation_counts(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw on how many tokens the latents fire, the busiest first.

    Args:
        rows: {"sae", "split", "num_tokens", "ranks", "counts"}; rank 1 fires most.
        split: the test split.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["counts"])]
    if not rows:
        return ""
    figure, axes = canvas(3.7)
    for index, row in enumerate(rows):
        counts = [count if count > 0 else math.nan for count in row["counts"]]
        dots(axes, row["ranks"], counts, styles[row["sae"]], label=row["sae"], index=index,
             linestyle="-", linewidth=1.5, markersize=4,
             markevery=max(1, len(counts) // 8))  # fmt: skip
    log_numbers(axes)
    axes.set_xlabel("rank of the latent (1 fires most)")
    axes.set_ylabel(f"tokens on which it fires (of {short(rows[0]['num_tokens'])})")
    axes.grid()
    return to_svg(figure, f"activation-counts-{split}", title)


@matplotlib.rc_context(RC)
def effective_types(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw how many latents have which effective number of token types exp(H_j).

    Args:
        rows: {"sae", "split", "entropy": {"bin_edges" (nats), "counts"}}.
        split: the test split.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["entropy"]["counts"])]
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    names = [row["sae"] for row in rows]
    histograms = [row["entropy"] for row in rows]
    steps(axes, histograms, [styles[name].colour for name in names], names, unit="nat")
    _entropies(axes, *occupied(histograms))
    return to_svg(figure, f"effective-types-{split}", title)


@matplotlib.rc_context(RC)
def entropy_against_maximum(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw latents by their effective number of token types and their largest activation.

    Args:
        rows: {"sae", "split", "points": [[entropy in nats, max_activation], ...]}.
        split: the test split.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if thinned(row["points"])]
    if not rows:
        return ""
    figure, axes = canvas(3.7)
    for index, row in enumerate(rows):
        entropy, largest = np.array(thinned(row["points"])).T
        dots(axes, entropy, largest, styles[row["sae"]], label=row["sae"], index=index,
             markersize=3.2, alpha=0.55)  # fmt: skip
    log_numbers(axes, x=False)
    drawn = [entropy for row in rows for entropy, _ in thinned(row["points"])]
    _entropies(axes, min(drawn), max(drawn))
    axes.set_ylabel("largest activation of the latent")
    axes.grid()
    return to_svg(figure, f"entropy-{split}", title)


@matplotlib.rc_context(RC)
def largest_by_rank(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw the largest activation that a token type causes in any latent, by the type's rank.

    Args:
        rows: {"sae", "split", "max_per_type": {"rank_low", "rank_high", "mean"}}, three lists.
        split: the test split.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if row["max_per_type"]["mean"]]
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    for index, row in enumerate(rows):
        bins = row["max_per_type"]
        ranks = [middle(*pair) for pair in zip(bins["rank_low"], bins["rank_high"], strict=True)]
        means = [positive({"mean": mean}, "mean") for mean in bins["mean"]]
        dots(axes, ranks, means, styles[row["sae"]], label=row["sae"], index=index, linestyle="-",
             linewidth=1.5, markersize=4)  # fmt: skip
    log_numbers(axes, y=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank of the token type in the pool (1 = most frequent)")
    axes.set_ylabel("largest activation (mean)")
    axes.grid()
    return to_svg(figure, f"largest-activation-{split}", title)


@matplotlib.rc_context(RC)
def log_ratios(rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str) -> str:
    """Draw how much more or less often latents fire than the same latents of the reference.

    Args:
        rows: {"sae", "reference", "split", "bin_edges" (natural logarithm), "counts"}.
        split: the test split.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["counts"])]
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    _against(axes, rows, styles, unit="nat")
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(*occupied(rows))
    axes.set_xlabel("natural log of the ratio of normalised activation counts")
    return to_svg(figure, f"log-ratios-{split}", title)


@matplotlib.rc_context(RC)
def decoder_cosines(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw the cosines between decoder directions and those of the reference.

    Args:
        rows: {"sae", "reference", "matched": "index" or "nearest", "bin_edges", "counts"}.
        split: no part of the data; a figure's id holds it.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if any(row["counts"])]
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    _against(axes, rows, styles)
    axes.set_xlim(occupied(rows)[0], 1)
    axes.set_xlabel("cosine between decoder directions")
    return to_svg(figure, f"decoder-cosines-{split}", title, columns=1)


def thinned(points: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    """Return at most NUM_POINTS of the points that a logarithmic axis can show, evenly spread."""
    points = [(entropy, largest) for entropy, largest in points if largest > 0]
    return points[:: math.ceil(len(points) / NUM_POINTS)] if points else []


def _against(
    axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style], *, unit: str = ""
) -> None:
    how = {"index": "same index", "nearest": "nearest direction"}
    labels = [
        f"{row['sae']} against {row['reference']}"
        + (f" ({how[row['matched']]})" if "matched" in row else "")
        for row in rows
    ]
    steps(axes, rows, [styles[row["sae"]].colour for row in rows], labels, unit=unit)


def _entropies(axes: Axes, low: float, high: float) -> None:
    """Number an axis of entropies, in nats, by their exponentials: effective numbers of types."""
    marks = [count for power in range(9) for count in (10**power, 3 * 10**power)]
    marks = [count for count in marks if low - 0.7 <= math.log(count) <= high + 0.7]
    axes.set_xticks([math.log(count) for count in marks], [short(count) for count in marks])
    axes.set_xlim(low - 0.15, high + 0.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(round(math.exp(value)))))
    axes.set_xlabel("effective number of token types, exp(entropy)")
