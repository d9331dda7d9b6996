import pytest

from ssae.report.shift_table import (
    COLUMNS,
    as_markdown,
    headings,
    percent,
    spell_width,
    table_rows,
    title,
)

GROUPS = ("nurse, female", "nurse, male", "surgeon, female", "surgeon, male")


def metric(name: str, value: float | None, **changes) -> dict:
    values = {
        "name": name, "value": value, "low": None, "high": None, "sae": None, "split": "labelled",
        "band": "all", "method": "original", "arm": None, "width": None, "retrained": False,
        "most": None, "num_ablated": None,
    }  # fmt: skip
    if value is not None:
        values |= {"low": value - 0.02, "high": value + 0.01}
    return values | changes


def method(start: float, **about) -> list[dict]:
    """All numbers of a method, every one another."""
    found = [metric(name, start + i / 1000, **about) for i, name in enumerate(COLUMNS)]
    return found + [
        metric("group_accuracy", start + i / 200, band=group, **about)
        for i, group in enumerate(GROUPS)
    ]


ABOUT = [
    {"method": "leace"},
    {"method": "leace", "retrained": True},
    {"method": "random", "arm": "second", "width": 1, "num_ablated": 5.5},
    {"method": "shift", "arm": "second", "width": 0.125, "num_ablated": 3.0},
    {"method": "shift", "arm": "first", "width": 0.125, "num_ablated": 2.0},
    {"method": "shift", "arm": "first", "width": 1, "retrained": True, "num_ablated": 4.0},
    {"method": "shift", "arm": "second", "width": 1, "retrained": True, "num_ablated": 5.5},
    {"method": "shift", "arm": "first", "width": 1, "num_ablated": 4.0},
    {"method": "shift", "arm": "second", "width": 1, "num_ablated": 5.5},
    {"method": "feature_skyline", "arm": "second", "width": 1, "num_ablated": 5.5},
    {"method": "oracle"},
    {"method": "words_deleted"},
    {"method": "original"},
    {"method": "something_new"},
]


def metrics() -> list[dict]:
    rows = [row for i, about in enumerate(ABOUT) for row in method(0.4 + i / 50, **about)]
    rows.append(metric("worst_group_accuracy", 0.111, **ABOUT[8] | {"most": 4}))
    rows.append(metric("worst_group_accuracy_gain", 0.222, **ABOUT[8] | {"reference": "first"}))
    return [*rows, {"name": "fvu", "value": 0.333, "low": None, "high": None, "band": "all"}]


def test_rows_stand_in_the_order_of_the_paper_and_controls_last():
    found = [row.title for row in table_rows(metrics())]
    assert found == [
        "biased probe",
        "feature skyline, second",
        "SHIFT, second", "SHIFT, first",
        "SHIFT + retrain, second", "SHIFT + retrain, first",
        "SHIFT, second, 1/8 width", "SHIFT, first, 1/8 width",
        "oracle: a probe trained on balanced data",
        "random latents, as many, second",
        "words deleted from the text",
        "LEACE", "LEACE + retrain",
        "something_new",
    ]  # fmt: skip
    backwards = [row for about in ABOUT[::-1] for row in method(0.5, **about)]
    assert [row.title for row in table_rows(backwards) if "SHIFT" in row.title][:2] == [
        "SHIFT, second", "SHIFT, first"
    ]  # fmt: skip


def test_every_number_stands_in_its_row_and_column():
    rows = {row.title: row for row in table_rows(metrics())}
    for i, about in enumerate(ABOUT):
        own = title(about["method"], about.get("arm"), about.get("width"), "retrained" in about)
        row = rows[own]
        values = {name: number["value"] for name, number in row.numbers.items()}
        assert values == {name: 0.4 + i / 50 + j / 1000 for j, name in enumerate(COLUMNS)}
        values = {name: number["value"] for name, number in row.groups.items()}
        assert values == {name: 0.4 + i / 50 + j / 200 for j, name in enumerate(GROUPS)}
        assert row.num_ablated == about.get("num_ablated")


