import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssae.sweep.figure import pareto_figure, pareto_front


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
