"""Read pages back, and numbers from the pixels of a drawing."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect"}


class ParsedPage(HTMLParser):
    """Collect tags, attributes and text, and check the nesting."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_inert(text: str, own: tuple[str, ...] = ()) -> None:
    """Check that a page fetches nothing but `own` files, runs nothing, and has no id twice."""
    parsed = ParsedPage(text)
    assert not {"script", "img", "iframe", "object", "embed", "form"}.intersection(parsed.tags)
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value in ("data:,", *own) or value.startswith("#"), (tag, name, value)
        if name == "style":
            assert "url(" not in value or "url(#" in value
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert text.endswith("</html>\n")
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


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
