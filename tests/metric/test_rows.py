import json
from typing import Any

import numpy as np
import pytest

from ssae.metric.concept import ConceptScores
from ssae.metric.formulas import FORMULAS, fvu, perplexity_spliced
from ssae.metric.frequency import BANDS
from ssae.metric.latents import silence_counts
from ssae.metric.measures import Measured
from ssae.metric.rows import (
    concept_metrics,
    count_rows,
    forgetting_rows,
    ratio_rows,
    row,
    tail_rows,
)
from ssae.metric.sums import QUANTITIES, resample
from ssae.metric.tail import TailTypes

TAIL = TailTypes(np.array([3, 8]), np.array([5, 7]), np.ones((1, 30), np.int32))


def make_measured(seed: int, tail: TailTypes = TAIL) -> Measured:
    """30 documents; nothing is measured in the first band."""
    generator = np.random.default_rng(seed)
    sums = {name: generator.uniform(1, 2, (30, len(BANDS))) for name in QUANTITIES}
    sums["ce_zero"] += 5
    for name in ("tokens", "predictions", "predictions_current", "tokens_predicted"):
        sums[name] = np.full((30, len(BANDS)), 3.0)
    for values in sums.values():
        values[:, 0] = 0
    nothing: Any = None
    recall, error = generator.uniform(0.1, 0.9, (2, 101))
    return Measured(
        sums, nothing, nothing, nothing, nothing, tail=tail, tail_recall=recall, tail_error=error
    )


@pytest.fixture
def rows() -> list[dict]:
    return ratio_rows({"a": make_measured(0), "b": make_measured(1)}, "general_test", 200, seed=0)


def test_there_is_a_row_for_every_formula_sae_and_band_with_tokens(rows):
    found = [(r["name"], r["sae"], r["band"]) for r in rows if "reference" not in r]
    expected = [
        (formula.__name__, sae, band)
        for sae in "ab"
        for formula in FORMULAS
        for band in ("all", *BANDS[1:])
    ]
    assert found == expected


def test_values_are_the_formulas_of_the_sums_and_lie_in_their_intervals(rows):
    measured = {"a": make_measured(0).sums, "b": make_measured(1).sums}
    formulas = {formula.__name__: formula for formula in FORMULAS}
    for r in rows:
        if "reference" in r:
            continue
        columns = slice(None) if r["band"] == "all" else [BANDS.index(r["band"])]
        sums = {name: values[:, columns].sum() for name, values in measured[r["sae"]].items()}
        assert r["value"] == pytest.approx(float(formulas[r["name"]](sums)), rel=1e-9)
        assert r["low"] < r["value"] < r["high"]
        assert r["num_tokens"] == sums["tokens"]
        assert (r["split"], r["formula"]) == (
            "general_test", f"ssae.metric.formulas.{r['name']}"
        )  # fmt: skip


def test_differences_are_between_the_values_and_change_sign_with_the_reference(rows):
    value = {(r["name"], r["sae"]): r["value"] for r in rows if r["band"] == "all"}
    differences = {(r["name"], r["sae"]): r for r in rows if "reference" in r}
    assert len(differences) == 4
    for formula in (fvu, perplexity_spliced):
        name = formula.__name__
        a, b = (differences[f"{name}_difference", sae] for sae in "ab")
        assert (a["reference"], b["reference"]) == ("b", "a")
        assert a["value"] == pytest.approx(value[name, "a"] - value[name, "b"])
        assert (a["low"], a["high"]) == pytest.approx((-b["high"], -b["low"]))


def test_a_number_that_is_not_finite_becomes_null():
    found = row("fvu", (np.nan, np.inf, None), "a", "general_test", "all", 3.0, fvu)
    assert (found["value"], found["low"], found["high"]) == (None, None, None)
    json.dumps(found, allow_nan=False)


def test_counts_have_no_interval():
    found = count_rows({"num_dead": 3, "num_rare": 4}, silence_counts, 100, "a", "general_test")
    assert [(r["name"], r["value"], r["low"], r["high"]) for r in found] == [
        ("num_dead", 3, None, None), ("num_rare", 4, None, None),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["tail_recall", "tail_error"])
def test_tail_rows_are_values_with_the_quantiles_of_paired_draws(name):
    measured = {"a": make_measured(0), "b": make_measured(1)}
    a, b = (getattr(measured[sae], name) for sae in "ab")
    rows = {(r["name"], r["sae"]): r for r in tail_rows(measured, "general_test")}
    for key, draws in (
        ((name, "a"), a), ((name, "b"), b),
        ((f"{name}_difference", "a"), a - b), ((f"{name}_ratio", "b"), b / a),
    ):  # fmt: skip
        found = rows[key]
        assert found["value"] == draws[0]
        assert (found["low"], found["high"]) == tuple(np.quantile(draws[1:], [0.025, 0.975]))
        assert (found["num_tokens"], found["band"]) == (12, "all")
        assert found["formula"] == f"ssae.metric.tail.{name}"
    assert rows[f"{name}_ratio", "a"]["reference"] == "b"
    assert "reference" not in rows[name, "a"]
    assert len(rows) == 12


def test_a_split_without_tail_types_has_no_row_of_them():
    nothing = TailTypes(np.zeros(0, int), np.zeros(0, int), TAIL.draws)
    assert tail_rows({"a": make_measured(0, nothing)}, "general_test") == []


def test_forgetting_is_relative_to_the_generalist_on_the_same_resamples():
    measured = {"generalist": make_measured(0), "a": make_measured(1), "b": make_measured(0)}
    rows = {r["sae"]: r for r in forgetting_rows(measured, "general_test", "generalist", 50, 3)}
    assert set(rows) == {"a", "b"}
    sums = (resample(measured[sae].sums, 50, 3) for sae in ("generalist", "a"))
    old, new = (own["residual_sq"][:, 0] / own["deviation_sq"][:, 0] for own in sums)
    found = rows["a"]
    assert found["value"] == pytest.approx(new[0] / old[0] - 1)
    expected = np.quantile(new[1:] / old[1:] - 1, [0.025, 0.975])
    np.testing.assert_allclose([found["low"], found["high"]], expected)
    assert (found["reference"], found["split"], found["band"]) == (
        "generalist", "general_test", "all",
    )  # fmt: skip
    assert (rows["b"]["value"], rows["b"]["low"], rows["b"]["high"]) == (0, 0, 0)  # paired


def test_concepts_are_averaged_over_those_that_were_measured():
    scores = ConceptScores(
        np.array([0.95, np.nan, 0.9, 0.5]), np.array([0.8, np.nan, 0.4, 0.3]),
        np.array([1, -1, 2, 0]),
    )  # fmt: skip
    rows = {r["name"]: r for r in concept_metrics(scores, "a", 70)}
    values = {name: r["value"] for name, r in rows.items()}
    assert values == pytest.approx(
        {"concept_recall": 2 / 3, "concept_auroc": 2.35 / 3, "concept_f1": 0.5}
    )
    assert {(r["split"], r["num_tokens"], r["low"]) for r in rows.values()} == {
        ("both_tests", 70, None)
    }
    one = ConceptScores(*(part[:2] for part in scores))
    assert concept_metrics(one, "a", 70) == []
