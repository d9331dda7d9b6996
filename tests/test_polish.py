"""`ssae polish` on a tiny study: what it writes, reuses and refuses."""

import collections
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import ssae
from ssae import cli
from ssae.activation.reader import Activations
from ssae.artifact.store import Artifact
from ssae.harvest import harvest, harvest_for
from ssae.polish import polish, split_tokens
from ssae.read_pool import read_corpus
from ssae.run import write_polish
from ssae.sae import files
from ssae.sae.relu import ReLUSAE
from ssae.sae.residual import ResidualSAE
from ssae.sae.topk import TopKSAE
from ssae.study import Study
from ssae.train import train

NAMES = ("objective", "fvu", "l0")
COMMON = {"auxk_coefficient": 0.0, "k_aux": 1}


def settings(study: Study, **changes: Any) -> Study:
    return dataclasses.replace(study, polish=dataclasses.replace(study.polish, **changes))


@pytest.fixture
def study(make_study: Callable[..., Study], tmp_path: Path) -> Study:
    return make_study(tmp_path, arm="first", num_bootstraps=30)


def metrics_of(artifact: Artifact) -> dict[str, dict[str, Any]]:
    rows = json.loads((artifact.path / "metrics.json").read_text())
    return {row["name"]: row for row in rows}


def weights_of(path: Path | str) -> dict[str, torch.Tensor]:
    return ssae.load(path).state_dict()


def by_hand(sae: Any, x: torch.Tensor, lam: float) -> dict[str, float]:
    z = sae.encode(x).detach()
    r = (x - sae.decode(z)).detach().double()
    price = lam * (z * sae.W_dec.detach().norm(dim=1)).double().sum(1)
    variance = (x.double() - x.double().mean(0)).square().sum()
    return {
        "objective": float((r.square().sum(1) / 2 + price).mean()),
        "fvu": float(r.square().sum() / variance),
        "l0": float((z > 0).double().sum(1).mean()),
    }


def test_what_is_written_is_what_was_measured(study: Study, capsys: pytest.CaptureFixture[str]):
    made = polish(study)
    assert made.manifest["kept"]  # trained for twenty steps
    assert made.manifest["held_out"] == "general_test"
    trained = train(study, "first")
    harvested = harvest(study, read_corpus(study), "general_test", study.polish.held_out_tokens)
    x = Activations(harvested).slice(0, 10**6).activations
    found = metrics_of(made)
    for moment, folder in (("before", trained.path), ("after", made.path)):
        expected = by_hand(ssae.load(folder), x, made.manifest["lam"])
        for name in NAMES:
            row = found[f"{name}_{moment}"]
            assert row["value"] == pytest.approx(expected[name], rel=1e-4)
            assert row["low"] <= row["value"] <= row["high"] or name == "l0"
            assert (row["sae"], row["split"]) == ("first", "held_out")
    for name in NAMES:
        difference = found[f"{name}_after"]["value"] - found[f"{name}_before"]["value"]
        assert found[f"{name}_difference"]["value"] == pytest.approx(difference, abs=1e-9)
    assert found["objective_difference"]["value"] < 0
    description = files.load_description(made.path)
    assert description["metadata"]["polished_from"] == str(trained.path)
    assert description["metadata"]["rounds"] == made.manifest["num_rounds"] >= 1
    study.run_dir.mkdir(parents=True)
    write_polish(study, made)
    printed = capsys.readouterr().out
    assert "objective" in printed
    assert "kept: the SAE after round" in printed
    assert (study.run_dir / "artifacts/polish/sae.safetensors").exists()
    assert len(json.loads((study.run_dir / "metrics.json").read_text())) == 9


def test_the_same_study_reuses_it_and_another_one_makes_the_same_bits(
    study: Study, make_study: Callable[..., Study], tmp_path: Path
):
    made = polish(study)
    written = (made.path / "sae.safetensors").stat().st_mtime_ns
    assert polish(study) == made
    assert (made.path / "sae.safetensors").stat().st_mtime_ns == written
    other = polish(make_study(tmp_path / "b", arm="first", num_bootstraps=30))
    assert other.hash == made.hash
    assert metrics_of(other) == metrics_of(made)
    for name, weight in weights_of(made.path).items():
        assert torch.equal(weight, weights_of(other.path)[name])
    assert polish(settings(study, lr=2e-3)).hash != made.hash


def test_a_relu_sae_is_polished_at_the_price_it_was_trained_with(
    make_study: Callable[..., Study], tmp_path: Path
):
    sae = functools.partial(ReLUSAE, d_sae=64, l1_coefficient=0.5, **COMMON)
    study = make_study(tmp_path, arm="first", sae=sae, num_bootstraps=30)
    made, trained = polish(study), train(study, "first")
    assert made.manifest["lam"] == pytest.approx(0.25 / trained.manifest["input_scale"])
    assert ssae.load(made.path).hyperparameters["l1_coefficient"] == 0.5
    assert metrics_of(made)["objective_difference"]["value"] <= 0


def test_a_specialist_is_judged_on_its_own_subdomain(study: Study):
    other = dataclasses.replace(study, arm="second")
    made = polish(settings(other, held_out="subdomain_test"))
    assert made.manifest["held_out"] == "subdomain_test"
    assert made.manifest["held_out_tokens"] <= study.polish.held_out_tokens


