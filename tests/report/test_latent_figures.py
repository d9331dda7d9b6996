import math

import numpy as np
import pytest

from ssae.report import latent_figures, marks
from ssae.report.table import SAES
from tests.report.reading import drawn, outline, texts, values_at

STYLES = marks.styles(SAES)
OPTIONS = {"split": "subdomain_test", "styles": STYLES, "title": "t"}
DRAWN = {
    "activation_counts": "latent_ranks",
    "effective_types": "spread",
    "entropy_against_maximum": "spread",
    "largest_by_rank": "spread",
    "log_ratios": "log_ratios",
    "decoder_cosines": "decoder_cosines",
}


def draw(name, rows, **options):
    return getattr(latent_figures, name)(rows, **OPTIONS | options)


def own(tables, table):
    return marks.drawn_rows(tables[table], "subdomain_test", SAES)


def heights(svg, index, centres, log=False):
    """Return the height of a drawn outline at these places of the x axis."""
    corners = outline(svg, f"series-{index}")
    xs = values_at(svg, corners[:, 0], log=log)
    ys = values_at(svg, corners[:, 1], name="y")
    found = []
    for centre in np.exp(centres) if log else centres:
        after = int(np.flatnonzero(xs > centre)[0])
        assert ys[after] == pytest.approx(ys[after - 1], abs=1e-6)  # a step is level
        found.append(ys[after])
    return np.array(found)


def seen(histogram):
    """Return the middles of the bins that hold something, and what is drawn of counts there."""
    edges, counts = np.array(histogram["bin_edges"]), np.array(histogram["counts"])
    held = counts > 0
    return ((edges[1:] + edges[:-1]) / 2)[held], counts[held], np.diff(edges)[held]


def test_counts_stand_at_their_rank_on_logarithmic_axes(tables):
    svg = draw("activation_counts", tables["latent_ranks"])
    for index, row in enumerate(own(tables, "latent_ranks")):
        step = len(row["ranks"]) // 8
        pixels = drawn(svg, f"series-{index}")
        ranks = values_at(svg, pixels[:, 0], log=True)
        counts = values_at(svg, pixels[:, 1], log=True, name="y")
        np.testing.assert_allclose(ranks, row["ranks"][::step], rtol=0.01)
        np.testing.assert_allclose(counts, row["counts"][::step], rtol=0.01)
    assert any("61.2k" in text for text in texts(svg))


def test_a_latent_that_never_fires_has_no_place_on_a_logarithmic_axis():
    row = {"sae": "control", "split": "subdomain_test", "num_tokens": 9, "ranks": [1, 2, 10]}
    svg = draw("activation_counts", [row | {"counts": [9, 3, 0]}])
    assert len(drawn(svg, "series-0")) == 2
    assert draw("activation_counts", [row | {"counts": [0, 0, 0]}]) == ""


@pytest.mark.parametrize(("name", "key"), [("effective_types", "entropy"), ("log_ratios", None)])
def test_histograms_of_unequal_bins_are_drawn_per_unit(tables, name, key):
    svg = draw(name, tables[DRAWN[name]])
    for index, row in enumerate(own(tables, DRAWN[name])):
        row = row[key] if key else row
        centres, counts, widths = seen(row)
        shown = heights(svg, index, centres, log=key is not None)
        np.testing.assert_allclose(shown, counts / widths, atol=1)
    assert "latents per nat" in texts(svg)


def test_the_axis_of_entropies_is_numbered_by_effective_numbers_of_types(tables):
    edges = [0.0, math.log(10), math.log(100)]
    row = {"sae": "control", "split": "subdomain_test"}
    row["entropy"] = {"bin_edges": edges, "counts": [2, 3]}
    svg = draw("effective_types", [row])
    places = outline(svg, "series-0")[:, 0]
    shown = values_at(svg, np.unique(places), log=True)
    np.testing.assert_allclose(shown, [1, 10, 100], rtol=0.02)


def test_points_are_the_latents_and_few_enough(tables):
    svg = draw("entropy_against_maximum", tables["spread"])
    for index, row in enumerate(own(tables, "spread")):
        pixels = drawn(svg, f"series-{index}")
        given = np.array(row["points"])[::4]
        assert len(pixels) == len(given) <= latent_figures.NUM_POINTS
        shown = np.log(values_at(svg, pixels[:, 0], log=True))
        np.testing.assert_allclose(shown, given[:, 0], atol=0.02)
        shown = values_at(svg, pixels[:, 1], log=True, name="y")
        np.testing.assert_allclose(shown, given[:, 1], rtol=0.02)


def test_thinning_leaves_out_what_a_logarithmic_axis_cannot_show():
    assert latent_figures.thinned([[1.0, 0.0], [2.0, 3.0]]) == [(2.0, 3.0)]
    assert latent_figures.thinned([]) == []
    assert len(latent_figures.thinned([[1.0, 1.0]] * 301)) == 151


def test_largest_activations_stand_at_the_middle_of_their_ranks(tables):
    svg = draw("largest_by_rank", tables["spread"])
    pixels = drawn(svg, "series-2")
    middles = [math.sqrt(10), math.sqrt(11 * 100), math.sqrt(101 * 1000)]
    np.testing.assert_allclose(values_at(svg, pixels[:, 0], log=True), middles, rtol=0.01)
    np.testing.assert_allclose(values_at(svg, pixels[:, 1], name="y"), [7, 6, 3], atol=0.02)


def test_cosines_say_with_what_they_were_matched(tables):
    rows = [dict(row) for row in tables["decoder_cosines"]]
    rows[0]["matched"] = "nearest"
    svg = draw("decoder_cosines", rows)
    assert "control against generalist (nearest direction)" in texts(svg)
    assert "specialist against generalist (same index)" in texts(svg)
    for index, row in enumerate(rows):
        centres, counts, _ = seen(row)
        np.testing.assert_allclose(heights(svg, index, centres), counts, atol=1)


@pytest.mark.parametrize("name", DRAWN)
def test_no_data_is_no_drawing_and_the_same_data_the_same_drawing(tables, name):
    rows = tables[DRAWN[name]]
    assert draw(name, []) == ""
    assert draw(name, rows, styles={}) == ""
    assert draw(name, rows) == draw(name, rows) != ""
    assert "nan" not in draw(name, rows).lower()
