import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ssae.report import theory_figures
from ssae.report.theory import (
    absorption_sentences,
    signed_sentences,
    span,
    width_sentences,
    write_theory_page,
)
from ssae.report.theory_limits import limit_sentences, merging_sentences, violation_sentences
from ssae.theory.__main__ import main
from ssae.theory.absorption import Prediction
from ssae.theory.antipodal import AntipodalPair
from ssae.theory.coarsening import Merge
from ssae.theory.demonstration import Absorbed, Absorption, Demonstration, Signed, Widened
from ssae.theory.limits import Limit, Merging
from ssae.theory.splits import Child, Family
from tests.report.reading import ParsedPage, check_inert, drawn, texts, values_at


class Page(ParsedPage):
    """Collect the paragraphs and cells, too."""

    def __init__(self, text: str) -> None:
        self.found: dict[str, list[str]] = {"p": [], "td": [], "th": []}
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag in self.found:
            self.found[tag].append("")

    def handle_data(self, data):
        super().handle_data(data)
        for tag in set(self.found).intersection(self.stack):
            self.found[tag][-1] += data


def prediction(concept: int, fate: str, children=(), parents=()) -> Prediction:
    return Prediction(concept, fate, 0.1, tuple(children), tuple(parents), (), 0.5)


def absorption(spread: float, child: float = 0.7, silence: float = 0.8, **changes) -> Absorption:
    predictions = [
        prediction(0, "absorbed", (1, 2)), prediction(1, "child", (), (0,)),
        prediction(2, "child", (), (0,)), prediction(3, "held"),
    ]  # fmt: skip
    found = [
        Absorbed(
            [0.98, child, child - 0.01 * number, 0.03 - 0.02 * number], True, [silence, silence]
        )
        for number in range(3)
    ]
    values = {"child_rate": 0.5, "spread": spread, "predictions": predictions}
    values |= {"expected": [1.0, 0.7071, 0.7071, 0.0], "found": found}
    return Absorption(**values | changes)


def signed(lam: float, off: float = 0.001, joint: float = 0.0, **changes) -> Signed:
    expected = math.erfc(lam / 2**0.5) / 2
    pair = AntipodalPair(0, 1, -0.99, (expected, expected), joint, 0.5, 0.97)
    values = {"lam": lam, "expected": expected, "densities": [expected, expected + off]}
    return Signed(**values | {"pairs": [pair], "num_others": 0} | changes)


def widths() -> list[Widened]:
    child = [Child(k, 0.9 - 0.1 * k, 0.75, 0.5, 10) for k in range(2)]
    return [
        Widened([0, None], [1, 0], 0.5, []),
        Widened([0, 0, 1], [2, 1], 0.3, [Family(0, child, 20, 1.0, 0.125, 8)]),
        Widened(
            [0, 0, 1, 1], [2, 2], 0.2, [Family(j, child[:1], 9, 1.0, math.nan, 0) for j in (0, 1)]
        ),
    ]


def limit(num: int, excess: float, least: float = 0.999, **changes) -> Limit:
    values = {"num_directions": num, "sae": excess + 0.02, "optimal_codes": excess + 0.01}
    values |= {"dictionary": excess, "cosines": [1.0, 1.0, least], "code": 0.987}
    return Limit(**values | changes)


def merging(*merges: tuple[int, int, int], num_used=(6, 4, 2, 1)) -> Merging:
    """Six tokens of two families; merges are (step, child, parent)."""
    found = [Merge(step, child, parent, 0.75, 1) for step, child, parent in merges]
    return Merging([0, 0, 0, 1, 1, 1], [0.1, 0.3, 0.6, 0.9], list(num_used), found, 9e-5)


def demonstration(**changes) -> Demonstration:
    values = {
        "seed": 7, "num_steps": 300, "lam": 0.1,
        "absorptions": [absorption(0.5, silence=0.2), absorption(0.05)],
        "signed": [signed(0.1), signed(0.6)], "num_control": 0, "widths": {0.5: widths()},
        "limits": [limit(2, 0.8), limit(3, 0.1), limit(6, 0.0)],
        "merging": merging((1, 1, 0), (1, 4, 3), (3, 3, 0)),
        "violations": {"trained SAE": [0.01, 0.05, 0.4], "random directions": [9.0, 12.5, 15.0]},
    }  # fmt: skip
    return Demonstration(**values | changes)


def write(folder: Path, found: Demonstration | None = None) -> Page:
    path = write_theory_page(folder, found or demonstration())
    assert path == folder / "theory.html"
    return Page(path.read_text(encoding="utf-8"))


def said(found: Demonstration) -> list[str]:
    return [
        *absorption_sentences(found.absorptions),
        *signed_sentences(found.signed, found.num_control),
        *width_sentences(found.widths),
        *limit_sentences(found.limits),
        *merging_sentences(found.merging),
        *violation_sentences(found.violations),
    ]


