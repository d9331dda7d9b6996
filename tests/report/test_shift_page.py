import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ssae.report import shift_figures
from ssae.report.candidates import write_candidates_page
from ssae.report.shift import print_shift, sentences, write_shift_report
from ssae.report.shift_table import COLUMNS, table_rows
from tests.report.reading import SVG, ParsedPage, check_inert, texts, values_at

GROUPS = ("nurse, female", "nurse, male", "surgeon, female", "surgeon, male")
CONTROL = "\x00-\x08\x0b-\x1f\x7f"
NAME = "</title><script>alert(3)</script>{{ 7*7 }}\x00\u202e"
HOSTILE = NAME + "\ud800"


class Page(ParsedPage):
    """Collect the cells of each table and the paragraphs, too."""

    def __init__(self, text: str) -> None:
        self.tables: list[list[list[str]]] = []
        self.paragraphs: list[str] = []
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "p":
            self.paragraphs.append("")

    def handle_data(self, data):
        super().handle_data(data)
        if {"td", "th"}.intersection(self.stack):
            self.tables[-1][-1][-1] += data
        if "p" in self.stack:
            self.paragraphs[-1] += data


def metric(name: str, value: float, spread: float = 0.02, **changes) -> dict:
    return {
        "name": name, "value": value, "low": value - spread, "high": value + spread, "sae": None,
        "split": "labelled", "band": "all", "method": "original", "arm": None, "width": None,
        "retrained": False, "most": None, "num_ablated": None, "by_seed": [value] * 5,
    } | changes  # fmt: skip


def method(start: float, **about) -> list[dict]:
    found = [metric(name, start + i / 100, **about) for i, name in enumerate(COLUMNS)]
    return found + [
        metric("group_accuracy", start + i / 20, band=group, **about)
        for i, group in enumerate(GROUPS)
    ]


def gain(name: str, value: float, spread: float, **about) -> dict:
    about = {"method": "shift", "arm": "second", "width": 1, "reference": "first"} | about
    return metric(f"{name}_gain", value, spread, **about)


def metrics() -> list[dict]:
    rows = method(0.41) + method(0.61, method="leace") + method(0.83, method="oracle")
    for i, arm in enumerate(("first", "second")):
        for j, width in enumerate((1, 0.125)):
            about = {"method": "shift", "arm": arm, "width": width, "num_ablated": 3.5 + i}
            rows += method(0.5 + i / 10 - j / 20, **about)
            for name in ("shift", "random"):
                rows += [
                    metric(
                        "worst_group_accuracy", 0.4 + 0.02 * k + 0.05 * i,
                        **about | {"method": name, "most": 2**k, "num_ablated": 2.0**k},
                    )
                    for k in range(4)
                ]  # fmt: skip
    rows += [
        gain("worst_group_accuracy", 0.1, 0.03),
        gain("worst_group_accuracy", 0.05, 0.06, width=0.125),
        gain("worst_group_accuracy", 0.9, 0.01, most=4),
        gain("label_accuracy", 0.7, 0.01),
        gain("label_accuracy", -0.012, 0.02, reference="original"),
        gain("label_accuracy", -0.034, 0.01, reference="original", arm="first"),
        gain("label_accuracy", -0.8, 0.01, reference="original", width=0.125),
        gain("worst_group_accuracy", 0.6, 0.01, reference="original"),
    ]
    return rows


def write(folder: Path, rows: list[dict] | None = None, **changes) -> Page:
    options = {
        "name": "study", "label": "profession", "spurious": "gender",
        "summary": {"language model": "tiny"}, "metrics": metrics() if rows is None else rows,
        "config": "k: 16",
    } | changes  # fmt: skip
    path = write_shift_report(folder, **options)
    assert path == folder / "shift.html"
    return Page(path.read_text(encoding="utf-8"))


def test_numbers_of_the_table_are_the_given_ones(tmp_path: Path):
    parsed = write(tmp_path)
    head, *body = parsed.tables[0]
    assert head == [
        "method", "profession", "gender", "worst group", "profession, ambiguous", "latents"
    ]  # fmt: skip
    rows = table_rows(metrics())
    assert len(body) == len(rows) == 7
    for row, cells in zip(rows, body, strict=True):
        assert cells[0].removesuffix(" *") == row.title
        assert cells[0].endswith(" *") == row.needs_labels
        for name, cell in zip(COLUMNS, cells[1:5], strict=True):
            number = row.numbers[name]
            expected = [100 * number[key] for key in ("value", "low", "high")]
            found = [float(part) for part in re.findall(r"[\d.]+", cell)]
            assert found == pytest.approx(expected, abs=0.051)
        assert cells[5] == ("" if row.num_ablated is None else f"{row.num_ablated:.1f}")