def test_points_of_curves_and_gains_are_no_rows():
    assert len(table_rows(metrics())) == len(ABOUT)
    assert table_rows(metrics()[-3:]) == []
    assert table_rows([]) == []


def test_what_is_given_labels_and_what_is_a_control_is_marked():
    rows = table_rows(metrics())
    assert {row.title for row in rows if row.needs_labels} == {
        "feature skyline, second", "oracle: a probe trained on balanced data", "LEACE",
        "LEACE + retrain",
    }  # fmt: skip
    assert {row.title for row in rows if row.is_control} == {
        "random latents, as many, second", "words deleted from the text", "LEACE",
        "LEACE + retrain",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("width", "expected"),
    [(0.125, "1/8 width"), (1 / 3, "1/3 width"), (0.3, "0.3 width"), (0.75, "0.75 width"),
     (1e-3, "1/1000 width")],
)  # fmt: skip
def test_widths_are_fractions_where_they_are_one(width: float, expected: str):
    assert spell_width(width) == expected
    assert title("shift", "first", width, False) == f"SHIFT, first, {expected}"


@pytest.mark.parametrize("width", [None, 1, 1.0])
def test_the_whole_width_is_not_spelt(width):
    assert title("shift", "first", width, False) == "SHIFT, first"


def test_accuracies_are_in_per_cent_with_their_interval():
    assert percent(metric("x", 0.885)) == "88.5 (86.5 - 89.5)"
    assert percent(metric("x", 0.885), with_interval=False) == "88.5"
    assert percent(metric("x", 0.885) | {"low": None}) == "88.5"
    assert percent(metric("x", None)) == percent(None) == "-"
    assert percent(metric("x", 0.0) | {"low": 0.0, "high": 0.0}) == "0.0 (0.0 - 0.0)"


def test_markdown_has_a_line_for_each_row_with_the_given_numbers():
    rows = table_rows(metrics())
    lines = as_markdown(rows, "profession", "gender").splitlines()
    names = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert names == [
        "method", "profession", "gender", "worst group", "profession, ambiguous", "latents"
    ]  # fmt: skip
    assert lines[1] == "|---" * 6 + "|"
    body = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[2 : 2 + len(rows)]
    ]
    for row, cells in zip(rows, body, strict=True):
        assert cells[0].removesuffix(" *") == row.title
        assert cells[0].endswith(" *") == row.needs_labels
        values = [f"{100 * row.numbers[name]['value']:.1f}" for name in COLUMNS]
        assert [cell.split(" ")[0] for cell in cells[1:5]] == values
        assert cells[5] == ("" if row.num_ablated is None else f"{row.num_ablated:.1f}")
    assert lines[2 + len(rows)] == ""
    assert lines[-1] == "\\* is given gender, or balanced data, in training."


def test_a_number_that_is_missing_leaves_its_cell():
    rows = table_rows([row for row in metrics() if row["name"] != "spurious_accuracy"])
    for line in as_markdown(rows, "profession", "gender").splitlines()[2 : 2 + len(rows)]:
        assert line.split("|")[3].strip() == "-"


def test_a_bar_in_a_name_makes_no_column_of_the_markdown_table():
    rows = table_rows(method(0.5, method="shift", arm="a|b", width=1, num_ablated=1.0))
    lines = as_markdown(rows, "job|title", "gender").splitlines()
    assert len(lines) == 5
    for line in lines[:3]:
        assert line.replace("\\|", "").count("|") == 7


def test_headings_name_label_and_attribute():
    assert headings("job", "sex") == {
        "label_accuracy": "job", "spurious_accuracy": "sex", "worst_group_accuracy": "worst group",
        "ambiguous_accuracy": "job, ambiguous",
    }  # fmt: skip
