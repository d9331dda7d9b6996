"""What a selection looks like: the scores, and the map of seeds, selection and pool."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from ssae.report.marks import Style
from ssae.report.svg import INK, RC, WIDTH, canvas, plain, to_svg
from ssae.report.table import spell

# Grey, blue and orange keep apart for every kind of colour vision and on either background; the
# marker repeats what the colour says.
STYLES = {
    "pool": Style("#808080", "o"),
    "selected": Style("#2A7FD0", "o"),
    "seeds": Style("#E08A00", "*"),
}
LABELS = {"pool": "pool sample", "selected": "selected", "seeds": "seeds"}
_SIZES = {"pool": 2.6, "selected": 4.0, "seeds": 11.0}
NUM_BINS = 60
NUM_LANDMARKS = 7
SMALLEST_LANDMARK = 0.025
"""Share of the pool's points that a source must hold to be named on the map."""
CHARACTER_ROOM, LINE_ROOM = 0.017, 0.045
"""Width of a name's character and height of its line, as shares of the map's width."""


class Layer(NamedTuple):
    """Points of one kind on the map."""

    points: np.ndarray
    """(n, 2)."""
    tips: Sequence[str]
    """What a point is, shown when a mouse rests on it; n of them, or none at all."""


@matplotlib.rc_context(RC)
def score_histogram(scores: np.ndarray, selected: np.ndarray) -> str:
    """Draw how many documents of the pool, and how many of the selected, have which score.

    Args:
        scores: (num_pool,); what is not finite was not scored and is left out.
        selected: (num_documents,).
    """
    scores, selected = (np.asarray(s, np.float64)[np.isfinite(s)] for s in (scores, selected))
    if not len(scores) + len(selected):
        return ""
    edges = np.histogram_bin_edges(np.concatenate([scores, selected]), NUM_BINS)
    figure, axes = canvas(3.4)
    kinds = {"pool": ("scored documents of the pool", scores, 0.45), "selected": ("", selected, 1)}
    for kind, (label, values, alpha) in kinds.items():
        counts, _ = np.histogram(values, edges)
        # A logarithmic axis has no zero: bars stand on 1/2, so that a single document is seen.
        axes.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, linewidth=0,
                    color=STYLES[kind].colour, alpha=alpha, label=label or kind,
                    gid=f"bars-{kind}")  # fmt: skip
    if len(selected):
        axes.axvline(selected.min(), color=INK, linewidth=1, linestyle="--",
                     label=f"lowest selected: {spell(float(selected.min()))}",
                     gid="lowest")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("score")
    axes.set_ylabel("documents per bin (logarithmic)")
    axes.grid(axis="y")
    return to_svg(figure, "scores", "Scores of the pool and of the selection")


@matplotlib.rc_context(RC)
def map_figure(layers: Mapping[str, Layer], pool_sources: Sequence[str]) -> str:
    """Draw the layers on top of each other, with the pool's main sources as landmarks.

    Args:
        layers: of the kinds of STYLES, in any order; an empty one is left out.
        pool_sources: of the points of "pool".
    """
    layers = {k: layers[k] for k in STYLES if k in layers and len(layers[k].points)}
    if not layers:
        return ""
    extent = np.ptp(np.concatenate([layer.points for layer in layers.values()]), axis=0)
    ratio = extent[1] / extent[0] if extent[0] > 0 else 1.0
    figure, axes = canvas(0.7 + WIDTH * min(1.1, max(0.5, ratio)))
    for kind, layer in layers.items():
        star = kind == "seeds"
        axes.plot(*layer.points.T, STYLES[kind].marker, color=STYLES[kind].colour,
                  markersize=_SIZES[kind], alpha=0.6 if kind == "pool" else 0.85,
                  markeredgewidth=0.6 if star else 0, markeredgecolor=INK if star else "none",
                  label=f"{LABELS[kind]} ({len(layer.points)})", gid=f"points-{kind}")  # fmt: skip
    if "pool" in layers:
        _name_landmarks(axes, layers["pool"].points, pool_sources)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.03)
    for spine in axes.spines.values():
        spine.set_visible(False)
    with warnings.catch_warnings():
        # A source may be named in a script that matplotlib's font lacks; the page's font has it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        svg = to_svg(figure, "map", "Map: texts with the same words lie together", columns=3)
    return _with_tips(svg, layers)


def _name_landmarks(axes: Axes, points: np.ndarray, sources: Sequence[str]) -> None:
    """Name the largest sources at their middle, except where another name stands already."""
    names = np.array(sources)
    extent = np.ptp(points, axis=0).max()
    taken: list[tuple[np.ndarray, float]] = []
    for name, count in Counter(sources).most_common(NUM_LANDMARKS):
        own = points[names == name]
        middle = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
        half = extent * CHARACTER_ROOM * len(name) / 2
        clear = all(
            abs(middle[0] - other[0]) > half + other_half
            or abs(middle[1] - other[1]) > extent * LINE_ROOM
            for other, other_half in taken
        )
        if count >= SMALLEST_LANDMARK * len(points) and clear:
            axes.text(middle[0], middle[1], plain(name), ha="center", va="center", fontsize=9,
                          gid=f"landmark-{len(taken)}")  # fmt: skip
            taken.append((middle, half))


def _with_tips(svg: str, layers: Mapping[str, Layer]) -> str:
    """Give each point its tip as the SVG element that browsers show without a script."""
    root = ElementTree.fromstring(svg)
    space = root.tag.removesuffix("svg")
    for kind, layer in layers.items():
        group = next(g for g in root.iter(f"{space}g") if g.get("id") == f"map-points-{kind}")
        if layer.tips:
            for point, tip in zip(group.iter(f"{space}use"), layer.tips, strict=True):
                ElementTree.SubElement(point, f"{space}title").text = plain(tip)
    return ElementTree.tostring(root, encoding="unicode")
