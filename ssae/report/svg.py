"""A matplotlib figure as a part of a page.

The text stays text and takes the page's font; ink is `currentColor`, so that one drawing serves the
light and the dark page. Ids carry the figure's key, so that several drawings share a document.
"""

import io
import re
from typing import Any
from xml.etree import ElementTree

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"  # a colour that no figure uses otherwise: it becomes currentColor
WIDTH = 5.2  # inches; at the width of a phone the text is still 10 px high
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ssae",
    "text.parse_math": False,  # names are arbitrary texts
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.18,
    "grid.color": INK,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}


def canvas(height: float) -> tuple[Figure, Axes]:
    """Return a figure of the page's width, transparent, with one axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    return figure, axes


def plain(text: str) -> str:
    """Return a text that matplotlib can set: what its font or XML does not have becomes "?"."""
    text = re.sub(r"[^\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]|[\u202a-\u202e\u2066-\u2069]", "?", text)
    return f" {text}" if text.startswith("_") else text  # a leading "_" hides a legend entry


def to_svg(figure: Figure, key: str, title: str, *, columns: int = 2) -> str:
    """Return the drawing as inline SVG, with its title and its legend above it.

    Args:
        figure: one axes, made with `canvas`.
        key: distinguishes the ids of this drawing from those of the others on the page.
        title: what is seen.
        columns: of the legend.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False,
                  fontsize=9.5, handletextpad=0.4, columnspacing=1.2, alignment="left",
                  title=plain(title),
                  title_fontproperties={"weight": "bold", "size": 11})  # fmt: skip
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    return _inline(buffer.getvalue(), re.sub(r"[^a-z0-9]+", "-", key.lower()), plain(title))


def _inline(svg: str, key: str, title: str) -> str:
    """Make an SVG file a part of a page: unique ids, the page's ink and font, any width."""
    space = "http://www.w3.org/2000/svg"
    href = "{http://www.w3.org/1999/xlink}href"
    ElementTree.register_namespace("", space)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{space}}}style", f"{{{space}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{key}-{element.attrib['id']}")
        if href in element.attrib:
            element.set(href, f"#{key}-{element.attrib[href][1:]}")
        for name, value in element.attrib.items():
            value = value.replace("url(#", f"url(#{key}-").replace(INK, "currentColor")
            element.set(name, re.sub(r"font-family:[^;]*;?\s*", "", value))
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.attrib.update({"role": "img", "aria-label": title, "stroke-linejoin": "round"})
    return ElementTree.tostring(root, encoding="unicode")
