import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ssae.report import figures, marks
from ssae.report.table import BANDS, SAES
from tests.report.reading import SVG, drawn, values_at

HREF = "{http://www.w3.org/1999/xlink}href"
STYLES = marks.styles(SAES)


def bands(metrics, name="fvu", styles=STYLES, **options):
    options = {"split": "subdomain_test", "title": "t", "label": "l"} | options
    return figures.by_band(metrics, name=name, styles=styles, **options)


def everything(metrics, tables):
    options = {"split": "subdomain_test", "styles": STYLES, "title": "t"}
    return [
        bands(metrics),
        bands(metrics, "perplexity_ratio", reference=1.0),
        figures.error_by_rank(tables["error_by_rank"], **options),
        figures.firing_rates(tables["firing_rates"], **options),
        figures.retrieval(metrics, title="t"),
    ]


def test_dots_stand_at_the_given_values(metrics):
    svg = bands(metrics)
    for index, sae in enumerate(SAES):
        given = [
            next(
                row["value"]
                for row in metrics
                if (row["name"], row["sae"], row["split"], row["band"])
                == ("fvu", sae, "subdomain_test", band)
            )
            for band in BANDS
        ]
        np.testing.assert_allclose(
            values_at(svg, drawn(svg, f"series-{index}")[:, 0]), given, atol=1e-4
        )


def test_a_band_too_small_to_say_anything_is_not_drawn(metrics):
    rows = [{**r, "num_tokens": 49} if r["band"] == BANDS[0] else r for r in metrics]
    texts = [t.text for t in ElementTree.fromstring(bands(rows)).iter(f"{SVG}text")]
    assert BANDS[0] not in texts
    assert BANDS[1] in texts


def test_dots_stand_where_they_should_beside_a_reference(metrics):
    svg = bands(metrics, "perplexity_ratio", reference=1.0)
    for index in range(4):
        shown = values_at(svg, drawn(svg, f"series-{index}")[:, 0])
        np.testing.assert_allclose(shown, 1.3 + index / 8, atol=1e-3)


def test_bands_run_from_rare_to_frequent_whatever_the_order_of_the_rows(metrics):
    svg = bands(metrics[::-1])
    texts = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text") if t.text in BANDS]
    assert texts == list(BANDS)


def test_ranks_stand_at_the_middle_of_their_bin_on_a_log_axis(tables):
    svg = figures.error_by_rank(
        tables["error_by_rank"], split="subdomain_test", styles=STYLES, title="t"
    )
    shown = values_at(svg, drawn(svg, "series-0")[:, 0], log=True)
    np.testing.assert_allclose(shown, math.sqrt(10) * np.array([1, 10, 100, 1000]), rtol=1e-3)


def test_firing_rates_tell_silent_from_rare(tables):
    svg = figures.firing_rates(
        tables["firing_rates"], split="subdomain_test", styles=STYLES, title="t"
    )
    assert "generalist: 111 silent, 222 rare" in svg
    assert ">silent<" in svg
    assert ">too rare to tell<" in svg


def test_retrieval_bars_carry_their_numbers(metrics):
    svg = figures.retrieval(metrics, title="t")
    for text in ("random 0.1000", "bm25 0.4170", "dense 0.7340"):
        assert f">{text}<" in svg


def test_drawings_parse_and_are_the_same_again(metrics, tables):
    first = everything(metrics, tables)
    assert first == everything(metrics, tables)
    for svg in first:
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        assert not list(root.iter(f"{SVG}script"))
        assert not list(root.iter(f"{SVG}style"))


def test_ids_are_unique_across_drawings_and_every_reference_is_inside(metrics, tables):
    svgs = everything(metrics, tables) + [bands(metrics, split="general_test")]
    seen = []
    for svg in svgs:
        elements = list(ElementTree.fromstring(svg).iter())
        own = [e.get("id") for e in elements if e.get("id")]
        used = [e.get(HREF, "")[1:] for e in elements if e.get(HREF)]
        used += re.findall(r"url\(#([^)]*)\)", svg)
        assert set(used) <= set(own)
        seen += own
    assert len(seen) == len(set(seen))


def test_an_sae_has_one_colour_in_every_drawing(metrics, tables):
    for svg in everything(metrics, tables)[:4]:
        assert all(STYLES[sae].colour.lower() in svg.lower() for sae in SAES)
    assert marks.styles(["specialist", "mine"])["specialist"] == STYLES["specialist"]


@pytest.mark.parametrize("name", ["_hidden", "$a^b$", "<b>&", "\x00\x1b\U0001f600", 'id="x"'])
def test_names_are_texts_and_nothing_else(metrics, name):
    for row in metrics:
        row["sae"] = name if row["sae"] == "control" else row["sae"]
    svg = bands(metrics, styles=marks.styles({row["sae"] for row in metrics if row["sae"]}))
    texts = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    shown = "???" if "\x00" in name else name
    assert shown in [(text or "").strip() for text in texts]


def test_no_data_is_no_drawing(metrics):
    options = {"split": "subdomain_test", "styles": STYLES, "title": "t"}
    assert bands([]) == ""
    assert bands([row for row in metrics if row["band"] == "all"]) == ""
    assert figures.error_by_rank([], **options) == ""
    assert figures.firing_rates([], **options) == ""
    assert figures.retrieval([], title="t") == ""


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_a_hole_in_the_data_is_left_out(metrics, tables, hole):
    metrics = [dict(row) for row in metrics if row["sae"] in (None, "generalist")]
    for row in metrics:
        if row["band"] == "10 - 100" or row.get("retriever") == "bm25":
            row.update(value=hole, low=hole)
    tables["error_by_rank"][1]["mean"] = hole
    svgs = everything(metrics, tables)
    assert len(drawn(svgs[0], "series-0")) == len(BANDS) - 1
    assert all(svgs)
    assert "nan" not in "".join(svgs).lower()
