import math

import pytest

from ssae.report.change import Change, compare


def row(name, sae, value, low=None, high=None, **more):
    where = {"split": "subdomain_test", "band": "all"}
    return {"name": name, "sae": sae, "value": value, "low": low, "high": high} | where | more


def test_a_rise_from_zero_has_no_per_cent():
    rows = [row("tail_recall", "specialist", 0.25), row("tail_recall", "generalist", 0.0)]
    change = compare(rows, "tail_recall", "subdomain_test", "generalist")
    assert change is not None
    assert change.relative == math.inf
    assert change.direction == 1
    assert change.text == "tail recall is higher, 0.2500 against 0.0000"
    assert Change("fvu", "control", 0.0, 0.0, None).direction == 0


def test_without_one_of_the_numbers_there_is_no_change():
    rows = [row("fvu", "specialist", 0.25), row("fvu", "generalist", None)]
    assert compare(rows, "fvu", "subdomain_test", "generalist") is None
    assert compare(rows, "fvu", "subdomain_test", "control") is None


@pytest.mark.parametrize(
    ("low", "high", "unclear"), [(0.01, 0.2, False), (-0.01, 0.2, True), (-0.2, -0.1, False)]
)
def test_the_interval_of_the_paired_difference_decides(low, high, unclear):
    rows = [
        row("tail_recall", "specialist", 0.3, 0.1, 0.5),
        row("tail_recall", "control", 0.2, 0.1, 0.5),
        row("tail_recall_difference", "specialist", 0.1, low, high, reference="control"),
    ]
    change = compare(rows, "tail_recall", "subdomain_test", "control")
    assert change is not None
    assert change.unclear is unclear
