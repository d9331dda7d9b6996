import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from ssae.report import marks, tail_figures
from ssae.report.table import SAES
from tests.report.reading import axis, drawn, texts, values_at

STYLES = marks.styles(SAES)
OPTIONS = {"split": "subdomain_test", "styles": STYLES, "title": "t"}


def rows_of(tables, table, split="subdomain_test"):
    return {row["sae"]: row for row in tables[table] if row["split"] == split}


def test_every_sae_has_its_dot_and_its_interval(metrics):
    svg = tail_figures.by_sae(metrics, name="tail_recall", label="l", **OPTIONS)
    for place in range(len(SAES)):
        shown = values_at(svg, drawn(svg, f"series-{place}")[:, 0])
        np.testing.assert_allclose(shown, 0.25 + 0.03 * place, atol=1e-4)
    assert [text for text in texts(svg) if text in SAES] == list(SAES)


def test_an_sae_that_was_not_measured_has_no_line(metrics):
    rows = [
        {**row, "value": None} if row["sae"] == "control" else row
        for row in metrics
        if row["sae"] != "specialist"
    ]
    svg = tail_figures.by_sae(rows, name="tail_error", label="l", **OPTIONS)
    assert [text for text in texts(svg) if text in SAES] == ["generalist", "specialist_erm"]


def test_shares_stand_at_the_share_of_the_types_of_their_bin(tables):
    svg = tail_figures.represented_by_frequency(tables["represented"], **OPTIONS)
    for index, (sae, row) in enumerate(rows_of(tables, "represented").items()):
        assert sae == SAES[index]
        bins = [b for b in row["bins"] if b["num_types"]]
        pixels = drawn(svg, f"series-{index}")
        shares = [b["num_represented"] / b["num_types"] for b in bins]
        np.testing.assert_allclose(values_at(svg, pixels[:, 1], name="y"), shares, atol=1e-3)
        centres = [math.sqrt(b["low"] * b["high"]) for b in bins]
        shown = values_at(svg, pixels[:, 0], log=True)
        assert np.abs(np.log10(shown / centres)).max() < 0.25  # in its bin, beside the others
    assert "none" not in " ".join(texts(svg))


def test_types_that_the_pool_lacks_stand_leftmost_and_are_called_so(tables):
    rows = [row | {"bins": [dict(b) for b in row["bins"]]} for row in tables["represented"]]
    for row in rows:
        row["bins"][0]["low"] = 0
    svg = tail_figures.represented_by_frequency(rows, **OPTIONS)
    assert any("(leftmost: none)" in text for text in texts(svg))
    pixels = drawn(svg, "series-0")[:, 0]
    assert pixels[0] == pixels.min()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 400), st.data())
def test_the_interval_of_a_share_solves_the_score_equation(of, data):
    num = data.draw(st.integers(0, of))
    low, high = tail_figures.wilson(num, of)
    share, z = num / of, 1.959963984540054

    def excess(p):  # |share - p| in standard errors of p, beyond z
        return (share - p) ** 2 * of - z * z * p * (1 - p)

    expected = (
        brentq(excess, 1e-15, share - 1e-12) if num else 0.0,
        brentq(excess, share + 1e-12, 1 - 1e-15) if num < of else 1.0,
    )
    assert (low, high) == pytest.approx(expected, abs=1e-9)


def test_the_cumulative_curves_are_the_given_ones(tables):
    svg = tail_figures.cumulative_represented(tables["represented"], **OPTIONS)
    for index, row in enumerate(rows_of(tables, "represented").values()):
        points = np.array(row["cumulative"])
        step = max(1, len(points) // 8)
        pixels = drawn(svg, f"series-{index}")
        shown = values_at(svg, pixels[:, 1], name="y")
        np.testing.assert_allclose(shown, points[::step, 1], atol=2e-3)
        np.testing.assert_allclose(values_at(svg, pixels[:, 0]), points[::step, 0], atol=2e-3)
    assert max(axis(svg)) == 1


def test_no_data_is_no_drawing(tables):
    assert tail_figures.by_sae([], name="tail_recall", label="l", **OPTIONS) == ""
    for draw in (tail_figures.represented_by_frequency, tail_figures.cumulative_represented):
        assert draw([], **OPTIONS) == ""
        assert draw(tables["represented"], **OPTIONS | {"split": "other"}) == ""
        empty = {"sae": "control", "split": "subdomain_test", "bins": [], "cumulative": []}
        assert draw([empty], **OPTIONS) == ""