def test_an_sae_of_another_library_is_read_and_written_as_ours(study: Study, tmp_path: Path):
    sae = ssae.load(train(study, "first").path)
    with torch.no_grad():  # norms that training here would not leave
        sae.W_dec.mul_(3)
        sae.W_enc_T.div_(3)
        sae.b_enc.div_(3)
    ssae.save(sae, tmp_path / "theirs", format="sparsify")
    own = {"rounds": 1, "encoder_steps": 60, "lr": 3e-3}
    made = polish(settings(study, sae=str(tmp_path / "theirs"), **own))
    assert files.detect(made.path) == "ssae"
    assert made.manifest["held_out"] == "documents"
    found = metrics_of(made)
    assert found["l0_before"]["sae"] == str(tmp_path / "theirs")
    assert made.manifest["kept"]
    norms = ssae.load(made.path).W_dec.detach().norm(dim=1)
    assert norms == pytest.approx(np.ones(64), abs=1e-5)
    (tmp_path / "theirs").rename(tmp_path / "moved")
    assert polish(settings(study, sae=str(tmp_path / "moved"), **own)) == made


def test_what_does_not_help_leaves_the_weights_to_the_bit(
    study: Study, capsys: pytest.CaptureFixture[str]
):
    # So large a step breaks the encoder.
    made = polish(settings(study, lr=1e3))
    assert not made.manifest["kept"]
    assert made.manifest["num_rounds"] == 0
    before = weights_of(train(study, "first").path)
    for name, weight in weights_of(made.path).items():
        assert torch.equal(weight, before[name]), name
    found = metrics_of(made)
    for name in NAMES:
        assert found[f"{name}_difference"]["value"] == 0
    study.run_dir.mkdir(parents=True)
    write_polish(study, made)
    assert "not kept: no round lowered the objective" in capsys.readouterr().out


def test_no_document_is_on_both_sides(study: Study):
    activations = Activations(harvest_for(study, "first"))
    learnt, held = split_tokens(activations, 300, 200, 0)
    assert not set(learnt.document_ids.tolist()) & set(held.document_ids.tolist())
    assert len(learnt.activations) == 300
    assert len(held.activations) == 200
    # They are tokens of the harvest, each at most as often as there (a document may have rows).
    there, *drawn = (
        collections.Counter(map(tuple, torch.stack(part[1:], 1).tolist()))
        for part in (activations.slice(0, 10**6), learnt, held)
    )
    assert drawn[0] + drawn[1] <= there
    for one, other in zip(split_tokens(activations, 300, 200, 0), (learnt, held), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(split_tokens(activations, 300, 200, 1)[0].token_ids, learnt.token_ids)
    everything, rest = split_tokens(activations, 10**6, 0, 0)
    assert len(everything.activations) == len(activations)
    assert not len(rest.activations)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rounds": 0}, r"polish.rounds must be at least 1, got 0; set polish.rounds=3"),
        ({"lam": -1.0}, r"polish.lam must be null or a number .* got -1.0; set polish.lam=null"),
        ({"lam": "much"}, "polish.lam must be null or a number"),
        ({"held_out": "test"}, r"one of documents, subdomain_test, general_test, got 'test'"),
        ({"lr": 0.0}, "polish.lr must be positive, got 0.0; set polish.lr=1e-3"),
        ({"num_tokens": 1.5}, "polish.num_tokens must be a whole number, got 1.5"),
        ({"sae": 3}, "polish.sae must be null, a folder or an id of the hub, got 3"),
    ],
)
def test_settings_out_of_range_are_refused(study: Study, changes: dict[str, Any], rule: str):
    with pytest.raises(ValueError, match=rule):
        settings(study, **changes)


def test_saes_that_cannot_be_polished_are_refused_before_anything_is_harvested(
    study: Study, tmp_path: Path
):
    made = [TopKSAE(d_in, 24, k=3, **COMMON) for d_in in (16, 16, 12)]
    ssae.save(ResidualSAE(*made[:2]), tmp_path / "residual")
    ssae.save(made[0], tmp_path / "topk")
    ssae.save(made[2], tmp_path / "narrow")
    with pytest.raises(ValueError, match="a residual SAE cannot be polished: the generalist in it"):
        polish(settings(study, sae=str(tmp_path / "residual")))
    with pytest.raises(ValueError, match=r"topk SAE chooses its latents .*; set polish.lam=null"):
        polish(settings(study, sae=str(tmp_path / "topk"), lam=0.5))
    with pytest.raises(ValueError, match=r"width 12, the study's hookpoint gives 16; set hookp"):
        polish(settings(study, sae=str(tmp_path / "narrow")))


@pytest.mark.slow
def test_the_command_says_where_and_what(
    run_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    own = ["arm=generalist", "polish.num_tokens=500", "polish.encoder_steps=5",
           "polish.batch_size_tokens=64", "polish.held_out_tokens=300"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["ssae", "polish", *run_overrides, *own])
    cli.main()
    printed = capsys.readouterr().out
    assert "artifacts/polish/" in printed
    assert "  kept: " in printed
    [metrics] = tmp_path.glob("runs/*/*/metrics.json")
    assert {row["split"] for row in json.loads(metrics.read_text())} == {"held_out"}