def test_every_sentence_is_on_the_page_before_its_numbers(tmp_path: Path):
    parsed = write(tmp_path)
    for sentence in said(demonstration()):
        assert sentence in parsed.found["p"]
    assert (parsed.tags.count("h2"), parsed.tags.count("table")) == (6, 5)
    assert parsed.tags.count("svg") == 5
    assert any("300 steps each" in text for text in parsed.found["p"])
    order = [tag for tag in parsed.tags if tag in ("h2", "p", "svg", "table")]
    for table in (i for i, tag in enumerate(order) if tag == "table"):
        part = order[max(i for i in range(table) if order[i] == "h2") : table]
        assert part[1] == "p"
        assert part.index("p") < (part.index("svg") if "svg" in part else table)


def test_directions_that_merge_are_told_from_those_that_vanish():
    # The last merge is of two families: with one direction left that cannot be otherwise.
    [text] = merging_sentences(merging((1, 1, 0), (1, 4, 3), (2, 2, 0), (3, 3, 0), (3, 0, -1)))
    assert "6 directions in use become 1" in text
    assert "families, 2, 3 gave way to others, 3 of them to one of their own family" in text
    assert "by chance it would be 40%" in text
    [text] = merging_sentences(merging((1, 1, 3), (1, 4, 3)))
    assert "2 gave way to others, 1 of them to one of their own family" in text


def test_lines_of_directions_end_where_they_merge():
    svg = theory_figures.merging(merging((1, 1, 0), (2, 4, 3)))
    root = ElementTree.fromstring(svg)
    assert len(root.findall(".//*[@d]")) >= 8  # six directions and two merges
    assert "price of a direction" in " ".join(texts(svg))


def test_the_numbers_of_the_tables_are_the_given_ones(tmp_path: Path):
    cells = write(tmp_path).found["td"]
    for number in (
        "3 of 3", "0.68 to 0.70", "-0.01 to 0.03", "0.20", "0.80", "0.460 to 0.461", "0.97",
        "2 of 1", "0.12", "50.00 %", "82.00 %", "0.999", "0.987", "12.500", "0.050",
    ):  # fmt: skip
        assert number in cells