def test_accuracies_by_group_are_the_given_ones(tmp_path: Path):
    head, *body = write(tmp_path).tables[1]
    assert head == ["method", *GROUPS]
    for row, cells in zip(table_rows(metrics()), body, strict=True):
        assert cells[0] == row.title
        expected = [100 * row.groups[group]["value"] for group in GROUPS]
        assert [float(cell) for cell in cells[1:]] == pytest.approx(expected, abs=0.051)


def test_the_table_is_written_as_markdown_too(tmp_path: Path):
    parsed = write(tmp_path)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:-2]]
    assert [row[0] for row in cells] == [row[0] for row in parsed.tables[0][1:]]
    assert [row[3].split()[0] for row in cells] == [
        re.findall(r"[\d.]+", row[3])[0] for row in parsed.tables[0][1:]
    ]


def test_a_difference_whose_interval_holds_zero_is_a_tie():
    found = sentences(metrics(), "profession", "gender")
    assert found[0].startswith("The biased probe is right about 43.0 (41.0 - 45.0) % of its worst")
    own = [sentence for sentence in found if sentence.startswith("SHIFT:")]
    assert own == [
        "SHIFT: worst group 62.0 (60.0 - 64.0) % with the second, 52.0 (50.0 - 54.0) % with the "
        "first: +10.0 points (+7.0 to +13.0)."
    ]
    [narrow] = [sentence for sentence in found if sentence.startswith("SHIFT, 1/8 width")]
    assert narrow.endswith("+5.0 points (-1.0 to +11.0), a tie.")
    changes = [sentence for sentence in found if "changes profession accuracy" in sentence]
    assert [re.findall(r"the (\w+) changes", sentence)[0] for sentence in changes] == [
        "second", "first"
    ]  # fmt: skip
    assert changes[0].endswith("-1.2 points (-3.2 to +0.8), a tie.")
    assert changes[1].endswith("-3.4 points (-4.4 to -2.4).")
    assert len(found) == 5  # nothing of curves, nor of other widths


@pytest.mark.parametrize(
    ("value", "spread", "tie"),
    [(0.1, 0.1, True), (-0.1, 0.1, True), (0.1, 0.099, False), (-0.1, 0.099, False), (0, 0, True)],
)
def test_an_interval_that_touches_zero_is_a_tie(value: float, spread: float, tie: bool):
    rows = [row for row in metrics() if "reference" not in row]
    found = sentences([*rows, gain("worst_group_accuracy", value, spread)], "a", "b")
    assert found[-1].endswith(", a tie.") == tie


def test_every_sentence_is_on_the_page_and_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "300")
    parsed = write(tmp_path)
    print_shift(metrics(), "profession", "gender")
    printed = capsys.readouterr().out
    for sentence in sentences(metrics(), "profession", "gender"):
        assert sentence in parsed.paragraphs
        assert sentence in printed
    for row in table_rows(metrics()):
        [line] = [line for line in printed.splitlines() if line.startswith(f"{row.title} ")
                  and "points" not in line and "worst group" not in line]  # fmt: skip
        numbers = re.findall(r"(?<![\d/])\d+\.\d", line)
        expected = [f"{100 * row.numbers[name]['value']:.1f}" for name in COLUMNS]
        assert numbers[:4] == expected


def test_the_terminal_takes_names_as_they_are(capsys: pytest.CaptureFixture[str]):
    rows = [row | {"arm": row["arm"] and f"[red]{row['arm']}"} for row in metrics()]
    print_shift(rows, "[/b]job", "[bold]sex")
    printed = capsys.readouterr().out
    for name in ("[/b]job", "[bold]sex", "[red]second"):
        assert name in printed.replace("\n", "")


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path: Path):
    write(tmp_path)
    text = (tmp_path / "shift.html").read_text(encoding="utf-8")
    check_inert(text, own=("artifacts/shift/candidates.html",))


def test_hostile_texts_are_shown_and_not_obeyed(tmp_path: Path):
    rows = metrics()
    for row in rows:
        row["arm"] = row["arm"] and row["arm"] + NAME
        row["band"] = row["band"] if row["band"] == "all" else row["band"] + NAME
    parsed = write(
        tmp_path, rows, name=HOSTILE, label=f"label{NAME}", spurious=f"spurious{NAME}",
        summary={HOSTILE: HOSTILE}, config=HOSTILE,
    )  # fmt: skip
    assert "script" not in parsed.tags
    shown = "<script>alert(3)</script>{{ 7*7 }}\u2400<U+202E>"
    for before in ("label</title>", "spurious</title>", "second</title>", "male</title>"):
        assert before + shown in parsed.text
    assert f"</title>{shown}\ufffd" in parsed.text  # of the summary
    text = (tmp_path / "shift.html").read_text(encoding="utf-8")
    outside = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert not re.search(f"[{CONTROL}\u202a-\u202e\ud800-\udfff]", outside)
    assert not re.search(f"[{CONTROL}\ud800-\udfff]", text)


