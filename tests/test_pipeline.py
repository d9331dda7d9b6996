"""`ssae run` from files to report, on a random model: what is made, reused and changed."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

import ssae
from ssae import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["ssae", *arguments])
    cli.main()


def artifacts(folder: Path) -> set[str]:
    return {str(path.parent) for path in folder.glob("artifacts/*/*/DONE")}


@pytest.mark.slow
def test_a_run_makes_a_report_and_a_second_run_reuses_everything(
    run_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "run", *run_overrides)
    [folder] = (tmp_path / "runs" / "files").iterdir()
    made = artifacts(tmp_path)
    assert not list(tmp_path.glob("artifacts/*/*.partial"))

    metrics = json.loads((folder / "metrics.json").read_text())
    keys = {"name", "value", "low", "high", "sae", "split", "band", "num_tokens", "formula"}
    assert all(keys <= set(row) for row in metrics)
    saes = {row["sae"] for row in metrics} - {None}
    assert saes == {"generalist", "control", "specialist_erm", "specialist"}
    for row in metrics:
        if row["low"] is not None and row["name"] in ("fvu", "perplexity_spliced"):
            assert row["low"] <= row["value"] * (1 + 1e-6)
            assert row["value"] <= row["high"] * (1 + 1e-6)
    l0 = [row["value"] for row in metrics if row["name"] == "l0" and row["band"] == "all"]
    assert all(0 < value <= 4 for value in l0)
    retrieval = {row["retriever"] for row in metrics if row.get("retriever")}
    assert retrieval == {"random", "bm25", "dense"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "specialist_erm" in page
    assert list((folder / "logs").rglob("metrics.csv"))

    sae = ssae.load(folder / "artifacts" / "specialist")
    assert sae.d_sae == 64
    assert sae.W_dec.norm(dim=1).sub(1).abs().max() < 1e-5

    run(monkeypatch, "run", *run_overrides)
    assert artifacts(tmp_path) == made

    run(monkeypatch, "train", *run_overrides, "objective.tilt=2")
    new = artifacts(tmp_path) - made
    assert [Path(path).parent.name for path in new] == ["train"]


@pytest.mark.slow
def test_a_saved_sae_is_a_generalist_and_a_sweep_shares_its_artifacts(
    run_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "train", *run_overrides, "arm=generalist")
    [trained] = (Path(path) for path in artifacts(tmp_path) if "/train/" in path)
    given = [f"arms.generalist.init_from={trained}", "arms.generalist.num_tokens=0"]
    run(monkeypatch, "train", "-m", *run_overrides, *given, "objective.tilt=0,5", "logger=none")
    found = [Path(path) for path in artifacts(tmp_path) if "/train/" in path]
    assert len(found) == 4  # the generalist, its copy, two specialists
    descriptions = [json.loads((path / "sae.json").read_text())["metadata"] for path in found]
    objectives = {d.get("objective") for d in descriptions}
    assert {0, 5} == {float(re.search(r"tilt=([\d.]+)", o)[1]) for o in objectives if "TERM" in o}
    harvests = [path for path in artifacts(tmp_path) if "/harvest/" in path]
    assert len(harvests) == 2  # the generalist's documents and the specialists'

    monkeypatch.chdir(trained)  # the sweep's folder is not there: the next command is none of it
    run(monkeypatch, "train", "--cfg", "job")


@pytest.mark.slow
def test_optuna_is_told_what_the_jobs_measured(
    run_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.chdir(tmp_path)
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.direction=minimize"]
    run(monkeypatch, "run", "-m", *words, *run_overrides, "specialist.lr=interval(1e-4,1e-2)")
    [sweep] = (tmp_path / "runs" / "files").iterdir()
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    values = [json.loads(path.read_text())["value"] for path in sweep.glob("*/outcome.json")]
    assert len(values) == 2
    assert best["best_value"] == min(values)
