"""What `ssae evaluate` writes, on a study of three arms and a random model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssae
from ssae.activation.rows import Rows
from ssae.corpus.base import TESTS
from ssae.evaluate import evaluate
from ssae.metric.frequency import frequency_of
from ssae.read_pool import read_corpus
from ssae.retrieve import retrieve
from ssae.tokenise import tokenise
from ssae.train import train


@pytest.fixture(scope="module")
def evaluated(make_study, tmp_path_factory) -> tuple[Any, list[dict], dict[str, list[dict]]]:
    """A study whose arms are first, second (from first) and fresh, and what it measured."""
    study = make_study(tmp_path_factory.mktemp("study"), arm="second", evaluation_tokens=300)
    fresh = dataclasses.replace(study.arms["first"], lr=1e-3)
    study = dataclasses.replace(study, arms=study.arms | {"fresh": fresh})
    folder = evaluate(study).path
    metrics, tables = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "tables")
    )
    return study, metrics, tables


@pytest.mark.slow
def test_tail_recall_is_measured_for_every_sae_on_tail_types_alone(evaluated):
    study, metrics, _ = evaluated
    sample = retrieve(study, study.frequency_retriever, study.frequency_tokens)
    ranks = frequency_of(Rows(tokenise(study, sample)).token_counts).ranks
    for split in TESTS:
        rows = Rows(tokenise(study, read_corpus(study), split, study.evaluation_tokens))
        counts = rows.token_counts
        tail, mass = 0, 0
        for v in ranks.argsort(descending=True).tolist():
            mass += int(counts[v])
            if 2 * mass > counts.sum():
                break
            tail += int(counts[v]) if counts[v] >= 5 else 0
        for name in ("tail_recall", "tail_error"):
            own = [r for r in metrics if (r["name"], r["split"]) == (name, split)]
            assert {r["sae"] for r in own} == {"first", "second", "fresh"}
            assert {r["num_tokens"] for r in own} == {tail}


@pytest.mark.slow
def test_forgetting_is_the_change_of_general_fvu_since_the_generalist(evaluated):
    _, metrics, _ = evaluated
    value = {
        r["sae"]: r["value"] for r in metrics
        if (r["name"], r["split"], r["band"]) == ("fvu", "general_test", "all")
    }  # fmt: skip
    rows = [r for r in metrics if r["name"] == "forgetting"]
    assert {(r["sae"], r["reference"], r["split"]) for r in rows} == {
        ("second", "first", "general_test"), ("fresh", "first", "general_test"),
    }  # fmt: skip
    for r in rows:
        assert r["value"] == pytest.approx(value[r["sae"]] / value["first"] - 1, rel=1e-9)


@pytest.mark.slow
def test_every_sae_and_split_has_its_tables(evaluated):
    _, metrics, tables = evaluated
    pairs = {(sae, split) for sae in ("first", "second", "fresh") for split in TESTS}
    for name in ("represented", "latent_ranks", "spread", "firing_rates", "error_by_rank"):
        assert {(row["sae"], row["split"]) for row in tables[name]} == pairs
    for row in tables["log_ratios"]:
        assert (row["sae"], row["reference"]) == ("second", "first")
    assert len(tables["log_ratios"]) == 2
    assert {r["name"] for r in metrics if r["split"] == "both_tests"} <= {
        "concept_recall", "concept_auroc", "concept_f1",
    }  # fmt: skip


@pytest.mark.slow
def test_directions_are_matched_by_index_where_latents_correspond_and_else_to_the_nearest(
    evaluated,
):
    study, _, tables = evaluated
    W = {
        name: torch.nn.functional.normalize(ssae.load(train(study, name).path).W_dec.detach())
        for name in study.arms
    }
    rows = {row["sae"]: row for row in tables["decoder_cosines"]}
    assert {sae: (row["reference"], row["matched"]) for sae, row in rows.items()} == {
        "second": ("first", "index"), "fresh": ("first", "nearest"),
    }  # fmt: skip
    expected = {
        "second": (W["second"] * W["first"]).sum(1),
        "fresh": (W["fresh"] @ W["first"].T).amax(1),
    }
    for name, cosines in expected.items():
        edges = rows[name]["bin_edges"]
        counts, _ = np.histogram(cosines.clamp(-1, 1).double(), edges)
        assert np.abs(counts - rows[name]["counts"]).sum() <= 2  # one may lie on an edge


@pytest.mark.slow
def test_a_second_evaluation_elsewhere_writes_the_same_bytes(evaluated, make_study, tmp_path: Path):
    study, _, _ = evaluated
    again = dataclasses.replace(study, artifacts=tmp_path / "artifacts")
    for name in ("metrics", "tables"):
        texts = [(evaluate(own).path / f"{name}.json").read_bytes() for own in (study, again)]
        assert texts[0] == texts[1]
