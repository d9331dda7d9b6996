"""Figures: each function takes plain data and returns inline SVG, or "" where there is no data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.ticker import FuncFormatter

from ssae.report.marks import (
    Row,
    Style,
    dots,
    drawn_rows,
    interval,
    log_numbers,
    middle,
    positive,
    short,
    steps,
)
from ssae.report.svg import INK, RC, canvas, plain, to_svg
from ssae.report.table import (
    BANDS,
    MIN_TOKENS,
    RETRIEVAL,
    RETRIEVERS,
    Metric,
    find,
    finite,
    ordered,
    spell,
)


@matplotlib.rc_context(RC)
def by_band(
    metrics: Sequence[Metric],
    *,
    name: str,
    split: str,
    styles: Mapping[str, Style],
    title: str,
    label: str,
    reference: float | None = None,
) -> str:
    """Draw a metric per token-frequency band: one dot per SAE, intervals where there are any.

    Bands of fewer than MIN_TOKENS tokens are left out: their intervals would set the scale.

    Args:
        metrics: the rows of metrics.json.
        name: the metric.
        split: the test split.
        styles: the SAEs to draw, from `styles`.
        title: what is seen.
        label: the x axis, with its unit.
        reference: a value to mark.
    """
    found = [dot for dot in _dots(metrics, name, split) if dot.sae in styles]
    bands = ordered((dot.band for dot in found), BANDS)
    if not bands:
        return ""
    names = [sae for sae in styles if any(dot.sae == sae for dot in found)]
    figure, axes = canvas(1.4 + 0.47 * len(bands))
    for place in range(0, len(bands), 2):
        axes.axhspan(place - 0.5, place + 0.5, color=INK, alpha=0.04, linewidth=0)
    for index, sae in enumerate(names):
        style, shift = styles[sae], 0.18 * (index - (len(names) - 1) / 2)
        own = [(bands.index(dot.band) + shift, dot) for dot in found if dot.sae == sae]
        for height, dot in own:
            interval(axes, dot.low, dot.high, height, style.colour)
        heights, values = [height for height, _ in own], [dot.value for _, dot in own]
        dots(axes, values, heights, style, label=sae, index=index)
    sizes = {dot.band: dot.num_tokens for dot in found}
    axes.set_yticks(range(len(bands)), [f"{plain(b)}\n{short(sizes[b])} tokens" for b in bands])
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    axes.set_ylim(len(bands) - 0.5, -0.5)
    axes.set_ylabel("occurrences per million pool tokens")
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    values = [dot.value for dot in found]
    if reference is not None:
        axes.axvline(reference, color=INK, linewidth=0.8, linestyle=":")
    elif min(values) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.grid(axis="x")
    return to_svg(figure, f"{name}-{split}", title)


class _Dot(NamedTuple):
    sae: str
    band: str
    value: float
    low: float | None
    high: float | None
    num_tokens: int | None


def _dots(metrics: Sequence[Metric], name: str, split: str) -> Iterator[_Dot]:
    for row in metrics:
        if row["name"] != name or row.get("split") != split or row["band"] == "all":
            continue
        value, low, high = (finite(row, key) for key in ("value", "low", "high"))
        num_tokens = row.get("num_tokens")
        if value is not None and (num_tokens is None or num_tokens >= MIN_TOKENS):
            yield _Dot(row["sae"], row["band"], value, low, high, num_tokens)


@matplotlib.rc_context(RC)
def error_by_rank(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw the mean (line) and the largest (dashed) error of the token types of each rank bin."""
    rows = drawn_rows(rows, split, styles)
    if not any(finite(row, "mean") is not None for row in rows):
        return ""
    figure, axes = canvas(3.7)
    for index, sae in enumerate(dict.fromkeys(row["sae"] for row in rows)):
        own = sorted((row for row in rows if row["sae"] == sae), key=lambda row: row["rank_low"])
        ranks = [middle(row["rank_low"], row["rank_high"]) for row in own]
        axes.plot(ranks, [positive(r, "max") for r in own], "--", color=styles[sae].colour,
                  linewidth=0.9, alpha=0.55)  # fmt: skip
        dots(axes, ranks, [positive(row, "mean") for row in own], styles[sae], label=sae,
             index=index, linestyle="-", linewidth=1.8, markersize=4)  # fmt: skip
    log_numbers(axes)
    axes.set_xlabel("rank of the token type in the pool (1 = most frequent)")
    axes.set_ylabel("||r||^2 / E||x - mu||^2\n(line: mean, dashed: largest)")
    axes.grid()
    return to_svg(figure, f"error-by-rank-{split}", title)


@matplotlib.rc_context(RC)
def firing_rates(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw how many latents fire at which rate.

    A latent that never fired has no place on a logarithmic axis: the legend counts it.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if row["counts"]]
    if not rows:
        return ""
    figure, axes = canvas(3.8)
    labels = [
        f"{row['sae']}: {_count(row.get('num_silent'))} silent, {_count(row.get('num_rare'))} rare"
        for row in rows
    ]
    steps(axes, rows, [styles[row["sae"]].colour for row in rows], labels)
    once = math.log10(1 / min(row["num_tokens"] for row in rows))
    limit = once + math.log10(3)
    left = min(once - 0.7, min(row["bin_edges"][0] for row in rows))
    right = max(row["bin_edges"][-1] for row in rows)
    axes.axvspan(left, once, color=INK, alpha=0.10, linewidth=0)
    axes.axvspan(once, limit, color=INK, alpha=0.05, linewidth=0)
    top = {"transform": axes.get_xaxis_transform(), "va": "top", "rotation": 90, "fontsize": 9}
    axes.text((left + once) / 2, 0.97, "silent", ha="center", **top)
    axes.text((once + limit) / 2, 0.97, "too rare to tell", ha="center", **top)
    axes.set_xlim(left, right)
    axes.set_xlabel("log10 of the firing rate (share of tokens)")
    return to_svg(figure, f"firing-rates-{split}", title, columns=1)


@matplotlib.rc_context(RC)
def retrieval(metrics: Sequence[Metric], *, title: str) -> str:
    """Draw precision, recall and average precision of each retriever."""
    found = [
        r
        for r in metrics
        if r["name"] in RETRIEVAL and finite(r) is not None and r.get("retriever")
    ]
    names = ordered((row["retriever"] for row in found), RETRIEVERS)
    if not names:
        return ""
    figure, axes = canvas(1.4 + 0.22 * 3 * len(names))
    for index, retriever in enumerate(names):
        for place, measure in enumerate(RETRIEVAL):
            row = find(found, measure, retriever=retriever)
            value, height = finite(row), place + 0.8 / len(names) * (index - (len(names) - 1) / 2)
            axes.barh(height, value or 0, 0.7 / len(names), color=INK, linewidth=0,
                      alpha=(0.25, 0.45, 0.75)[index % 3], gid=f"bar-{place}-{index}")  # fmt: skip
            low, high = finite(row, "low"), finite(row, "high")
            if low is not None and high is not None:
                axes.plot([low, high], [height] * 2, color=INK, linewidth=1)
            text = plain(f"{retriever} {spell(value)}")
            axes.text(max(value or 0, high or 0) + 0.01, height, text, va="center", fontsize=9)
    axes.set_yticks(range(3), [measure.replace("_", "\n") for measure in RETRIEVAL])
    axes.set_ylim(2.5, -0.5)
    axes.set_xlim(0, 1.3)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlabel("share (1 is perfect)")
    axes.grid(axis="x")
    return to_svg(figure, "retrieval", title)


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