def test_a_name_does_not_reverse_the_reading_direction_of_a_figure():
    rows = [row | {"arm": row["arm"] and f"{row['arm']}\u202e"} for row in metrics()]
    for svg in (
        shift_figures.worst_group_by_method(table_rows(rows), "gender\u2066"),
        shift_figures.worst_group_by_latents(rows, "gender"),
    ):
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", svg)


def test_nothing_measured_is_said(tmp_path: Path):
    parsed = write(tmp_path, [])
    assert "Nothing was measured." in parsed.paragraphs
    assert "svg" not in parsed.tags
    assert shift_figures.worst_group_by_method([], "gender") == ""
    assert shift_figures.worst_group_by_latents(method(0.4), "gender") == ""


def test_without_curves_the_page_has_one_figure(tmp_path: Path):
    rows = [row for row in metrics() if row["most"] is None]
    assert write(tmp_path, rows).tags.count("svg") == 1
    assert write(tmp_path).tags.count("svg") == 2


def test_the_figure_of_methods_draws_every_worst_group_at_its_number():
    rows = table_rows(metrics())
    svg = shift_figures.worst_group_by_method(rows, "gender")
    found = [
        (float(use.attrib["y"]), float(use.attrib["x"]))
        for group in ElementTree.fromstring(svg).iter(f"{SVG}g")
        if re.search(r"-line2d_\d+$", group.get("id", ""))
        for use in group.iter(f"{SVG}use")
        if "marker" not in group.get("id", "")
    ]
    values = values_at(svg, np.array([x for _, x in sorted(found)]))
    for row in rows:
        worst = row.numbers["worst_group_accuracy"]["value"]
        assert np.abs(values - worst).min() < 2e-3
    titles = [row.title for row in rows]
    assert [text for text in texts(svg) if text in titles] == titles
    assert "without gender in training" in texts(svg)


def test_figures_take_hostile_names(tmp_path: Path):
    rows = [row | {"arm": row["arm"] and f"_{row['arm']}$x${HOSTILE}"} for row in metrics()]
    for svg in (
        shift_figures.worst_group_by_method(table_rows(rows), HOSTILE),
        shift_figures.worst_group_by_latents(rows, HOSTILE),
    ):
        root = ElementTree.fromstring(svg)
        assert not [element for element in root.iter() if element.tag.endswith("script")]
        assert "$x$" in "".join(text.text or "" for text in root.iter(f"{SVG}text"))


def latent(number: int, **changes) -> dict:
    context = {
        "tokens": ["The", "<script>alert(1)</script>", "\n", "end"], "peak": 1, "activation": 2.5,
        "activations": [0.0, 2.5, 0.0, 1.0], "source": '"><img src=x onerror=alert(2)>',
    }  # fmt: skip
    return {
        "latent": number, "ablate": number % 2 == 0, "effect": 0.0123, "folds": 2,
        "selectivity": 0.9, "auroc": 0.987,
        "cosine": 0.44, "tokens": ["<b>she</b>"], "contexts": [context],
    } | changes  # fmt: skip


def test_the_page_of_candidates_shows_what_a_latent_reads_and_obeys_nothing(tmp_path: Path):
    sections = [
        {"arm": HOSTILE, "width": 1, "seed": 3, "hookpoint": "layers.2", "sae": "0f",
         "latents": [latent(12), latent(7, cosine=None, contexts=[])]},
        {"arm": "second", "width": 0.125, "seed": 0, "hookpoint": "layers.2", "sae": "0f",
         "latents": []},
    ]  # fmt: skip
    path = tmp_path / "candidates.html"
    write_candidates_page(path, "study", sections)
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert not {"script", "img", "b0"}.intersection(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    for shown in (
        "<script>alert(1)</script>", "<b>she</b>", '"><img src=x onerror=alert(2)>',
        "1 of 2 ablated", "0 of 0 ablated", "second, 1/8 width, seed 0", "AUROC 0.99",
        "cosine 0.44", "effect 0.0123", "It never fires on the texts looked at.",
        "{{ 7*7 }}\u2400<U+202E>\ufffd",
    ):  # fmt: skip
        assert shown in parsed.text
    assert parsed.text.index("12 ablated") < parsed.text.index("7 kept")
    assert '<i class="peak" style="--a:1.00" title="2.500">&lt;script&gt;' in text
    assert '<i style="--a:0.40" title="1.000">end</i>' in text


def test_few_seeds_and_nothing_to_ablate_are_said_before_any_comparison():
    rows = [{**row, "by_seed": row["by_seed"][:2]} for row in metrics()]
    for row in rows:
        if row.get("method") == "shift" and row.get("arm") == "second":
            row["num_ablated"] = 0.0
    found = sentences(rows, "profession", "gender")
    assert found[1].startswith("Only 2 of the 5 seeds")
    assert any("SHIFT, second: no latent is ablated" in sentence for sentence in found)
