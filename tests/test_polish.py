"""`ssae polish` on a tiny study: what it writes, reuses and refuses."""

import collections
import copy
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
from ssae.objective.term import TERM
from ssae.polish import compared, objection_to, polish
from ssae.read_pool import read_corpus
from ssae.run import write_polish
from ssae.sae import files
from ssae.sae.relu import ReLUSAE
from ssae.sae.residual import ResidualSAE
from ssae.sae.topk import TopKSAE
from ssae.study import Study
from ssae.theory.polishing import Polished, Round, Score, polish_sae
from ssae.train import train

NAMES = ("objective", "fvu", "l0")
COMMON = {"auxk_coefficient": 0.0, "k_aux": 1}


def settings(study: Study, **changes: Any) -> Study:
    return dataclasses.replace(study, polish=dataclasses.replace(study.polish, **changes))


@pytest.fixture
def study(make_study: Callable[..., Study], tmp_path: Path) -> Study:
    return tiny(make_study, tmp_path)


def tiny(make_study: Callable[..., Study], folder: Path, **changes: Any) -> Study:
    """A study whose test splits are read to the end, 12 documents each, and that gains enough."""
    study = make_study(folder, arm="first", num_bootstraps=30, **changes)
    return settings(study, held_out_tokens=10_000, encoder_steps=60, lr=3e-3)


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


