import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.report import marks
from ssae.report.svg import canvas
from ssae.report.table import SAES


def test_rows_are_drawn_in_the_order_of_the_saes_and_of_one_split_only():
    rows = [{"sae": sae, "split": split} for sae in SAES[::-1] for split in ("a", "b")]
    found = marks.drawn_rows(rows, "b", ["control", "specialist"])
    expected = [{"sae": sae, "split": "b"} for sae in ("control", "specialist")]
    assert found == expected
    assert marks.drawn_rows([{"sae": "control"}], "b", SAES) == [{"sae": "control"}]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=50), st.integers(0, 16))
def test_the_share_above_an_edge_is_that_of_the_values(values, edge):
    edges = np.linspace(-4, 4, 17)
    counts, _ = np.histogram(values, edges)
    row = {"bin_edges": edges.tolist(), "counts": counts.tolist()}
    above = sum(value >= edges[edge] for value in values) if edge < 16 else 0
    assert marks.share_above(row, edges[edge]) == pytest.approx(above / len(values))


def test_occupied_is_the_narrowest_range_that_holds_everything():
    first = {"bin_edges": [0, 1, 2, 3], "counts": [0, 4, 0]}
    second = {"bin_edges": [0, 2, 4, 6], "counts": [0, 1, 0]}
    assert marks.occupied([first]) == (1, 2)
    assert marks.occupied([first, second]) == (1, 4)


def test_an_sae_keeps_its_style_whatever_stands_beside_it():
    assert marks.styles(["specialist", "mine"])["specialist"] == marks.styles(SAES)["specialist"]
    many = marks.styles([f"sae{i}" for i in range(20)])
    assert len(many) == 20


@pytest.mark.parametrize(("high", "fewest"), [(3.0, 2), (40.0, 4), (1e6, 3)])
def test_a_logarithmic_axis_has_numbers_however_short_it_is(high, fewest):
    _, axes = canvas(3.0)
    axes.plot([1.5, high], [1.5, high])
    marks.log_numbers(axes)
    for axis, view in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        numbers = [tick for tick in axis.get_majorticklocs() if view[0] <= tick <= view[1]]
        assert fewest <= len(numbers) < 10
