import json

import numpy as np
import pytest
import torch

from ssae.metric.formulas import FORMULAS, fvu, perplexity_spliced
from ssae.metric.frequency import BANDS
from ssae.metric.latents import silence_counts
from ssae.metric.rows import count_rows, ratio_rows, row
from ssae.metric.splice import SplitSums
from ssae.metric.sums import QUANTITIES


def make_sums(seed: int) -> SplitSums:
    """30 documents; nothing is measured in the first band."""
    generator = np.random.default_rng(seed)
    sums = {name: generator.uniform(1, 2, (30, len(BANDS))) for name in QUANTITIES}
    sums["ce_zero"] += 5
    sums["tokens"] = sums["predictions"] = np.full((30, len(BANDS)), 3.0)
    for values in sums.values():
        values[:, 0] = 0
    nothing = torch.zeros(0)
    return SplitSums(sums, nothing, nothing, nothing, nothing)


@pytest.fixture
def rows() -> list[dict]:
    return ratio_rows({"a": make_sums(0), "b": make_sums(1)}, "general_test", 200, seed=0)


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
    measured = {"a": make_sums(0).sums, "b": make_sums(1).sums}
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
