"""`ssae shift` on a tiny model and synthetic biographies."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ssae.probe.documents import load_groups
from ssae.report.table import find
from ssae.run import write_shift
from ssae.shift import shift
from ssae.study import Study


def settings(study: Study, **changes) -> Study:
    return dataclasses.replace(study, shift=dataclasses.replace(study.shift, **changes))


@pytest.fixture
def study(make_study, tmp_path: Path) -> Study:
    return make_study(tmp_path, hookpoint="gpt_neox.layers.2", num_bootstraps=20)


def metrics_of(artifact):
    return json.loads((artifact.path / "metrics.json").read_text(encoding="utf-8"))


def test_every_row_of_the_table_is_measured_and_written(study: Study, capsys):
    study.run_dir.mkdir(parents=True)
    made = shift(study)
    metrics = metrics_of(made)
    rows = {(m["method"], m["arm"], m["width"], m["retrained"]) for m in metrics}
    for method in ("original", "concept_bottleneck", "neuron_skyline", "oracle"):
        assert (method, None, None, False) in rows
    for method in ("words_deleted", "embedding_projection", "mean_difference", "leace"):
        assert {(method, None, None, False), (method, None, None, True)} <= rows
    for arm in ("first", "second"):
        for width in (1, 0.5):
            for method in ("shift", "random", "feature_skyline"):
                assert (method, arm, width, False) in rows
            assert ("shift", arm, width, True) in rows
    for row in metrics:
        assert row["low"] <= row["high"]
        if row["name"] in ("label_accuracy", "spurious_accuracy"):  # means: resamples lie around
            assert row["low"] - 1e-6 <= row["value"] <= row["high"] + 1e-6
        assert len(row["by_seed"]) == 2
        assert np.mean(row["by_seed"]) == pytest.approx(row["value"], abs=1e-6)
    write_shift(study, made)
    printed = capsys.readouterr().out
    assert "biased probe" in printed
    page = (study.run_dir / "shift.html").read_text(encoding="utf-8")
    assert "SHIFT + retrain, second, 1/2 width" in page
    assert "<script" not in page
    table = (study.run_dir / "table.md").read_text(encoding="utf-8")
    assert table.count("\n| ") == len(rows)
    assert (study.run_dir / "artifacts/shift/candidates.html").exists()
    assert json.loads((study.run_dir / "metrics.json").read_text()) == metrics


def test_the_same_study_is_the_same_to_the_bit(study: Study, make_study, tmp_path: Path):
    other = make_study(tmp_path / "b", hookpoint="gpt_neox.layers.2", num_bootstraps=20)
    assert metrics_of(shift(study)) == metrics_of(shift(other))


def test_a_person_can_judge_the_candidates(study: Study, tmp_path: Path):
    automatic = shift(study)
    written = automatic.path / "candidates.yaml"
    sections = yaml.safe_load(written.read_text())
    assert len(sections) == 2 * 2 * 2  # arms, widths, seeds
    assert any(row["ablate"] for section in sections for row in section["latents"])
    unchanged = metrics_of(shift(settings(study, candidates=str(written))))
    own = [s for s in sections if (s["arm"], s["width"]) == ("first", 1)]
    true = [sum(row["ablate"] for row in section["latents"]) for section in own]
    where = {"method": "shift", "arm": "first", "width": 1, "retrained": False, "most": None}
    row = find(unchanged, "label_accuracy", **where)
    assert row["num_ablated"] == np.mean(true)  # in every fold all that the file says
    kept = [{**s, "latents": [{**r, "ablate": False} for r in s["latents"]]} for s in sections]
    edited = tmp_path / "edited.yaml"
    edited.write_text(yaml.safe_dump(kept))
    nothing = metrics_of(shift(settings(study, candidates=str(edited))))
    original = find(nothing, "label_accuracy", method="original")
    for row in nothing:
        is_row = row["method"] == "shift" and row["most"] is None and not row["retrained"]
        if is_row and row["name"] == "label_accuracy":
            assert row["value"] == original["value"]
            assert row["num_ablated"] == 0
    every = [{**s, "latents": [{**r, "ablate": True} for r in s["latents"]]} for s in sections]
    edited.write_text(yaml.safe_dump(every))
    most = find(
        metrics_of(shift(settings(study, candidates=str(edited)))),
        "label_accuracy", method="shift", arm="first", width=1, retrained=False, most=None,
    )  # fmt: skip
    assert most["num_ablated"] >= 8  # all candidates of any fold


def test_candidates_of_other_saes_are_refused(study: Study, tmp_path: Path):
    written = shift(study).path / "candidates.yaml"
    text = written.read_text()
    sections = yaml.safe_load(text)
    other = tmp_path / "other.yaml"
    other.write_text(text.replace(sections[0]["sae"], "0" * 16))
    with pytest.raises(ValueError, match="is of another first than this study has"):
        shift(settings(study, candidates=str(other)))
    with pytest.raises(ValueError, match=r"says nothing of .* seed 3.*set the shift.seeds"):
        shift(settings(study, candidates=str(written), seeds=[0, 3]))


def test_saes_of_several_layers_are_ablated_together(study: Study):
    layers = ["gpt_neox.layers.0", "gpt_neox.layers.2"]
    made = shift(settings(study, hookpoints=layers, seeds=[0], widths=[1], min_selectivity=0.51))
    sections = json.loads((made.path / "sections.json").read_text())
    assert [(s["arm"], s["hookpoint"]) for s in sections] == [
        (arm, at) for arm in ("first", "second") for at in layers
    ]
    assert {s["hookpoint"] for s in sections if s["latents"]} == set(layers)
    row = find(metrics_of(made), "worst_group_accuracy", method="shift", arm="first", most=None)
    assert row["num_ablated"] > 0


def test_an_sae_behind_the_probe_is_refused(study: Study):
    with pytest.raises(ValueError, match="must lie before the probe's, gpt_neox.layers.1, which"):
        shift(
            settings(
                dataclasses.replace(study, hookpoint="gpt_neox.layers.1"),
                hookpoints=["gpt_neox.layers.2"],
            )
        )


def test_groups_too_small_to_say_anything_are_refused_before_training(study: Study):
    with pytest.raises(ValueError, match=r"min_documents=40 documents in each train set, got "):
        shift(settings(study, min_documents=40))
    assert not (study.artifacts / "train").exists()


def test_documents_that_an_sae_has_seen_are_left_out(study: Study, tmp_path: Path):
    groups, none_left_out = load_groups(study)
    assert none_left_out["num_seen_by_saes"] == 0
    pool = Path(study.corpus.pool)  # pyright: ignore[reportAttributeAccessIssue]
    texts = [json.loads(line)["text"] for line in pool.read_text().splitlines()]
    corpus = dataclasses.replace(study.corpus, pool=str(tmp_path / "pool.jsonl"))
    known = {"text": f"  {groups.texts[0].upper()}", "source": "labelled"}
    lines = [json.dumps(known)] * 2 + [json.dumps({"text": text}) for text in texts]
    (tmp_path / "pool.jsonl").write_text("\n".join(lines))
    seen = dataclasses.replace(
        study, corpus=corpus, artifacts=tmp_path / "seen",
        arms={n: dataclasses.replace(a, budget_tokens=10**6) for n, a in study.arms.items()},
    )  # fmt: skip
    kept, left_out = load_groups(seen)
    assert left_out["num_seen_by_saes"] == 1
    assert len(kept.texts) == len(groups.texts) - 1
    assert groups.texts[0] not in kept.texts

    few = {n: dataclasses.replace(a, budget_tokens=1) for n, a in study.arms.items()}
    few = few | {"base": seen.arms["first"]}
    seen = dataclasses.replace(seen, arms=few)
    assert load_groups(seen)[1]["num_seen_by_saes"] == 0
    assert load_groups(settings(seen, control="base"))[1]["num_seen_by_saes"] == 1
    few["first"] = dataclasses.replace(few["first"], init_from="base")
    assert load_groups(dataclasses.replace(seen, arms=few))[1]["num_seen_by_saes"] == 1
    few["base"] = dataclasses.replace(few["base"], num_tokens=0, init_from="a/saved/sae")
    assert load_groups(dataclasses.replace(seen, arms=few))[1]["num_seen_by_saes"] == 0


@pytest.mark.slow
def test_the_command_runs_anywhere(tmp_path: Path):
    overrides = ["labelled.num_documents=600", "shift.num_folds=3", "shift.seeds=[0,1]",
                 "shift.widths=[1]",
                 "generalist.num_tokens=30_000", "specialist.num_tokens=20_000",
                 "corpus.packages=[numpy]"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "ssae", "shift", *overrides], cwd=tmp_path, text=True,
        capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "oracle" in done.stdout
    [page] = tmp_path.glob("runs/synthetic_bios/*/shift.html")
    assert "gender" in page.read_text()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"generalist": "nobody"}, "shift.generalist must be one of first, second, got 'nobody'"),
        ({"control": "nobody"}, "shift.control must be one of first, second, got 'nobody'"),
        ({"specialist": "first"}, "shift compares different arms, got .*set shift.specialist="),
        ({"candidates": "absent.yaml"}, "there is no file absent.yaml; set shift.candidates=null"),
    ],
)
def test_what_would_fail_after_training_is_refused_before(study: Study, changes: dict, rule: str):
    with pytest.raises(ValueError, match=rule):
        shift(settings(study, **changes))
    assert not study.artifacts.exists()


def test_words_of_gender_are_no_words_of_another_attribute(study: Study):
    with pytest.raises(ValueError, match=r"word_pairs are words of gender .*shift.spurious=dial"):
        settings(study, spurious="dialect")
    with pytest.raises(ValueError, match=r"concepts are words of profession .*shift.label=topic"):
        settings(study, label="topic")
