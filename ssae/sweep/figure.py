"""The Pareto plots of a sweep: its settings with their front, and a curve for each arm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ssae.report.marks import Style
from ssae.report.svg import INK, RC, canvas, plain, to_svg
from ssae.sweep.curves import Curve

COLOUR = "#2A7FD0"
LONGEST = 28
"""Characters of a name beside its point; the table has it in full."""
MOST_NAMED = 6
"""More names would cover each other: then those of the front."""
WIDE = 4
"""An axis is logarithmic if its largest value is more than as many times its smallest."""
DASHES = ("-", "--", ":", "-.")


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Return which points no other dominates: none is at most as large in both and smaller in one.

    Args:
        points: (n, 2), of both coordinates less is better.

    Returns:
        (n,), bool.
    """
    order = np.lexsort((points[:, 1], points[:, 0]))
    on_front = np.zeros(len(points), bool)
    lowest, at = np.inf, np.inf
    for index in order:  # from left to right: a point on the front is lower than all before it
        x, y = points[index]
        on_front[index] = y < lowest or (y == lowest and x == at)
        if y < lowest:
            lowest, at = y, x
    return on_front


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


@matplotlib.rc_context(RC)
def pareto_figure(
    settings: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str
) -> str:
    """Draw every setting's mean, its seeds in pale, and the front of the means.

    Args:
        settings: by name, the points of its seeds; of both coordinates less is better.
        x_label: of the first coordinate.
        y_label: of the second.

    Returns:
        inline SVG; "" of fewer than two settings.
    """
    if len(settings) < 2:
        return ""
    names = list(settings)
    means = np.array([np.mean(settings[name], axis=0) for name in names])
    front = pareto_front(means)
    figure, axes = canvas(3.4)
    for name in names:
        axes.scatter(*np.array(settings[name]).T, s=12, color=COLOUR, alpha=0.35, linewidth=0)
    line = means[front][np.argsort(means[front][:, 0])]
    style: dict[str, Any] = {"color": COLOUR, "linewidth": 0.9, "zorder": 1}
    axes.plot(*line.T, drawstyle="steps-post", **style)
    best = "no setting is better in both"
    axes.scatter(*means[front].T, s=34, color=COLOUR, zorder=3, label=best)
    axes.scatter(*means[~front].T, s=30, facecolor="none", edgecolor=COLOUR, zorder=3)
    for name, point, named in zip(names, means, front, strict=True):
        if named or len(names) <= MOST_NAMED:
            axes.annotate(
                plain(_cut(name)),
                point,
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(0.12)
    axes.grid(True)
    return to_svg(figure, f"pareto {x_label} {y_label}", f"{y_label} against {x_label}")


@matplotlib.rc_context(RC)
def curve_figure(
    curves: Sequence[Curve],
    *,
    styles: Mapping[str, Style],
    key: str,
    title: str,
    x_label: str,
    y_label: str,
    reference: float | None,
) -> str:
    """Draw curves with the band between their lowest and highest seed.

    Args:
        curves: at most as many as can be told apart.
        styles: of every arm.
        key: distinguishes the drawing from the others on the page.
        title: what is seen.
        x_label: of the number of active latents.
        y_label: of the metric.
        reference: a value to mark.

    Returns:
        inline SVG; "" if there is no curve.
    """
    if not curves:
        return ""
    figure, axes = canvas(3.6)
    arms = [curve.arm for curve in curves]
    for index, curve in enumerate(curves):
        style = styles[curve.arm]
        dash = DASHES[arms[:index].count(curve.arm) % len(DASHES)]
        xs, ys, lows, highs = zip(*curve.points, strict=True)
        axes.fill_between(xs, lows, highs, color=style.colour, alpha=0.18, linewidth=0)
        name = " ".join(part for part in (curve.arm, curve.setting) if part)
        under = 0.4 * (len(curves) - 1 - index)  # so that one that lies under another is seen
        axes.plot(xs, ys, dash, color=style.colour, marker=style.marker, markersize=4.5 + under,
                  markeredgewidth=0, linewidth=1.4 + under, label=plain(_cut(name)),
                  gid=f"series-{index}")  # fmt: skip
    points = [point for curve in curves for point in curve.points]
    _scale(axes.xaxis, axes.set_xscale, [point.x for point in points])
    values = [value for point in points for value in (point.low, point.high)]
    _scale(axes.yaxis, axes.set_yscale, values)
    if reference is not None:
        axes.axhline(reference, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(True)
    return to_svg(figure, key, title)


def _scale(axis: Axis, set_scale: Callable[[str], None], values: Sequence[float]) -> None:
    """Make an axis logarithmic if the values are far apart, with numbers as they are read."""
    if min(values) > 0 and max(values) > WIDE * min(values):
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
