"""Pareto curves: what is joined, what is averaged, and which arms are one curve."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from ssae.sweep.curves import Curve, curves, sparsity_key
from ssae.sweep.jobs import read_jobs
from tests.sweep.conftest import ARMS, measured

PERPLEXITY = ("perplexity_spliced", "subdomain_test")
Write = Callable[..., Path]


def sweep(write_job: Write, folder: Path, **values: str) -> None:
    keys = {"k": "sae.k", "seed": "seed", "tilt": "objective.tilt", "lr": "specialist.lr"}
    lists = [[f"{keys[name]}={one}" for one in text.split(",")] for name, text in values.items()]
    for overrides in itertools.product(*lists):
        write_job(folder, *overrides)


def by_name(found: list[Curve]) -> dict[tuple[str, str], Curve]:
    return {(curve.arm, curve.setting): curve for curve in found}


def test_a_point_is_the_mean_over_seeds_and_their_range(write_job: Write, tmp_path: Path):
    sweep(write_job, tmp_path, k="16,8,32", seed="0,1,3")
    found = curves(read_jobs(tmp_path), PERPLEXITY)
    assert [curve.arm for curve in found] == list(ARMS)
    for curve in found:
        assert len(curve.points) == 3
        for k, point in zip(("8", "16", "32"), curve.points, strict=True):
            seeds = [measured(curve.arm, {"sae.k": k, "seed": seed}) for seed in "013"]
            values = [seed["perplexity_spliced"] for seed in seeds]
            assert point.x == pytest.approx(sum(seed["l0"] for seed in seeds) / 3)
            assert point.y == pytest.approx(sum(values) / 3)
            assert (point.low, point.high) == (min(values), max(values))


def test_relative_curves_divide_by_the_generalist_of_the_same_job(write_job: Write, tmp_path: Path):
    sweep(write_job, tmp_path, k="8,16", seed="0,1")
    [control, specialist] = curves(read_jobs(tmp_path), PERPLEXITY, relative=True)
    assert (control.arm, specialist.arm) == ("control", "specialist")
    ratios = []
    for seed in "01":
        own, other = (
            measured(arm, {"sae.k": "8", "seed": seed})["perplexity_spliced"]
            for arm in ("specialist", "generalist")
        )
        ratios.append(own / other)
    assert specialist.points[0].y == pytest.approx(sum(ratios) / 2)
    assert specialist.points[0].high == max(ratios)


def test_only_the_arm_that_an_override_changes_has_a_curve_for_each_value(
    write_job: Write, tmp_path: Path
):
    sweep(write_job, tmp_path, k="8,16", seed="0,1", tilt="0,5")
    (tmp_path / "sae.k=16,seed=1,objective.tilt=5/outcome.json").unlink()  # which failed
    found = by_name(curves(read_jobs(tmp_path), PERPLEXITY))
    assert set(found) == {
        ("generalist", ""), ("control", ""), ("specialist", "tilt=0"), ("specialist", "tilt=5")
    }  # fmt: skip
    assert all(len(curve.points) == 2 for curve in found.values())
    tilted, plain = (found["specialist", f"tilt={tilt}"] for tilt in "50")
    assert tilted.points[0].y - plain.points[0].y == pytest.approx(5)


def test_of_too_many_curves_those_of_the_studied_arm_are_left_and_then_none(
    write_job: Write, tmp_path: Path
):
    sweep(write_job, tmp_path / "seven", k="8,16", tilt="0,1,2,3,4,5,6")
    found = curves(read_jobs(tmp_path / "seven"), PERPLEXITY)
    assert {curve.arm for curve in found} == {"specialist"}
    assert len(found) == 7
    sweep(write_job, tmp_path / "nine", k="8,16", tilt="0,1,2,3,4,5,6,7,8")
    assert curves(read_jobs(tmp_path / "nine"), PERPLEXITY) == []


@pytest.mark.parametrize("values", [{"seed": "0,1", "k": "8"}, {"k": "8", "tilt": "0,5"}])
def test_without_a_swept_sparsity_there_is_no_curve(
    write_job: Write, tmp_path: Path, values: dict[str, str]
):
    sweep(write_job, tmp_path, **values)
    assert curves(read_jobs(tmp_path), PERPLEXITY) == []


def test_architectures_of_two_sweeps_are_two_curves_of_an_arm(write_job: Write, tmp_path: Path):
    def relu(arm: str, words: dict[str, str]) -> dict[str, float]:
        return measured(arm, {"sae.k": words["sae.l1_coefficient"]})

    for k in ("8", "16"):
        write_job(tmp_path / "topk", "sae=topk", f"sae.k={k}")
        write_job(tmp_path / "relu", "sae=relu", f"sae.l1_coefficient={k}", measure=relu)
    found = by_name(curves(read_jobs(tmp_path / "topk", tmp_path / "relu"), PERPLEXITY))
    assert ("specialist", "sae=topk") in found
    assert ("specialist", "sae=relu") in found
    assert all(len(curve.points) == 2 for curve in found.values())


def test_an_arm_without_the_number_has_no_curve(write_job: Write, tmp_path: Path):
    def some(arm: str, words: dict[str, str]) -> dict[str, float]:
        found = measured(arm, words)
        if arm == "control":
            found["perplexity_spliced"] = float("inf")
        return found

    for k in ("8", "16"):
        write_job(tmp_path, f"sae.k={k}", measure=some)
    found = curves(read_jobs(tmp_path), PERPLEXITY)
    assert [curve.arm for curve in found] == ["generalist", "specialist"]
    assert curves(read_jobs(tmp_path), ("fvu", "subdomain_test")) == []


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"objective.tilt": "5"}, None),
        ({"retriever.k": "5"}, None),
        ({"sae.l1_coefficient": "3", "seed": "0"}, "sae.l1_coefficient"),
        ({"sae.target_l0": "16"}, "sae.target_l0"),
        ({"+extra_sae.k": "4"}, "+extra_sae.k"),
        ({"extra_sae.l1_coefficient": "1", "sae.k": "4"}, "sae.k"),
    ],
)
def test_the_key_of_sparsity_is_one_of_the_saes(overrides: dict[str, str], key: str | None):
    assert sparsity_key(overrides) == key
