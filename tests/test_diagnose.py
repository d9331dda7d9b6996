"""`ssae diagnose` on a tiny model."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ssae.activation.reader import Activations
from ssae.diagnose import diagnose
from ssae.diagnosis.measure import _finders
from ssae.diagnosis.rows import share_of
from ssae.harvest import harvest, harvest_for
from ssae.metric.represented import TypesFound
from ssae.objective.term import TERM
from ssae.read_pool import read_corpus
from ssae.report.table import find
from ssae.run import write_diagnosis
from ssae.sae.files import load, save
from ssae.sae.relu import ReLUSAE
from ssae.study import Study
from ssae.theory import coded_by, stationarity
from ssae.train import train


def settings(study: Study, **changes) -> Study:
    return dataclasses.replace(study, diagnose=dataclasses.replace(study.diagnose, **changes))


@pytest.fixture
def study(make_study, tmp_path: Path) -> Study:
    return make_study(tmp_path, num_bootstraps=20)


def read(artifact, name: str):
    return json.loads((artifact.path / f"{name}.json").read_text(encoding="utf-8"))


def test_the_page_says_what_was_measured(study: Study, capsys):
    study.run_dir.mkdir(parents=True)
    made = diagnose(study)
    write_diagnosis(study, made)
    page = (study.run_dir / "diagnose.html").read_text(encoding="utf-8")
    assert "<script" not in page
    metrics = json.loads((study.run_dir / "metrics.json").read_text())
    assert metrics == read(made, "metrics")
    for split in ("subdomain_test", "general_test"):
        for name in (
            "violation_median",
            "tangent_excess_median",
            "shrinkage_share",
            "cone_violated",
        ):
            for sae in ("first", "second"):
                assert find(metrics, name, split=split, sae=sae) is not None
        change = find(metrics, "tangent_excess_change", split=split, sae="second")
        assert change is not None
        assert change["reference"] == "first"
    assert "second&#39;s latents, against the same ones of the first" in page
    assert "excess" in capsys.readouterr().out


def test_the_numbers_are_those_of_the_theory_on_all_tokens(study: Study):
    metrics = read(diagnose(study), "metrics")
    corpus = read_corpus(study)
    harvested = harvest(study, corpus, "general_test", study.evaluation_tokens)
    tokens = Activations(harvested).slice(0, 10**6)
    own = coded_by(load(train(study, "first").path), tokens.activations.float())
    found = stationarity(own.x, own.z, own.directions, 0.0, documents=tokens.document_ids)
    known = (found.fires >= study.diagnose.min_fires) & found.excess.isfinite()
    for name in ("violation", "excess", "tangent", "tangent_excess"):
        row = find(metrics, f"{name}_median", split="general_test", sae="first")
        assert row is not None
        values = getattr(found, name)[known].numpy()
        assert row["value"] == pytest.approx(float(np.median(values)), rel=1e-6)


def test_an_sae_from_elsewhere_is_diagnosed_beside_the_arms(study: Study, tmp_path: Path):
    sae = load(train(study, "first").path)
    save(sae, tmp_path / "elsewhere", format="saelens")
    metrics = read(diagnose(settings(study, saes=[str(tmp_path / "elsewhere")])), "metrics")
    for name in ("violation_median", "fvu", "l0", "objective_sae", "objective_optimal_codes"):
        ours, theirs = (
            find(metrics, name, split="subdomain_test", sae=sae) for sae in ("first", "elsewhere")
        )
        assert ours is not None
        assert theirs is not None
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)


def test_an_sae_with_a_price_brings_it_along_as_a_folder(make_study, tmp_path: Path):
    relu = functools.partial(ReLUSAE, d_sae=64, l1_coefficient=0.5, auxk_coefficient=0.0, k_aux=8)
    study = make_study(tmp_path, num_bootstraps=20, sae=relu)
    folder = train(study, "first").path
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    found = diagnose(settings(study, arms=["first"], saes=[str(copied)]))
    metrics = read(found, "metrics")
    for name in ("lam", "excess_median", "pair_identity_error", "cone_violated"):
        ours, theirs = (
            find(metrics, name, split="general_test", sae=sae) for sae in ("first", "copied")
        )
        assert ours is not None
        assert theirs is not None
        assert {**ours, "sae": None} == {**theirs, "sae": None}
    lam = find(metrics, "lam", split="general_test", sae="first")
    assert lam is not None
    assert lam["value"] == pytest.approx(0.5 / 2 / train(study, "first").manifest["input_scale"])
    points = [row for row in read(found, "tables")["identity"] if row["sae"] == "first"]
    assert len(points) == 2
    # The same pairs by the definition, on the tokens that were sampled.
    tokens = Activations(harvest(study, read_corpus(study), "subdomain_test", 600))
    chosen = tokens.rows(torch.arange(0, len(tokens), -(-len(tokens) // 500)))
    own = coded_by(load(folder), chosen.activations.float())
    cosines = (own.directions @ own.directions.T).fill_diagonal_(torch.nan)
    z = own.z.to_dense()
    implied = (z.T @ own.residual / z.sum(0)[:, None]) @ own.directions.T / lam["value"]
    known = list(zip(cosines.flatten().tolist(), implied.flatten().tolist(), strict=True))
    listed = list(zip(points[0]["cosine"], points[0]["expected"], strict=True))
    assert len(listed) > 32
    for pair in listed[:8] + listed[-8:]:
        assert any(pair == pytest.approx(other, rel=1e-6) for other in known)
    assert max(points[0]["cosine"]) == pytest.approx(float(cosines.nan_to_num(-1).max()))
    assert min(points[0]["cosine"]) < -0.3


def test_a_tilted_arm_is_also_judged_by_its_own_weights(study: Study):
    arms = study.arms | {
        "second": dataclasses.replace(study.arms["second"], objective=TERM(tilt=2.0))
    }
    study = dataclasses.replace(study, arms=arms)
    metrics = read(diagnose(settings(study, gap_tokens=0)), "metrics")
    name, split = "tangent_excess_own_risk_median", "general_test"
    assert find(metrics, name, split=split, sae="first") is None
    row = find(metrics, name, split=split, sae="second")
    assert row is not None
    tokens = Activations(harvest(study, read_corpus(study), split, 600)).slice(0, 10**6)
    own = coded_by(load(train(study, "second").path), tokens.activations.float())
    variance = Activations(harvest_for(study, "second")).variance
    weights = (2.0 * own.residual.square().sum(1) / variance).softmax(0)
    given = (own.x, own.z, own.directions, 0.0)
    plain = stationarity(*given, documents=tokens.document_ids)
    tilted = stationarity(*given, weights, documents=tokens.document_ids)
    known = (plain.fires >= study.diagnose.min_fires) & plain.tangent_excess.isfinite()
    expected = np.nanmedian(tilted.tangent_excess[known].numpy())
    assert row["value"] == pytest.approx(float(expected), rel=1e-6)
    assert row["value"] != pytest.approx(float(plain.tangent_excess[known].median()), rel=1e-3)


@pytest.mark.parametrize(("num", "true"), [(256, 3), (8, 0), (5, 5)])
def test_few_latents_have_wilsons_interval(num, true):
    share, low, high = share_of([True] * true + [False] * (num - true))
    z = 1.959963984540054
    centre = (share + z**2 / 2 / num) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * (share * (1 - share) / num + z**2 / 4 / num**2) ** 0.5
    assert (share, low, high) == pytest.approx((true / num, centre - half, centre + half), abs=1e-9)


def test_latents_of_the_tail_are_those_that_find_its_types():
    counts, f1 = np.array([9, 9, 9, 9]), np.array([0.9, 0.5, 0.49, 0.8])
    found = TypesFound(counts, f1, np.array([4, 2, 3, 0]))
    assert np.flatnonzero(_finders(found, np.array([0, 1, 2]), 5)).tolist() == [2, 4]
    assert not _finders(found, np.zeros(0, np.int64), 5).any()


def test_the_scale_of_objectives_is_in_order(study: Study):
    gaps = read(diagnose(study), "tables")["gaps"]
    assert {row["where"] for row in gaps} == {"tokens", "held_out"}
    for row in gaps:
        assert row["wide_limit"] <= row["optimal_codes"] * (1 + 1e-6)
        assert row["wide_limit"] <= row["convex_path"] * (1 + 1e-6)
        assert row["optimal_codes"] <= row["sae"] * (1 + 1e-6)
        assert row["optimal_codes"] <= row["own_path"] * (1 + 1e-3)


def test_latents_split_from_a_narrower_sae_to_a_wider_one(study: Study, tmp_path: Path):
    sae = load(train(study, "first").path)
    # The same SAE with every latent twice, at half the length: each splits into two.
    wide = type(sae)(**(sae.hyperparameters | {"d_sae": 128, "k": 8}))
    with torch.no_grad():
        for name in ("W_dec", "W_enc_T", "b_enc"):
            getattr(wide, name).copy_(torch.cat([getattr(sae, name)] * 2))
        wide.W_dec /= 2
        wide.b_dec.copy_(sae.b_dec)
    save(wide, tmp_path / "wide")
    changes = {"arms": ["first"], "saes": [str(tmp_path / "wide")], "gap_tokens": 0}
    tables = read(diagnose(settings(study, **changes)), "tables")
    [table] = tables["splits"]
    assert (table["narrow"], table["wide"]) == ("first", "wide")
    assert table["children"][0] == 0
    assert all(tree["covered"] == 1 for tree in table["trees"])
    assert tables["gaps"] == []


def test_the_same_study_is_the_same_to_the_bit(study: Study, make_study, tmp_path: Path):
    other = make_study(tmp_path / "b", num_bootstraps=20)
    assert read(diagnose(study), "metrics") == read(diagnose(other), "metrics")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["third"]}, r"diagnose.arms must be among first, second, got 'third'"),
        ({"saes": ["nowhere"]}, "nowhere"),
        ({"gap_tokens": 10**6}, r"set diagnose.gap_tokens="),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(study: Study, changes, message):
    with pytest.raises(ValueError, match=message):
        diagnose(settings(study, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": []}, "nothing to diagnose"),
        ({"arms": "first"}, r"diagnose.arms must be a list"),
        ({"lam": 0.0}, r"diagnose.lam must be null or a positive number"),
        ({"min_fires": 1}, r"diagnose.min_fires must be at least 2"),
    ],
)
def test_settings_are_checked(study: Study, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(study, **changes)
