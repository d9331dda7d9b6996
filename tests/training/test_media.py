"""Tables, histograms and drawings as W&B takes them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from ssae.training.media import as_figures, as_histograms, as_table, as_tables, log_media

PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
VALUES = PLAIN | st.lists(st.integers(0, 9), max_size=2) | st.dictionaries(st.just("a"), PLAIN)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_table_holds_every_value_of_every_row(rows: list[dict[str, Any]]):
    table = as_table(rows)
    assert set(table.columns) == {key for row in rows for key in row}
    for row, cells in zip(rows, table.data, strict=True):
        for name, cell in zip(table.columns, cells, strict=True):
            value = row.get(name)
            nested = isinstance(value, list | dict)
            assert (json.loads(cell) if nested else cell) == value


def test_rows_that_are_no_mappings_are_one_column():
    table = as_table([3, "x"])
    assert (table.columns, table.data) == (["value"], [[3], ["x"]])


def test_a_mapping_is_a_table_of_one_row_and_an_empty_table_is_none():
    tables = as_tables({"spread": {"mean": 0.5}, "concepts": [], "latent_ranks": [{"a": 1}] * 3})
    assert {name: len(table.data) for name, table in tables.items()} == {
        "tables/spread": 1, "tables/latent_ranks": 3,
    }  # fmt: skip


def test_rows_with_counts_and_edges_are_histograms_named_by_their_texts():
    row = {"sae": "x", "split": "general_test", "counts": [1, 4], "bin_edges": [-2.0, -1.0, 0.0]}
    found = as_histograms({"rates": [row, {"sae": "y", "counts": []}], "other": [{"counts": 3}, 5]})
    assert set(found) == {"rates/x/general_test"}
    [histogram] = found.values()
    assert (list(histogram.histogram), list(histogram.bins)) == ([1, 4], [-2.0, -1.0, 0.0])


def test_histograms_that_a_row_holds_are_named_by_their_key():
    own = {"counts": [2], "bin_edges": [0.0, 1.0]}
    row = {"sae": "x", "split": "s", "entropy": own, "points": [[1, 2]], "ranks": {"low": [1]}}
    assert set(as_histograms({"spread": [row]})) == {"spread/x/s/entropy"}


def test_the_drawings_of_a_page_are_found_by_their_titles():
    page = '<p>a</p><svg aria-label="l0: &amp; x"><g></g></svg><svg><g></g></svg>'
    found = as_figures(page)
    assert list(found) == ["figures/l0_amp_x"]
    [html] = found.values()
    assert Path(str(html._path)).read_text() == '<svg aria-label="l0: &amp; x"><g></g></svg>'


def test_media_are_not_even_made_for_another_logger(tmp_path: Path):
    log_media(CSVLogger(tmp_path), lambda: pytest.fail("made"))
    log_media(None, lambda: pytest.fail("made"))


def test_media_that_cannot_be_made_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def make() -> dict[str, Any]:
        raise RuntimeError("no such table")

    log_media(WandbLogger(project="ssae", save_dir=tmp_path, offline=True), make)
    assert "no such table" in caplog.text
