import re
from xml.etree import ElementTree

import numpy as np

from ssae.report.retrieval_figures import Layer, map_figure, score_histogram

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg_part) -> list[str]:
    return [element.text for element in svg_part.iter(f"{SVG}title")]


def part(svg: str, key: str) -> ElementTree.Element:
    return next(g for g in ElementTree.fromstring(svg).iter() if g.get("id", "").endswith(key))


def heights(svg: str, kind: str) -> np.ndarray:
    """Return the counts of the histogram's bars, read from the drawing by its y ticks."""
    ticks = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if "-ytick_" in group.get("id", ""):
            label = next(group.iter(f"{SVG}text")).text.replace(",", "")
            ticks[float(label)] = float(next(group.iter(f"{SVG}use")).attrib["y"])
    slope, offset = np.polyfit(list(ticks.values()), np.log10(list(ticks)), 1)
    path = next(part(svg, f"bars-{kind}").iter(f"{SVG}path")).attrib["d"]
    points = np.array([list(map(float, xy)) for xy in re.findall(r"[ML] (\S+) (\S+)", path)])
    tops = points[1:-1].reshape(-1, 2, 2)[:60, 0, 1]  # a step is drawn by its two upper corners
    return 10 ** (slope * tops + offset)


def test_the_bars_are_as_high_as_the_counts():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=20_000).astype(np.float32)
    chosen = np.sort(scores)[-300:]
    svg = score_histogram(np.append(scores, [-np.inf] * 9), chosen)
    for kind, values in (("pool", scores), ("selected", chosen)):
        edges = np.linspace(scores.min(), scores.max(), 61, dtype=np.float64)
        counts = np.array([np.sum((values >= a) & (values < b)) for a, b in zip(edges, edges[1:])])  # noqa: B905
        drawn = heights(svg, kind)
        assert np.abs(np.where(drawn < 0.6, 0, drawn) - counts)[:-1].max() < 0.02 * counts.max()
    assert f"lowest selected: {chosen.min():.4g}" in svg


def test_the_map_shows_every_text_at_its_place_with_its_words():
    points = np.random.default_rng(0).normal(size=(9, 2))
    tips = [f"tip {i}" for i in range(5)]
    layers = {"pool": Layer(points[:4], []), "selected": Layer(points[4:], tips)}
    svg = map_figure(layers, ["physics"] * 3 + ["reviews"])
    drawn = []
    for kind, num in (("pool", 4), ("selected", 5)):
        uses = list(part(svg, f"points-{kind}").iter(f"{SVG}use"))
        assert len(uses) == num
        drawn += [(float(use.attrib["x"]), -float(use.attrib["y"])) for use in uses]
    fitted = np.array(drawn)
    assert np.corrcoef(fitted[:, 0], points[:, 0])[0, 1] > 0.9999
    assert np.corrcoef(fitted[:, 1], points[:, 1])[0, 1] > 0.9999
    assert texts(part(svg, "points-selected")) == tips
    assert "physics" in svg
