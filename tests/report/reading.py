"""Read numbers back from the pixels of a drawing."""

import re
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str, series: str) -> np.ndarray:
    """Return the marker positions of a series, in pixels."""
    group = next(g for g in ElementTree.fromstring(svg).iter() if g.get("id", "").endswith(series))
    return np.array([(float(u.attrib["x"]), float(u.attrib["y"])) for u in group.iter(f"{SVG}use")])


def axis(svg: str, name: str = "x") -> dict[float, float]:
    """Return value -> pixel of the ticks of an axis."""
    ticks = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if f"-{name}tick_" in group.get("id", ""):
            text = (next(group.iter(f"{SVG}text")).text or "").replace("\u2212", "-")
            place = next(group.iter(f"{SVG}use")).attrib[name]
            ticks[float(text.replace("k", "e3"))] = float(place)
    return ticks


def values_at(svg: str, pixels: np.ndarray, log: bool = False, name: str = "x") -> np.ndarray:
    """Return the values of an axis at these pixels."""
    ticks = axis(svg, name)
    scale = np.log10(list(ticks)) if log else np.array(list(ticks))
    slope, offset = np.polyfit(list(ticks.values()), scale, 1)
    return 10 ** (slope * pixels + offset) if log else slope * pixels + offset


def outline(svg: str, series: str) -> np.ndarray:
    """Return the corners (n, 2) of a histogram's outline, in pixels."""
    group = next(g for g in ElementTree.fromstring(svg).iter() if g.get("id", "").endswith(series))
    path = next(group.iter(f"{SVG}path")).attrib["d"]
    return np.array([list(map(float, xy)) for xy in re.findall(r"[ML] (\S+) (\S+)", path)])


def texts(svg: str) -> list[str]:
    """Return every text of the drawing."""
    return [(text.text or "").strip() for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
