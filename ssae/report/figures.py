"""Figures: each function takes plain data and returns inline SVG, or "" where there is no data."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.ticker import FuncFormatter, NullLocator

from ssae.report.svg import INK, RC, canvas, plain, to_svg
from ssae.report.table import (
    BANDS,
    MIN_TOKENS,
    RETRIEVAL,
    RETRIEVERS,
    SAES,
    Metric,
    find,
    finite,
    ordered,
    spell,
)


class Style(NamedTuple):
    """How an SAE is drawn everywhere in the report; the marker repeats what the colour says."""

    colour: str
    marker: str


# From the Okabe-Ito palette, at a lightness that is readable on white and on near-black.
_KNOWN: dict[str, Style] = dict(
    zip(SAES, map(Style, ("#808080", "#E08A00", "#009E73", "#2A7FD0"), "os^D"), strict=True)
)
_OTHERS = tuple(map(Style, ("#CC79A7", "#D55E00", "#8A6FDF", "#A6761D"), "vP*X"))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return one style per SAE: fixed for the usual names, by alphabet for the others."""
    names = ordered(names, SAES)
    others = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


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
    dots = [dot for dot in _dots(metrics, name, split) if dot.sae in styles]
    bands = ordered((dot.band for dot in dots), BANDS)
    if not bands:
        return ""
    names = [sae for sae in styles if any(dot.sae == sae for dot in dots)]
    figure, axes = canvas(1.4 + 0.47 * len(bands))
    for place in range(0, len(bands), 2):
        axes.axhspan(place - 0.5, place + 0.5, color=INK, alpha=0.04, linewidth=0)
    for index, sae in enumerate(names):
        style, shift = styles[sae], 0.18 * (index - (len(names) - 1) / 2)
        own = [(bands.index(dot.band) + shift, dot) for dot in dots if dot.sae == sae]
        for height, dot in own:
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [height] * 2, color=style.colour, alpha=0.6)
        heights, values = [height for height, _ in own], [dot.value for _, dot in own]
        axes.plot(values, heights, style.marker, color=style.colour, markersize=5.5,
                  markeredgewidth=0, label=plain(sae), gid=f"series-{index}")  # fmt: skip
    sizes = {dot.band: dot.num_tokens for dot in dots}
    axes.set_yticks(range(len(bands)), [f"{plain(b)}\n{_short(sizes[b])} tokens" for b in bands])
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    axes.set_ylim(len(bands) - 0.5, -0.5)
    axes.set_ylabel("occurrences per million pool tokens")
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    values = [dot.value for dot in dots]
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
    rows: Sequence[Mapping[str, Any]], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw the mean (line) and the largest (dashed) error of the token types of each rank bin."""
    rows = [row for row in rows if row["split"] == split and row["sae"] in styles]
    if not any(finite(row, "mean") is not None for row in rows):
        return ""
    figure, axes = canvas(3.7)
    for index, sae in enumerate(name for name in styles if any(r["sae"] == name for r in rows)):
        own = sorted((row for row in rows if row["sae"] == sae), key=lambda row: row["rank_low"])
        ranks = [math.sqrt(max(r["rank_low"], 1) * max(r["rank_high"], 1)) for r in own]
        colour = styles[sae].colour
        axes.plot(
            ranks, [_positive(r, "max") for r in own], "--", color=colour, linewidth=0.9, alpha=0.55
        )
        axes.plot(ranks, [_positive(r, "mean") for r in own], color=colour, linewidth=1.8,
                  marker=styles[sae].marker, markersize=4, markeredgewidth=0, label=plain(sae),
                  gid=f"series-{index}")  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("rank of the token type in the pool (1 = most frequent)")
    axes.set_ylabel("||r||^2 / E||x - mu||^2\n(line: mean, dashed: largest)")
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid()
    return to_svg(figure, f"error-by-rank-{split}", title)


@matplotlib.rc_context(RC)
def firing_rates(
    rows: Sequence[Mapping[str, Any]], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw how many latents fire at which rate.

    A latent that never fired has no place on a logarithmic axis: the legend counts it.
    """
    rows = [row for row in rows if row["split"] == split and row["sae"] in styles and row["counts"]]
    rows = sorted(rows, key=lambda row: list(styles).index(row["sae"]))
    if not rows:
        return ""
    figure, axes = canvas(3.8)
    for index, row in enumerate(rows):
        silent, rare = (_count(row.get(key)) for key in ("num_silent", "num_rare"))
        label = f"{plain(row['sae'])}: {silent} silent, {rare} rare"
        axes.stairs(row["counts"], row["bin_edges"], color=styles[row["sae"]].colour, linewidth=1.6,
                    label=label, gid=f"series-{index}")  # fmt: skip
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
    axes.set_ylabel("latents per bin")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
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


def _positive(row: Mapping[str, Any], key: str) -> float:
    value = finite(row, key)
    return value if value is not None and value > 0 else math.nan


def _short(value: float | None, _position: int | None = None) -> str:
    if value is None:
        return "?"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
