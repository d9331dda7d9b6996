"""The Pareto plot of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from ssae.report.svg import INK, RC, canvas, plain, to_svg

COLOUR = "#2A7FD0"
LONGEST = 28
"""Characters of a name beside its point; the table has it in full."""
MOST_NAMED = 6
"""More names would cover each other: then those of the front."""


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
