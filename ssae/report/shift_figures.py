"""Figures of `ssae shift`: accuracies of all methods, and worst group against latents ablated."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ssae.report.marks import styles
from ssae.report.shift_table import Row, spell_width
from ssae.report.svg import INK, RC, canvas, plain, to_svg
from ssae.report.table import Metric

WORST = "worst_group_accuracy"
DASHES = ("-", "--", ":", "-.")


@matplotlib.rc_context(RC)
def worst_group_by_method(rows: Sequence[Row], spurious: str) -> str:
    """Draw the worst-group accuracy of every row with its interval."""
    shown = [row for row in rows if WORST in row.numbers]
    if not shown:
        return ""
    figure, axes = canvas(0.6 + 0.21 * len(shown))
    height = np.arange(len(shown))[::-1]
    for labelled, colour, name in (
        (False, "#2A7FD0", f"without {spurious} in training"),
        (True, "#808080", f"with {spurious}, or balanced data"),
    ):
        own = [i for i, row in enumerate(shown) if row.needs_labels == labelled]
        if not own:
            continue
        numbers = [shown[i].numbers[WORST] for i in own]
        values = np.array([[m["value"], m["low"], m["high"]] for m in numbers], float)
        axes.hlines(height[own], values[:, 1], values[:, 2], color=colour, alpha=0.6)
        axes.plot(values[:, 0], height[own], "o", color=colour, markersize=5, label=plain(name))
    axes.set_yticks(height, [plain(row.title) for row in shown], fontsize=8.5)
    axes.set_xlim(0, 1)
    axes.grid(axis="x")
    axes.set_xlabel("worst-group accuracy")
    return to_svg(figure, "worst-group-by-method", "Worst group of every method", columns=1)


@matplotlib.rc_context(RC)
def worst_group_by_latents(metrics: Sequence[Metric], spurious: str) -> str:
    """Draw the worst-group accuracy against the number of latents ablated."""
    points = [m for m in metrics if m["name"] == WORST and m.get("most") is not None]
    points = [m for m in points if "reference" not in m]
    if not points:
        return ""
    figure, axes = canvas(3.6)
    arms = list(dict.fromkeys(m["arm"] for m in points))
    widths = sorted({m["width"] for m in points}, reverse=True)
    looks = styles(arms)
    for arm in arms:
        for width, dash in zip(widths, DASHES * len(widths), strict=False):
            for method in ("shift", "random"):
                own = [
                    m for m in points
                    if (m["arm"], m["width"], m["method"]) == (arm, width, method)
                    and (m["num_ablated"] or 0) > 0
                ]  # fmt: skip
                if not own:
                    continue
                own.sort(key=lambda m: m["most"])
                x = [m["num_ablated"] for m in own]
                name = arm + ("" if width == 1 else f", {spell_width(width)}")
                is_random = method == "random"
                axes.plot(
                    x, [m["value"] for m in own], dash, color=looks[arm].colour,
                    marker="" if is_random else looks[arm].marker, markersize=4.5,
                    linewidth=0.7 if is_random else 1.3, alpha=0.5 if is_random else 1,
                    label=None if is_random else plain(name),
                )  # fmt: skip
                if not is_random:
                    low, high = ([m[end] for m in own] for end in ("low", "high"))
                    axes.fill_between(x, low, high, color=looks[arm].colour, alpha=0.08, lw=0)
    original = [m for m in metrics if m["name"] == WORST and m.get("method") == "original"]
    for metric in original:
        axes.axhline(metric["value"], color=INK, linewidth=0.6, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1)
    axes.grid()
    axes.set_xlabel("latents ablated (mean over folds)")
    axes.set_ylabel("worst-group accuracy")
    return to_svg(figure, "worst-group-by-latents", "Worst group against latents ablated")
