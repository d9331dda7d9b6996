"""Bring your own text and models: real documents through a real GPT-NeoX and a real Llama."""

import json
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from ssae import cli

SHARED = Path(__file__).parents[2] / "shared"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared (data and models)"),
]


@pytest.mark.parametrize(
    ("model", "block"), [("tinylm", "gpt_neox.layers.2"), ("stories260k", "model.layers.2")]
)
def test_a_study_of_physics_finds_it_and_reports(
    model: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    data = SHARED / "data"
    # Small: the pool is made of the two test files, the tests are held out of seeds and pool.
    pool = f"[{data / 'general_test.jsonl.gz'},{data / 'physics_test.jsonl.gz'}]"
    GlobalHydra.instance().clear()
    arguments = [
        "ssae", "run", "experiment=files", f"corpus.pool={pool}",
        f"corpus.seeds={data / 'physics_seeds.jsonl.gz'}", "corpus.subdomain_source=physics_test",
        f"language_model.name={SHARED / 'models' / model}", "generalist.budget_tokens=60_000",
        "generalist.num_tokens=120_000", "budget_tokens=40_000", "specialist.num_tokens=80_000",
        "frequency_tokens=50_000", "evaluation_tokens=5_000", "sae.d_sae=512", "logger=none",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    cli.main()
    [folder] = (tmp_path / "runs" / "files").iterdir()
    rows = json.loads((folder / "metrics.json").read_text())
    precision = {r["retriever"]: r["value"] for r in rows if r["name"] == "precision"}
    assert precision["dense"] > 0.9
    assert precision["bm25"] > 0.9
    assert precision["random"] < 0.6
    fvu = {
        r["sae"]: r["value"]
        for r in rows
        if (r["name"], r["split"], r["band"]) == ("fvu", "subdomain_test", "all")
    }
    assert fvu["specialist_erm"] < fvu["generalist"]
    manifest = json.loads((folder / "artifacts/specialist/sae.json").read_text())
    assert manifest["metadata"]["hookpoint"] == block