def test_what_is_written_is_what_was_measured_on_documents_that_chose_nothing(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    chose: list[torch.Tensor] = []

    def spied(sae: Any, x: torch.Tensor, choosing: torch.Tensor, *args: Any, **kwargs: Any):
        chose.append(choosing)
        return polish_sae(sae, x, choosing, *args, **kwargs)

    monkeypatch.setattr("ssae.polish.polish_sae", spied)
    made = polish(study)
    assert made.manifest["kept"]  # trained for twenty steps
    assert made.manifest["held_out"] == made.manifest["not_blind_on"] == "general_test"
    trained = train(study, "first")
    harvested = harvest(study, read_corpus(study), "general_test", study.polish.held_out_tokens)
    everything = Activations(harvested).slice(0, 10**6)
    # Documents that chose, found by their content: all of their tokens did, and nothing else.
    rows, documents = everything.activations.tolist(), everything.document_ids
    chosen_rows = collections.Counter(map(tuple, chose[0].tolist()))
    others = {d for d, x in zip(documents.tolist(), rows, strict=True) if not chosen_rows[tuple(x)]}
    unseen = torch.tensor([d in others for d in documents.tolist()])
    assert collections.Counter(map(tuple, everything.activations[~unseen].tolist())) == chosen_rows
    assert len(others) == made.manifest["reported_documents"] == 6
    assert made.manifest["choosing_tokens"] == int((~unseen).sum())
    assert made.manifest["reported_tokens"] == int(unseen.sum())
    x = everything.activations[unseen]
    found = metrics_of(made)
    for moment, folder in (("before", trained.path), ("after", made.path)):
        expected = by_hand(ssae.load(folder), x, made.manifest["lam"])
        for name in NAMES:
            row = found[f"{name}_{moment}"]
            assert row["value"] == pytest.approx(expected[name], rel=1e-4)
            assert row["low"] <= row["value"] <= row["high"] or name == "l0"
            assert (row["sae"], row["split"]) == ("first", "held_out")
            assert row["num_tokens"] == len(x)
    for name in NAMES:
        difference = found[f"{name}_after"]["value"] - found[f"{name}_before"]["value"]
        assert found[f"{name}_difference"]["value"] == pytest.approx(difference, abs=1e-9)
    assert found["objective_difference"]["high"] < 0
    description = files.load_description(made.path)
    assert description["metadata"]["polished_from"] == str(trained.path)
    assert description["metadata"]["rounds"] == made.manifest["num_rounds"] >= 1
    study.run_dir.mkdir(parents=True)
    write_polish(study, made)
    printed = capsys.readouterr().out
    assert "objective" in printed
    said = " ".join(printed.split())
    assert "kept: the SAE after round" in said
    assert "general_test is no blind test of this SAE any more" in said
    assert (study.run_dir / "artifacts/polish/sae.safetensors").exists()
    assert len(json.loads((study.run_dir / "metrics.json").read_text())) == 9


def test_the_same_study_reuses_it_and_another_one_makes_the_same_bits(
    study: Study, make_study: Callable[..., Study], tmp_path: Path
):
    made = polish(study)
    written = (made.path / "sae.safetensors").stat().st_mtime_ns
    assert polish(study) == made
    assert (made.path / "sae.safetensors").stat().st_mtime_ns == written
    other = polish(tiny(make_study, tmp_path / "b"))
    assert other.hash == made.hash
    assert metrics_of(other) == metrics_of(made)
    for name, weight in weights_of(made.path).items():
        assert torch.equal(weight, weights_of(other.path)[name])
    assert polish(settings(study, lr=2e-3)).hash != made.hash


def test_a_relu_sae_is_polished_at_the_price_it_was_trained_with_wherever_it_lies(
    make_study: Callable[..., Study], tmp_path: Path
):
    sae = functools.partial(ReLUSAE, d_sae=64, l1_coefficient=0.5, **COMMON)
    study = tiny(make_study, tmp_path, sae=sae)
    made, trained = polish(study), train(study, "first")
    lam = 0.25 / trained.manifest["input_scale"]
    assert made.manifest["lam"] == pytest.approx(lam)
    assert ssae.load(made.path).hyperparameters["l1_coefficient"] == 0.5
    # A folder that training wrote has seen the arm's text, as the arm has: it is the same SAE.
    assert polish(settings(study, sae=str(trained.path))) == made
    again = polish(settings(study, sae=str(made.path)))
    assert again != made
    assert again.manifest["lam"] == pytest.approx(lam)
    assert again.manifest["held_out"] == "general_test"
    # Without what training says of it, it is anyone's.
    ssae.save(ssae.load(trained.path), tmp_path / "copy")
    other = polish(settings(study, sae=str(tmp_path / "copy")))
    assert other.manifest["held_out"] == "documents"
    assert other.manifest["lam"] != pytest.approx(lam, rel=1e-3)


@pytest.mark.parametrize(
    ("content", "scale"),
    [
        (None, None),
        ("", None),
        ("[0.5]", None),
        ('{"input_scale": 0.5', None),
        ('{"scale": 0.5}', None),
        ('{"input_scale": "0.5"}', None),
        ('{"input_scale": true}', None),
        ('{"input_scale": null}', None),
        ('{"input_scale": NaN}', None),
        ('{"input_scale": Infinity}', None),
        ('{"input_scale": 0.0}', None),
        ('{"input_scale": -0.5}', None),
        (f'{{"input_scale": {10**400}}}', None),
        ("[" * 10**5, None),
        ('{"input_scale": 0.5}', 0.5),
    ],
)
def test_what_a_manifest_says_of_the_scale_is_a_number_or_nothing(
    content: str | None, scale: float | None, tmp_path: Path
):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert files.trained_scale(tmp_path) == scale


def test_the_scale_is_that_of_training(study: Study):
    trained = train(study, "first")
    norms = Activations(harvest_for(study, "first")).slice(0, 10**6).activations.norm(dim=1)
    assert files.trained_scale(trained.path) == pytest.approx(4 / float(norms.mean()), rel=1e-5)


def test_a_specialist_is_judged_on_its_own_subdomain(study: Study):
    other = dataclasses.replace(study, arm="second")
    made = polish(settings(other, held_out="subdomain_test"))
    assert made.manifest["held_out"] == "subdomain_test"
    held = sum(made.manifest[f"{half}_tokens"] for half in ("choosing", "reported"))
    assert held <= study.polish.held_out_tokens


def test_an_arm_of_another_risk_is_polished_with_a_warning(
    study: Study, caplog: pytest.LogCaptureFixture
):
    tilted = dataclasses.replace(study.arms["first"], objective=TERM(tilt=2.0))
    for arms, warnings in ((study.arms, 0), (study.arms | {"first": tilted}, 1)):
        caplog.clear()
        polish(dataclasses.replace(study, arms=arms))
        assert sum("trained for another risk" in text for text in caplog.messages) == warnings


def more_text(study: Study) -> Study:
    arms = {n: dataclasses.replace(arm, budget_tokens=6000) for n, arm in study.arms.items()}
    return dataclasses.replace(study, arms=arms)


def test_an_sae_of_another_library_is_read_and_written_as_ours(study: Study, tmp_path: Path):
    sae = ssae.load(train(study, "first").path)
    with torch.no_grad():  # norms that training here would not leave
        sae.W_dec.mul_(3)
        sae.W_enc_T.div_(3)
        sae.b_enc.div_(3)
    ssae.save(sae, tmp_path / "theirs", format="sparsify")
    study = more_text(study)
    own = {
        "rounds": 1,
        "encoder_steps": 60,
        "lr": 3e-3,
        "num_tokens": 3000,
        "held_out_tokens": 3000,
    }
    made = polish(settings(study, sae=str(tmp_path / "theirs"), **own))
    assert files.detect(made.path) == "ssae"
    assert made.manifest["held_out"] == "documents"
    found = metrics_of(made)
    assert found["l0_before"]["sae"] == str(tmp_path / "theirs")
    assert made.manifest["kept"]
    assert made.manifest["not_blind_on"] is None
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


def worse(sae: Any, x: torch.Tensor, choosing: torch.Tensor, lam: float, **_: Any) -> Polished:
    """What polishing would give, had the half that chooses been mistaken."""
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_dec.neg_()
    nothing = Score(*(torch.zeros(1) for _ in Score._fields))
    return Polished(other, nothing, nothing, [Round(1, 3.0, 2.0, 1.0, 0.1, 4.0, helps=True)])


def test_a_round_that_the_other_half_does_not_confirm_is_not_kept(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ssae.polish.polish_sae", worse)
    made = polish(study)
    assert not made.manifest["kept"]
    assert made.manifest["num_rounds"] == 0
    assert made.manifest["not_blind_on"] is None
    before = weights_of(train(study, "first").path)
    for name, weight in weights_of(made.path).items():
        assert torch.equal(weight, before[name]), name
    change = metrics_of(made)["objective_difference"]
    assert 0 < change["low"] <= change["value"] <= change["high"]
    between = f"{change['low']:.3g} .. {change['high']:.3g}"
    assert made.manifest["why"].endswith(f"the objective changes by {between}")
    study.run_dir.mkdir(parents=True)
    write_polish(study, made)
    printed = " ".join(capsys.readouterr().out.split())
    assert "not kept: round 1 of 1 was chosen, but the other half does not confirm it" in printed
    assert "blind" not in printed


def scores(documents: np.ndarray, gain: np.ndarray, l0: float = 4.0) -> tuple[Score, Score]:
    """Scores of tokens before and after; the costs of a document fall by its gain."""
    cost = torch.from_numpy(np.random.default_rng(1).exponential(10, len(documents)))
    others = [torch.ones(len(documents), dtype=torch.float64) for _ in range(2)]
    before = Score(cost, *others, torch.full_like(cost, 4.0))
    after = Score(cost - torch.from_numpy(gain[documents]), *others, torch.full_like(cost, l0))
    return before, after


CHOSEN = Polished(
    TopKSAE(4, 8, k=2, **COMMON), *scores(np.arange(2), np.ones(2)),
    rounds=[Round(1, 3.0, 2.0, 1.0, 0.1, 4.0, helps=True)],
)  # fmt: skip


def objection(documents: np.ndarray, gain: np.ndarray, l0: float = 4.0, lam: float = 0.0):
    before, after = scores(documents, gain, l0)
    numbers = compared(before, after, torch.from_numpy(documents), 400, 0)
    return objection_to(CHOSEN, numbers, lam, len(np.unique(documents)))


def test_only_what_other_documents_confirm_is_kept():
    documents = np.repeat(np.arange(8), 20)
    assert objection(documents, np.full(8, 0.1)) is None
    assert "changes by 0.1 .. 0.1" in str(objection(documents, np.full(8, -0.1)))
    # One document gains much: without it, nothing.
    assert "does not confirm it: the objective" in str(objection(documents, 8.0 * np.eye(8)[0]))
    assert "has 5 documents; fewer than 6" in str(objection(documents[:100], np.full(8, 0.1)))
    # More active latents are no gain, but where they are paid for.
    assert "l0 rises from 4 to 4.1" in str(objection(documents, np.full(8, 0.1), l0=4.1))
    assert objection(documents, np.full(8, 0.1), l0=4.1, lam=0.5) is None
    assert objection(documents, np.full(8, 0.1), l0=4.02) is None


def test_chance_is_rarely_kept_and_its_interval_is_that_of_the_mean_of_documents():
    num, rng, kept = 60, np.random.default_rng(0), 0
    documents = np.repeat(np.arange(num), 10)
    for _ in range(300):
        kept += objection(documents, rng.normal(0, 1, num)) is None
    assert kept / 300 == pytest.approx(0.025, abs=0.025)
    gain = rng.normal(0.2, 1, num)
    numbers = compared(*scores(documents, gain), torch.from_numpy(documents), 4000, 0)
    value, low, high = numbers["objective", "difference"]
    assert value == pytest.approx(-gain.mean())
    half = 1.96 * gain.std() / num**0.5
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.08)


def test_an_interrupted_polishing_leaves_nothing_and_is_made_anew(
    study: Study, make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    folder = study.artifacts / "polish"
    # At work, and when the SAE is half written.
    for where in ("ssae.polish.polish_sae", "ssae.polish.json.dumps"):
        with monkeypatch.context() as patched:
            patched.setattr(where, interrupted)
            with pytest.raises(KeyboardInterrupt):
                polish(study)
        assert [path for path in folder.iterdir() if path.suffix != ".partial"] == []
    made = polish(study)
    assert list(folder.iterdir()) == [made.path]
    assert made.corrupt_files() == []
    other = polish(tiny(make_study, tmp_path / "b"))
    assert metrics_of(other) == metrics_of(made)


def test_one_document_cannot_be_divided(study: Study):
    with pytest.raises(ValueError, match="two others to hold out, got too few for polish.held_out"):
        polish(settings(study, held_out_tokens=3))


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
    with pytest.raises(ValueError, match=r"width 12, hookpoint gpt_neox.layers.1 gives 16; set h"):
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