def test_the_page_is_one_well_formed_file_that_fetches_and_runs_nothing(tmp_path: Path):
    write(tmp_path)
    text = (tmp_path / "theory.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["theory.html"]
    check_inert(text)
    assert "{{" not in text


def test_children_that_turn_as_predicted_are_told_from_those_that_do_not():
    assert "3 of 3 SAEs, as predicted" in absorption_sentences([absorption(0.5)])[0]
    assert (
        "6 of 6 children turned (cosine 0.68 to 0.70, predicted 0.71: -0.01 on average)"
        in (absorption_sentences([absorption(0.5)])[0])
    )
    [still] = absorption_sentences([absorption(0.5, child=0.36)])
    assert "4 of 6 children turned" in still  # 0.36 and 0.35 and 0.34, half of 0.7071 between
    assert "not all as predicted" in still
    loud = absorption(0.5)
    loud = loud._replace(found=[Absorbed([1.0, 0.7, 0.7, -0.4], True, [0.5, 0.5])])
    [sentence] = absorption_sentences([loud])
    assert "0 of 1 held ones did not (at most 0.40), not all as predicted" in sentence


@pytest.mark.parametrize(("fate", "own", "agrees"), [
    ("split", False, True), ("split", True, False), ("absorbed", True, True),
    ("absorbed", False, False),
])  # fmt: skip
def test_a_latent_of_the_parents_own_is_weighed_by_its_fate(fate: str, own: bool, agrees: bool):
    toy = absorption(0.5)
    found = [found._replace(has_own=own, silent=[math.nan] * 2) for found in toy.found]
    first = prediction(0, fate, (1, 2))
    toy = toy._replace(found=found, predictions=[first, *toy.predictions[1:]])
    [sentence] = absorption_sentences([toy])
    assert sentence.endswith("as predicted." if agrees else "which is not predicted.")
    assert f"in {3 * own} of 3 SAEs" in sentence


def test_the_silence_of_parents_is_compared_between_spreads():
    last = absorption_sentences([absorption(0.5, silence=0.25), absorption(0.05)])[-1]
    assert "silent on 80% of its children's tokens at spread 0.05 and on 25% at spread 0.5" in last
    assert last.endswith("fires on to correct the length.")
    last = absorption_sentences([absorption(0.5), absorption(0.05, silence=0.25)])[-1]
    assert last.endswith("was expected, and is not so.")


def test_densities_and_pairs_are_compared_with_the_prediction():
    found = signed_sentences([signed(0.1)], 0)
    assert found[0].endswith("1 of 1 SAEs, as predicted.")
    assert found[1].endswith("is within 3 sampling errors.")
    assert "predicted are densities of 0.460" in found[1]
    assert found[-1].endswith("as predicted.")
    found = signed_sentences([signed(0.1, off=-0.05), signed(0.3, pairs=[])], 2)
    assert found[0].endswith("1 of 2 SAEs, though it was predicted of all.")
    assert "-0.050, is more than 3 sampling errors, not as predicted" in found[1]
    assert found[-1].endswith("where none was predicted.")
    assert "against the prediction" in signed_sentences([signed(0.1, joint=0.2)], 0)[-2]


def test_growth_and_falls_are_told_as_they_are():
    found = width_sentences({0.5: widths()})
    assert found[0].startswith("Spread 0.5: SAEs of 2, 3, 4 latents hold 0.5, 1.5, 2.0 latents")
    assert found[0].endswith("which grows with width, as predicted.")
    assert found[1] == (
        "From 2 to 3: 1 of 1 latents split, into 2.0 children on average; mean absorbed share 0.12."
    )
    assert found[2].endswith("mean absorbed share -.")
    assert found[-1].endswith("it falls with width.")
    found = width_sentences({0.5: widths()[::-1]})
    assert found[0].endswith("does not grow at every step.")
    assert found[-1].endswith("it does not fall at every step.")


def test_an_objective_below_the_wide_limit_is_said_to_contradict_theory():
    rows = [limit(2, 0.8), limit(3, 0.1), limit(6, 0.0)]
    found = limit_sentences(rows)
    assert found[0].endswith("none is below it, as predicted.")
    assert found[1].endswith("ever closer.")
    assert len(found) == 5  # of 3 and of 6 directions for 3 points
    assert all("3 points have a direction of their own" in sentence for sentence in found[3:])
    found = limit_sentences([limit(2, 0.8), limit(3, 0.9), limit(6, -0.1, least=0.5)])
    assert found[0].endswith("it is below it, which is not predicted.")
    assert found[1].endswith("though not closer at every step.")
    assert "2 points have a direction of their own" in found[-1]
    assert "where all were predicted" in found[-1]


def test_the_dictionary_with_the_smaller_violations_is_named():
    found = violation_sentences(demonstration().violations)
    assert found[-1].endswith("the trained SAE.")
    swapped = {"trained SAE": [1.0, 20.0, 30.0], "random directions": [9.0, 12.5, 15.0]}
    assert violation_sentences(swapped)[-1].endswith("the random directions.")


def test_spans_leave_out_what_is_no_number():
    assert span([math.nan, 0.5]) == "0.50"
    assert span([math.nan]) == "-"


def test_figures_draw_the_measured_numbers():
    rows = [absorption(0.5), absorption(0.05)]
    svg = theory_figures.turned(rows)
    found = values_at(svg, drawn(svg, "series-1")[:, 0])
    expected = [f.cosines[c] for toy in rows for c in range(4) for f in toy.found]
    assert found == pytest.approx(expected, abs=3e-3)
    assert values_at(svg, drawn(svg, "series-0")[:, 0]) == pytest.approx(
        [value for toy in rows for value in toy.expected], abs=3e-3
    )
    assert "rate 0.5, spread 0.05: child 2" in texts(svg)
    assert "rate 0.5, spread 0.5: concept 3" in texts(svg)
    svg = theory_figures.densities([signed(0.1), signed(0.6)])
    places = drawn(svg, "series-1")
    assert values_at(svg, places[:, 0]) == pytest.approx([0.1, 0.1, 0.6, 0.6], abs=3e-3)
    expected = [density for row in (signed(0.1), signed(0.6)) for density in row.densities]
    assert values_at(svg, places[:, 1], name="y") == pytest.approx(expected, abs=2e-3)
    svg = theory_figures.limit([limit(2, 0.8), limit(3, 0.1)], 3)
    places = drawn(svg, "series-2")
    assert values_at(svg, places[:, 1], name="y") == pytest.approx([1.8, 1.1], abs=5e-3)


def test_the_tree_draws_every_latent_that_fires_and_a_line_to_each_child():
    svg = theory_figures.tree(widths(), 0.5)
    assert [len(drawn(svg, f"series-{number}")) for number in range(3)] == [1, 3, 4]
    root = ElementTree.fromstring(svg)
    lines = [group for group in root.iter() if re.search(r"-line2d_\d+$", group.get("id", ""))]
    with_colour = [line for line in lines if "stroke-opacity: 0.35" in ElementTree.tostring(
        line, encoding="unicode")]  # fmt: skip
    assert len(with_colour) == 4


@pytest.mark.slow
def test_the_command_writes_the_same_page_twice(tmp_path: Path):
    command = [sys.executable, "-m", "ssae.theory"]
    pages = []
    for name in ("a", "b"):
        words = [str(tmp_path / name), "--seed", "3", "--steps", "20"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
        assert "theory.html" in done.stdout.replace("\n", "")
        assert "max_steps" not in done.stderr
        assert "GPU" not in done.stderr
        pages.append((tmp_path / name / "theory.html").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--steps", "0"], ["--seed", "x"]])
def test_numbers_out_of_range_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr().err
    assert "must be a whole number of at least" in said
    assert repr(words[1]) in said
