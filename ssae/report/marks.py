"""What several figures share: which rows are drawn, and intervals, histograms and axis numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ssae.report.svg import plain
from ssae.report.table import SAES, finite, ordered

Row = Mapping[str, Any]


class Style(NamedTuple):
    """How an SAE is drawn everywhere in the report; the marker repeats what the colour says."""

    colour: str
    marker: str


# From the Okabe-Ito palette, at a lightness that is readable on white and on near-black.
_KNOWN: dict[str, Style] = dict(
    zip(SAES, map(Style, ("#808080", "#E08A00", "#009E73", "#2A7FD0"), "os^D"), strict=True)
)
_COLOURS, _MARKERS = ("#CC79A7", "#D55E00", "#8A6FDF", "#A6761D"), "vP*X"
# Where colours come again, they come with other markers.
_OTHERS = tuple(
    Style(colour, _MARKERS[(i + turn) % 4])
    for turn in range(4)
    for i, colour in enumerate(_COLOURS)
)


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return one style per SAE: fixed for the usual names, by alphabet for the others."""
    names = ordered(names, SAES)
    others = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def drawn_rows(rows: Iterable[Row], split: str, names: Iterable[str]) -> list[Row]:
    """Return the rows of the split, or of no split, of the SAEs `names`, in the order of these."""
    order = list(names)
    found = [r for r in rows if r.get("split") in (split, None) and r["sae"] in order]
    return sorted(found, key=lambda row: order.index(row["sae"]))


def interval(axes: Axes, low: float | None, high: float | None, at: float, colour: str) -> None:
    """Draw a horizontal line from low to high, where both are known."""
    if low is not None and high is not None:
        axes.plot([low, high], [at] * 2, color=colour, alpha=0.6)


def dots(axes: Axes, x: Any, y: Any, style: Style, *, label: str, index: int, **more: Any) -> None:
    """Draw the series of an SAE; what its markers are is found in the SVG as series-{index}."""
    more = {"linestyle": "", "markersize": 5.5, "markeredgewidth": 0} | more
    axes.plot(x, y, marker=style.marker, color=style.colour, label=plain(label),
              gid=f"series-{index}", **more)  # fmt: skip


def steps(
    axes: Axes,
    histograms: Sequence[Row],
    colours: Sequence[str],
    labels: Sequence[str],
    *,
    unit: str = "",
) -> None:
    """Draw histograms {"bin_edges", "counts"} of latents as outlines over each other.

    Args:
        axes: where to draw.
        histograms: one for each series.
        colours: of the series.
        labels: of the series.
        unit: of the x axis; given, the height is latents per unit, which compares histograms whose
            bins differ. Else it is latents per bin.
    """
    for index, (histogram, colour, label) in enumerate(
        zip(histograms, colours, labels, strict=True)
    ):
        widths = np.diff(histogram["bin_edges"]) if unit else 1
        heights = np.asarray(histogram["counts"]) / widths
        axes.stairs(heights, histogram["bin_edges"], color=colour, linewidth=1.6,
                    label=plain(label), gid=f"series-{index}")  # fmt: skip
    axes.set_ylabel(f"latents per {unit or 'bin'}")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(
        MaxNLocator(7, steps=[1, 2, 5, 10])
    )  # more do not fit beside each other
    axes.grid(axis="y")


def occupied(histograms: Iterable[Row]) -> tuple[float, float]:
    """Return where the bins that hold something begin and end, over all histograms."""
    places = [
        edge
        for h in histograms
        for count, pair in zip(
            h["counts"], zip(h["bin_edges"], h["bin_edges"][1:], strict=False), strict=True
        )
        if count
        for edge in pair
    ]
    return min(places), max(places)


def share_above(histogram: Row, value: float) -> float:
    """Return the share of a histogram above `value`, even within a bin.

    >>> share_above({"bin_edges": [0.0, 1.0, 2.0], "counts": [1, 3]}, 1.5)
    0.375
    """
    below = np.concatenate([[0], np.cumsum(histogram["counts"])])
    return float(1 - np.interp(value, histogram["bin_edges"], below) / below[-1])


def log_numbers(axes: Axes, *, x: bool = True, y: bool = True) -> None:
    """Give what is drawn logarithmic scales, with numbers like 1, 100, 10k and no marks between.

    An axis of less than two decades is numbered within them as well.
    """
    for name, wanted in (("x", x), ("y", y)):
        if wanted:
            axes.set(**{f"{name}scale": "log"})
            axis = axes.xaxis if name == "x" else axes.yaxis
            low, high = axis.get_view_interval()
            if high < 100 * low:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(short))
            axis.set_minor_locator(NullLocator())


def middle(low: float, high: float) -> float:
    """Return the middle of a bin on a logarithmic axis; ranks begin at 1."""
    return math.sqrt(max(low, 1) * max(high, 1))


def positive(row: Row, key: str) -> float:
    """Return row[key], or NaN where a logarithmic axis has no place for it."""
    value = finite(row, key)
    return value if value is not None and value > 0 else math.nan


def short(value: float | None, _position: int | None = None) -> str:
    """Return a number as an axis has room for it.

    >>> short(250000), short(1.5e6), short(0.25)
    ('250k', '1.5M', '0.25')
    """
    if value is None:
        return "?"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
