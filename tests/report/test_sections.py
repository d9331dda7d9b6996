import pytest

from ssae.report import sections
from ssae.report.marks import styles
from ssae.report.table import SAES

STYLES = styles(SAES)


def test_figures_come_split_beside_split_and_name_the_papers(tables):
    found = sections.drawings(sections.TAIL, tables, STYLES)
    assert [drawing.caption.split("(")[-1] for drawing in found] == [
        *["Figures 2, 11 and 14 of arXiv 2411.00743.)"] * 2,
        *["Figure 6 of arXiv 2411.00743.)"] * 2,
    ]
    splits = [next(s for s in sections.SPLITS if f": {s}" in drawing.svg) for drawing in found]
    assert splits == [*sections.SPLITS, *sections.SPLITS]


def test_only_what_was_measured_is_drawn(tables):
    assert sections.drawings(sections.LATENTS, {}, STYLES) == []
    tables["latent_ranks"] = [r for r in tables["latent_ranks"] if r["split"] == "general_test"]
    found = sections.drawings(sections.LATENTS, {"latent_ranks": tables["latent_ranks"]}, STYLES)
    assert len(found) == 1
    assert "general_test" in found[0].svg


def test_what_would_cover_each_other_is_drawn_of_a_pair(tables):
    plan = next(plan for plan in sections.LATENTS if plan.pair)
    (drawing,) = sections.drawings([plan], tables, STYLES)
    assert "(generalist)" in drawing.caption
    assert "(specialist)" in drawing.caption
    assert "control" not in drawing.svg + drawing.caption
    only = {name: STYLES[name] for name in ("control", "specialist_erm")}
    (drawing,) = sections.drawings([plan], tables, only)
    assert ">control<" in drawing.svg
    assert ">specialist_erm<" in drawing.svg


def test_the_tail_table_compares_with_the_generalist(metrics):
    rows = sections.tail_table(metrics, SAES)
    assert [(row["sae"], row["split"]) for row in rows[:5]] == [
        *((sae, "subdomain_test") for sae in SAES), ("generalist", "general_test")
    ]  # fmt: skip
    recall, difference, error, ratio = rows[3]["cells"]
    assert (recall["value"], recall["best"]) == (pytest.approx(0.34), True)
    assert (error["value"], error["best"]) == (pytest.approx(0.16), True)
    assert (difference["value"], difference["low"]) == (pytest.approx(0.09), pytest.approx(0.07))
    assert ratio["value"] == pytest.approx(8 / 11)
    assert [cell["value"] for cell in rows[0]["cells"]][1::2] == [None, None]
    assert sections.tail_table([r for r in metrics if "tail" not in r["name"]], SAES) == []


def test_concepts_are_listed_from_the_largest_and_the_best_sae_is_marked(metrics, tables):
    found = sections.concepts(metrics, tables["concepts"], SAES)
    assert found is not None
    assert [row["num_documents"] for row in found["rows"]] == [90, 83, 76]
    first, _, last = found["rows"]
    assert [first["saes"][sae]["best"] for sae in SAES] == [False, False, False, True]
    assert last["saes"]["control"]["auroc"] is None
    assert found["summary"]["specialist"][0]["value"] == pytest.approx(0.6)
    assert sections.concepts([], [], SAES) is None


def test_of_very_many_concepts_the_largest_are_shown(metrics):
    rows = [
        {"sae": "control", "concept": f"c{i}", "num_documents": i, "auroc": 0.5, "f1": 0.5}
        for i in range(100)
    ]
    found = sections.concepts(metrics, rows, SAES)
    assert found is not None
    assert (found["num"], len(found["rows"])) == (100, sections.MOST_CONCEPTS)
    assert found["rows"][0]["concept"] == "c99"
