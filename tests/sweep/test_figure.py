import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssae.report.marks import styles
from ssae.sweep.curves import Curve, Point
from ssae.sweep.figure import curve_figure, pareto_figure, pareto_front


def by_definition(points: np.ndarray) -> list[bool]:
    return [
        not any((other <= point).all() and (other < point).any() for other in points)
        for point in points
    ]


@given(arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 4)))
def test_the_front_is_what_its_definition_says(points):
    assert pareto_front(points).tolist() == by_definition(points)


def test_the_figure_names_the_settings_on_the_front_when_there_are_many():
    settings = {f"k={i}": [(float(i), float(20 - i)), (i + 0.5, 20.5 - i)] for i in range(15)}
    settings["worse"] = [(30.0, 30.0)]
    svg = pareto_figure(settings, x_label="l0", y_label="perplexity")
    assert "k=14" in svg
    assert "worse" not in svg
    assert "perplexity against l0" in svg


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_settings_are_not_drawn(num):
    settings = {f"k={i}": [(1.0, 2.0)] for i in range(num)}
    assert pareto_figure(settings, x_label="x", y_label="y") == ""


def drawing(points: dict[str, list[tuple[float, float]]], reference: float | None = None) -> str:
    curves = [
        Curve(arm, "k=4 <b>", [Point(x, y, y - 0.5, y + 0.5) for x, y in places])
        for arm, places in points.items()
    ]
    return curve_figure(
        curves, styles=styles(points), key="curve", title="perplexity against l0", x_label="l0",
        y_label="perplexity", reference=reference,
    )  # fmt: skip


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_curves_are_named_and_banded():
    svg = drawing({"generalist": [(8, 30), (16, 20)], "mine": [(8, 25), (16, 18)]}, reference=20)
    assert "generalist k=4 &lt;b&gt;" in texts(svg)
    assert "mine k=4 &lt;b&gt;" in texts(svg)
    assert {"curve-series-0", "curve-series-1"} <= set(re.findall(r'id="([^"]*)"', svg))
    assert svg.count("FillBetweenPolyCollection") == 2


def test_axes_are_logarithmic_where_values_are_far_apart():
    near = {"mine": [(8.0, 30.0), (24.0, 20.0)]}
    far = {"mine": [(8.0, 30.0), (256.0, 20.0)]}
    assert {"10", "12", "14"} <= set(texts(drawing(near)))  # evenly spaced
    assert {"10", "20", "50", "100", "200"} <= set(texts(drawing(far)))
    assert "150" in texts(drawing(far))
    assert "250" not in texts(drawing(far))


def test_no_curves_are_no_figure():
    assert drawing({}) == ""
