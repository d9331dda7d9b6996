"""Figures of tail concepts: each function returns inline SVG, or "" where there is no data."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter
from scipy import stats

from ssae.report.marks import Row, Style, dots, drawn_rows, interval, log_numbers, short
from ssae.report.svg import RC, canvas, plain, to_svg
from ssae.report.table import Metric, find, finite


@matplotlib.rc_context(RC)
def by_sae(
    metrics: Sequence[Metric],
    *,
    name: str,
    split: str,
    styles: Mapping[str, Style],
    title: str,
    label: str,
) -> str:
    """Draw a metric with its interval, one line per SAE.

    Args:
        metrics: the rows of metrics.json.
        name: the metric.
        split: the test split.
        styles: the SAEs to draw, from `marks.styles`.
        title: what is seen.
        label: the x axis.
    """
    found = {sae: find(metrics, name, sae=sae, split=split) for sae in styles}
    values = {sae: value for sae, row in found.items() if (value := finite(row)) is not None}
    if not values:
        return ""
    figure, axes = canvas(1.15 + 0.32 * len(values))
    for place, (sae, value) in enumerate(values.items()):
        row, style = found[sae], styles[sae]
        interval(axes, finite(row, "low"), finite(row, "high"), place, style.colour)
        axes.plot([value], [place], style.marker, color=style.colour, markersize=7,
                  markeredgewidth=0, gid=f"series-{place}")  # fmt: skip
    axes.set_yticks(range(len(values)), [plain(sae) for sae in values])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.grid(axis="x")
    return to_svg(figure, f"{name}-{split}", title)


@matplotlib.rc_context(RC)
def represented_by_frequency(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw the share of token types that are represented, per bin of their frequency in the pool.

    The bars are 95 % Wilson intervals of the share. SAEs stand beside each other in a bin.

    Args:
        rows: {"sae", "split", "bins": [{"low", "high", "num_types", "num_represented"}]}; low and
            high in occurrences per million tokens; from 0 are the types that the pool lacks.
        split: the test split.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if filled_bins(row)]
    if not rows:
        return ""
    figure, axes = canvas(3.7)
    apart = min(0.045, 0.3 / len(rows))  # in decades; a bin has half a decade
    for index, row in enumerate(rows):
        style, shift = styles[row["sae"]], 10 ** (apart * (index - (len(rows) - 1) / 2))
        centres, shares = [], []
        for each in filled_bins(row):
            centre, share = frequency(each) * shift, each["num_represented"] / each["num_types"]
            low, high = wilson(each["num_represented"], each["num_types"])
            axes.plot([centre] * 2, [low, high], color=style.colour, alpha=0.6, linewidth=1.2)
            centres.append(centre)
            shares.append(share)
        dots(axes, centres, shares, style, label=row["sae"], index=index, linestyle="-",
             linewidth=0.8, markersize=4.5)  # fmt: skip
    log_numbers(axes, y=False)
    axes.set_ylim(bottom=0)
    absent = any(not finite(filled_bins(row)[0], "low") for row in rows)
    note = " (leftmost: none)" if absent else ""
    axes.set_xlabel(f"occurrences of the type per million pool tokens{note}")
    axes.set_ylabel("share of types represented")
    axes.grid()
    return to_svg(figure, f"represented-{split}", title)


@matplotlib.rc_context(RC)
def cumulative_represented(
    rows: Sequence[Row], *, split: str, styles: Mapping[str, Style], title: str
) -> str:
    """Draw which share of an SAE's represented types lies within which share of the tokens.

    Args:
        rows: {"sae", "split", "cumulative": [[share_of_tokens, share_of_represented], ...]}, types
            taken from the most frequent to the rarest.
        split: the test split.
        styles: the SAEs to draw.
        title: what is seen.
    """
    rows = [row for row in drawn_rows(rows, split, styles) if row.get("cumulative")]
    if not rows:
        return ""
    figure, axes = canvas(3.7)
    for index, row in enumerate(rows):
        tokens, represented = np.array(row["cumulative"], float).T
        dots(axes, tokens, represented, styles[row["sae"]], label=row["sae"], index=index,
             linestyle="-", linewidth=1.6, markersize=4,
             markevery=max(1, len(tokens) // 8))  # fmt: skip
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set_xlabel("share of tokens, most frequent types first")
    axes.set_ylabel("share of represented types")
    axes.grid()
    return to_svg(figure, f"cumulative-{split}", title)


def filled_bins(row: Row) -> list[Row]:
    """Return the frequency bins of a row that hold a type, from rare to frequent."""
    return sorted((b for b in row.get("bins", ()) if b["num_types"]), key=frequency)


def frequency(bin_: Row) -> float:
    """Return where a frequency bin stands; an open end counts as half a decade."""
    low, high = finite(bin_, "low"), finite(bin_, "high")
    half_decade = math.sqrt(10)
    if not low:
        low = (high or 1.0) / half_decade
    return math.sqrt(low * (high or low * half_decade))


def wilson(num: int, of: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of the share num / of.

    >>> wilson(0, 10)
    (0.0, 0.277...)
    """
    low, high = stats.binomtest(num, of).proportion_ci(0.95, method="wilson")
    return float(low), float(high)
