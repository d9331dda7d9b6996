"""Figures of `python -m ssae.theory`: what theory predicts, and what SAEs do.

Each function takes what demonstration.py measured and returns inline SVG.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ssae.report.marks import Style
from ssae.report.svg import INK, RC, canvas, to_svg
from ssae.theory.demonstration import Absorption, Signed, Widened
from ssae.theory.limits import Limit, Merging

TRAINED, ALONE = Style("#2A7FD0", "o"), Style("#E08A00", "s")
FAMILIES = ("#2A7FD0", "#E08A00", "#009E73", "#CC79A7", "#D55E00", "#8A6FDF", "#A6761D", "#808080")


@matplotlib.rc_context(RC)
def turned(absorptions: Sequence[Absorption]) -> str:
    """Draw the cosine of the latent nearest to each concept with the parent's direction."""
    names, expected, places, cosines = [], [], [], []
    for toy in absorptions:
        for p, value in zip(toy.predictions, toy.expected, strict=True):
            cosines += [found.cosines[p.concept] for found in toy.found]
            places += [len(names)] * len(toy.found)
            names.append(f"rate {toy.child_rate:g}, spread {toy.spread:g}: {_role(p.concept, toy)}")
            expected.append(value)
    figure, axes = canvas(0.9 + 0.165 * len(names))
    height = np.arange(len(names))[::-1]
    axes.plot(expected, height, linestyle="", marker="|", markersize=9, markeredgewidth=2,
              color=INK, label="predicted", gid="series-0")  # fmt: skip
    _dots(axes, cosines, height[places], TRAINED, "trained SAEs", 1)
    for edge in range(1, len(absorptions)):
        at = sum(len(toy.predictions) for toy in absorptions[:edge])
        axes.axhline(len(names) - at - 0.5, color=INK, linewidth=0.5, alpha=0.4)
    axes.set_yticks(height, names, fontsize=7.5)
    axes.set_ylim(-0.8, len(names) - 0.2)
    axes.grid(axis="x")
    axes.set_xlabel("cosine with the parent's direction")
    return to_svg(figure, "turned", "Which latents turn towards the parent")


def _role(concept: int, toy: Absorption) -> str:
    parents = {parent for p in toy.predictions for parent in p.parents}
    if concept in parents:
        return "parent"
    return f"child {concept}" if toy.predictions[concept].parents else f"concept {concept}"


def _dots(axes: Axes, x: Any, y: Any, style: Style, label: str, index: int) -> None:
    axes.plot(x, y, linestyle="", marker=style.marker, markersize=4.5, markeredgewidth=0,
              color=style.colour, alpha=0.6, label=label, gid=f"series-{index}")  # fmt: skip


@matplotlib.rc_context(RC)
def densities(signed: Sequence[Signed]) -> str:
    """Draw on which share of tokens the latents of the signed direction fire, against lam."""
    figure, axes = canvas(3.2)
    scale = signed[0].lam / NormalDist().inv_cdf(1 - signed[0].expected)
    lams = np.linspace(0, 1.1 * max(found.lam for found in signed), 60)
    axes.plot(lams, [1 - NormalDist().cdf(lam / scale) for lam in lams], color=INK, linewidth=1,
              label="predicted, 1 - Phi(lam / scale)")  # fmt: skip
    x = [found.lam for found in signed for _ in found.densities]
    y = [density for found in signed for density in found.densities]
    _dots(axes, x, y, TRAINED, "latents of trained SAEs", 1)
    axes.set_ylim(0, 0.6)
    axes.set_xlim(left=0)
    axes.grid()
    axes.set_xlabel("lam, in units of x")
    axes.set_ylabel("share of tokens")
    return to_svg(figure, "densities", "How often either latent of a pair fires", columns=1)


@matplotlib.rc_context(RC)
def tree(rows: Sequence[Widened], spread: float) -> str:
    """Draw the latents of each width, and lines from latents to their children in the next.

    Args:
        rows: of growing width.
        spread: of the activations.
    """
    figure, axes = canvas(5.6)
    heights = [_heights(row) for row in rows]
    for index, row in enumerate(rows):
        for split in row.splits:
            for child in split.children:
                ends = [heights[index - 1][split.parent], heights[index][child.latent]]
                colour = _colour(row.families[child.latent])
                axes.plot([index - 1, index], ends, color=colour, linewidth=0.3 + child.purity,
                          alpha=0.35)  # fmt: skip
        alive = sorted(heights[index])
        colours = [_colour(row.families[latent]) for latent in alive]
        axes.scatter([index] * len(alive), [heights[index][latent] for latent in alive], s=16,
                     c=colours, zorder=3, gid=f"series-{index}")  # fmt: skip
    axes.set_xticks(range(len(rows)), [str(len(row.families)) for row in rows])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("latents of the SAE")
    title = f"How latents split; colour: parent concept; spread {spread:g}"
    return to_svg(figure, f"tree-{spread:g}", title)


def _colour(family: int | None) -> str:
    return INK if family is None else FAMILIES[family % len(FAMILIES)]


def _heights(row: Widened) -> dict[int, float]:
    """Return where each latent that fires is drawn: families together, from 0 to 1."""
    alive = [(family, latent) for latent, family in enumerate(row.families) if family is not None]
    return {latent: (n + 0.5) / len(alive) for n, (_, latent) in enumerate(sorted(alive))}


@matplotlib.rc_context(RC)
def limit(limits: Sequence[Limit], num_points: int) -> str:
    """Draw P's objective over the wide limit against the number of directions."""
    figure, axes = canvas(3.2)
    x = [row.num_directions for row in limits]
    axes.axhline(1, color=INK, linewidth=1, label="wide limit")
    axes.axvline(num_points, color=INK, linewidth=0.6, linestyle=":", label="data points")
    series: Mapping[str, tuple[Style, str, list[float]]] = {
        "SAE": (TRAINED, "-", [1 + row.sae for row in limits]),
        "SAE's directions, optimal codes": (TRAINED, "--", [1 + r.optimal_codes for r in limits]),
        "directions without an encoder": (ALONE, "-", [1 + row.dictionary for row in limits]),
    }
    for index, (label, (style, dash, values)) in enumerate(series.items()):
        axes.plot(x, values, dash, marker=style.marker, markersize=4.5, color=style.colour,
                  linewidth=1.3, label=label, gid=f"series-{index}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(x))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.set_xlabel("directions")
    axes.set_ylabel("objective / wide limit")
    return to_svg(figure, "limit", "More directions approach the wide limit", columns=1)


@matplotlib.rc_context(RC)
def merging(found: Merging) -> str:
    """Draw for which prices each direction is in use, and which one it gives way to."""
    gone = {merge.child: merge for merge in found.merges}
    ends = {j: found.gammas[m.step] for j, m in gone.items()}
    order = sorted(range(len(found.families)), key=lambda j: (found.families[j], ends.get(j, 1.0)))
    height = {j: len(order) - 1 - place for place, j in enumerate(order)}
    figure, axes = canvas(3.6)
    for j in order:
        colour = FAMILIES[found.families[j] % len(FAMILIES)]
        end = ends.get(j, found.gammas[-1])
        axes.plot([0, end], [height[j]] * 2, color=colour, linewidth=1.4)
        if j in gone and gone[j].parent >= 0:
            axes.plot([end, end], [height[j], height[gone[j].parent]], color=colour, linewidth=0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_xlabel("price of a direction, gamma over the largest")
    return to_svg(figure, "merging", "Directions of tokens merge; colour: family")
