import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ssae
from ssae.activation.reader import Activations
from ssae.activation.source import Supply
from ssae.activation.stream import Stream
from ssae.artifact.store import Artifact
from ssae.process.fsdp import FSDP
from ssae.sae.residual import ResidualSAE
from ssae.sae.topk import TopKSAE
from ssae.study import Study
from ssae.tracin import checkpoints_of, input_scale_of, score_documents
from ssae.train import train
from ssae.training.checkpoints import Checkpoints
from ssae.training.snapshots import snapshot_steps, unscaled

STEPS = 20
WARMUP, DECAY = 4, 4
FACTORS = [min(1, (t + 1) / WARMUP, (STEPS - t) / DECAY) for t in range(STEPS)]


class Lost(Exception):
    pass


class Watch(lightning.Callback):
    """Keeps the SAE's weights after every step; ends the run in a step, as a crash would."""

    def __init__(self, lose_at: int | None = None) -> None:
        self.lose_at, self.weights = lose_at, {}

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step == self.lose_at:
            raise Lost

    def on_train_batch_end(self, trainer, module, *_) -> None:
        state = module.sae.state_dict().items()
        self.weights[trainer.global_step] = {n: t.clone() for n, t in state}
        self.scale = module.input_scale


@pytest.fixture
def make(make_study, all_saes) -> Callable[..., Study]:
    """Return a function that gives a study whose first arm has snapshots."""
    saes = all_saes(64, 4, [16, 48])

    def of(folder: Path, num: int = 3, kind: str = "topk", **arm) -> Study:
        base = make_study(folder, sae=saes[kind])
        first = dataclasses.replace(base.arms["first"], num_snapshots=num, **arm)
        return dataclasses.replace(base, arms=base.arms | {"first": first})

    return of


def run(study: Study, watch: Watch, arm: str = "first") -> Artifact:
    own = functools.partial(study.trainer, callbacks=[watch])
    return train(dataclasses.replace(study, trainer=own), arm)


def files_of(artifact: Artifact) -> dict[str, bytes]:
    """Return the content of all that must not depend on how a run went."""
    paths = [*artifact.path.glob("*.safetensors"), *artifact.path.glob("snapshots/*/*")]
    return {str(path.relative_to(artifact.path)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_each_snapshot_stands_in_the_middle_of_an_equal_share_of_the_learning_rate(num):
    steps = snapshot_steps(FACTORS, num)
    assert len(steps) == num
    assert list(steps.values()) == [1 / num] * num
    for c, step in enumerate(steps):
        middle = (c + 0.5) / num * sum(FACTORS)
        assert sum(FACTORS[: step - 1]) < middle <= sum(FACTORS[:step]) + 1e-12


def test_a_constant_learning_rate_spaces_them_evenly():
    assert snapshot_steps([1.0] * 100, 2) == {25: 0.5, 75: 0.5}
    assert snapshot_steps([1.0] * 100, 5) == {s: 0.2 for s in (10, 30, 50, 70, 90)}


def test_more_snapshots_than_steps_fall_together():
    assert snapshot_steps([1.0, 1.0], 4) == {1: 0.5, 2: 0.5}
    assert snapshot_steps([0.1], 1) == {1: 1.0}
    assert snapshot_steps([1.0], 0) == {}


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_a_snapshot_is_the_sae_of_its_step_for_unscaled_activations(make, tmp_path, kind):
    study, watch = make(tmp_path, kind=kind), Watch()
    trained = run(study, watch)
    rows = trained.manifest["snapshots"]
    assert {row["step"]: row["weight"] for row in rows} == snapshot_steps(FACTORS, 3)
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    assert input_scale_of(trained) == watch.scale
    assert sorted(path.name for path in (trained.path / "snapshots").iterdir()) == [
        f"step_{row['step']:06d}" for row in rows
    ]
    for row, (sae, weight) in zip(rows, checkpoints_of(trained), strict=True):
        assert weight == row["weight"]
        assert not sae.training
        expected = study.sae(d_in=16)
        expected.load_state_dict(watch.weights[row["step"]])
        expected.rescale_input(1 / watch.scale)
        assert expected.hyperparameters == sae.hyperparameters
        for name, value in expected.state_dict().items():
            assert torch.equal(sae.state_dict()[name], value), name
    metadata = json.loads((trained.path / "snapshots/step_000010/sae.json").read_text())["metadata"]
    assert (metadata["arm"], metadata["step"]) == ("first", 10)


def test_the_input_scale_is_that_of_the_activations(make, tmp_path):
    study = make(tmp_path)
    trained = train(study, "first")
    config = (trained.path / "config.yaml").read_text()
    assert "num_snapshots: 3" in config
    [harvested] = (tmp_path / "artifacts" / "harvest").glob("*/DONE")
    activations = Activations(Artifact(harvested.parent, "harvest"))
    assert input_scale_of(trained) == pytest.approx(4 / activations.mean_norm, rel=1e-6)


def test_training_is_the_same_to_the_bit_with_and_without(make, tmp_path):
    with_some, without = (train(make(tmp_path, num), "first") for num in (3, 0))
    assert with_some.path != without.path
    expected = files_of(without)
    assert len(files_of(with_some)) == len(expected) + 6
    assert all(files_of(with_some)[name] == content for name, content in expected.items())
    assert without.manifest["snapshots"] == []
    assert "num_snapshots" not in (without.path / "config.yaml").read_text()


def test_arms_that_start_from_it_are_found_again(make, tmp_path):
    """The weights are the same, so what was made of them is, too."""
    studies = [make(tmp_path, num) for num in (0, 3)]
    assert train(studies[0], "second") == train(studies[1], "second")


@pytest.mark.parametrize("start", ["recycle", "residual"])
def test_arms_that_start_from_another_have_them_too(make, tmp_path, start):
    study = make(tmp_path, 0)
    second = dataclasses.replace(study.arms["second"], num_snapshots=2, start=start)
    extra = functools.partial(TopKSAE, d_sae=16, k=2, auxk_coefficient=1 / 32, k_aux=4)
    study = dataclasses.replace(
        study, arms=study.arms | {"second": second}, arm="second",
        extra_sae=extra if start == "residual" else None,
    )  # fmt: skip
    first = ssae.load(train(study, "first").path)
    trained = train(study, "second")
    for sae, weight in checkpoints_of(trained):
        assert weight == 0.5
        if start == "residual":
            assert isinstance(sae, ResidualSAE)
            for name, value in first.state_dict().items():
                assert torch.equal(sae.generalist.state_dict()[name], value)


@pytest.mark.parametrize("scale", [1.0, 3.7])
def test_unscaled_copies_share_nothing_and_read_unscaled_activations(make, tmp_path, scale):
    study = make(tmp_path)
    sae = ResidualSAE(study.sae(d_in=16), study.sae(d_in=16))
    x = torch.randn(5, 16)
    sae.eval()
    expected = sae(x).recon
    sae.rescale_input(scale)
    sae.train()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    found = unscaled(sae, scale)
    assert found.scale == 1  # pyright: ignore
    assert not found.training
    torch.testing.assert_close(found(x).recon, expected)
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(1)
    assert sae.training
    assert sae.scale == scale
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())


@pytest.mark.parametrize("activation", ["shards", pytest.param("stream", marks=pytest.mark.slow)])
def test_a_run_lost_and_continued_leaves_the_same_snapshots(make, tmp_path, activation):
    def study(folder: str) -> Study:
        made = make(tmp_path / folder)
        training = dataclasses.replace(made.training, checkpoint_every_steps=5)
        return dataclasses.replace(made, training=training, activation=supply(made, activation))

    whole = run(study("whole"), Watch())
    steps = [row["step"] for row in whole.manifest["snapshots"]]
    parts = study("parts")
    # Right after a snapshot that no checkpoint follows; a step before one; behind a checkpoint.
    for step in (steps[0], steps[1] - 1, 15):
        with pytest.raises(Lost):
            run(parts, Watch(step))
    found = run(parts, Watch())
    assert found.manifest["snapshots"] == whole.manifest["snapshots"]
    assert files_of(found) == files_of(whole)


def supply(study: Study, name: str) -> Supply:
    if name == "shards":
        return study.activation
    return Stream(window_tokens=400, lanes=2, calibration_tokens=300, lm_threads=0)


def test_a_run_lost_between_a_snapshot_and_its_checkpoint_ends_the_same(
    make, tmp_path, monkeypatch
):
    whole = run(make(tmp_path / "whole"), Watch())
    parts = make(tmp_path / "parts")  # saves every 10 steps; the second snapshot is of step 10
    assert [row["step"] for row in whole.manifest["snapshots"]][1] == 10

    def lose(*_):
        raise Lost

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lose)
        with pytest.raises(Lost):
            run(parts, Watch())
    [left] = (tmp_path / "parts").glob("artifacts/train/*.partial/snapshots/step_000010")
    (left / "sae.safetensors").write_bytes(b"torn")  # and as if it had not come to the disk
    found = run(parts, Watch())
    assert files_of(found) == files_of(whole)


def test_a_run_that_has_lost_a_snapshot_does_not_go_on(make, tmp_path):
    study = make(tmp_path)
    with pytest.raises(Lost):
        run(study, Watch(15))
    [left] = tmp_path.glob("artifacts/train/*.partial/snapshots/step_000010/sae.json")
    left.unlink()
    watch = Watch()
    with pytest.raises(ValueError, match=r"step_000010 is gone, .* from step 10, .* rm -r .*check"):
        run(study, watch)
    assert not watch.weights


def test_an_sae_without_snapshots_is_its_own_checkpoint(make, tmp_path):
    study = make(tmp_path, 0)
    copied = dataclasses.replace(study.arms["second"], num_tokens=0, num_snapshots=2)
    study = dataclasses.replace(study, arms=study.arms | {"second": copied})
    trained, taken = train(study, "first"), train(study, "second")
    for artifact, scale in ((trained, True), (taken, False)):
        [(sae, weight)] = checkpoints_of(artifact)
        assert weight == 1
        for name, value in ssae.load(trained.path).state_dict().items():
            assert torch.equal(sae.state_dict()[name], value)
        assert (input_scale_of(artifact) is not None) == scale


def test_a_trained_sae_scores_documents(make, tmp_path, make_rows):
    """From end to end: seeds resemble themselves more than others do."""
    study = make(tmp_path, 2)
    trained = train(study, "first")
    lm = study.language_model
    seeds = make_rows(lm, ["gamma poisson normal " * 5, "poisson gamma distribution " * 4], 32)
    candidates = make_rows(lm, ["gamma normal poisson " * 6, "file string path " * 6, "test"], 32)
    scores = score_documents(
        lm, study.hookpoint, checkpoints_of(trained), seeds, candidates, 128,
        input_scale_of(trained),
    )  # fmt: skip
    assert np.isfinite(scores).all()
    assert scores.argmax() == 0


@pytest.mark.parametrize("value", [-1, 0.5])
def test_a_number_of_snapshots_that_is_none_is_refused(make, tmp_path, value):
    with pytest.raises(ValueError, match=r"num_snapshots must (not be negative|be a whole number)"):
        make(tmp_path, value)


@pytest.mark.slow
def test_ranks_leave_the_snapshots_of_one_rank(make_study, all_saes, launch, tmp_path):
    """Under DDP and FSDP, lost once on the way."""
    strategies = {"alone": None, "ddp": "ddp", "fsdp": functools.partial(FSDP)}

    def study(launch: str) -> Study:
        base = make_study(tmp_path / launch, sae=all_saes(67, 4, [16, 51])["jumprelu"])
        arms = {
            "first": dataclasses.replace(base.arms["first"], num_snapshots=3),
            "second": dataclasses.replace(
                base.arms["second"], num_snapshots=2, start="residual", num_tokens=10 * 64
            ),
        }
        options = {"strategy": strategies[launch], "devices": 2} if strategies[launch] else {}
        training = dataclasses.replace(base.training, checkpoint_every_steps=5)
        return dataclasses.replace(
            base, run_dir=tmp_path / launch / "run", arms=arms, training=training,
            trainer=functools.partial(
                lightning.Trainer, accelerator="cpu", enable_progress_bar=False,
                **{"precision": "32-true" if launch == "fsdp" else "64-true"} | options,
            ),
        )  # fmt: skip

    together = [study(name) for name in ("ddp", "fsdp")]
    launch(2, [(s, "first", 12) for s in together])
    launch(2, [(s, arm, None) for s in together for arm in s.arms])
    alone = study("alone")
    for other in together:
        launched = other.trainer.keywords
        same = {"trainer": functools.partial(
            lightning.Trainer, accelerator="cpu", enable_progress_bar=False,
            precision=launched["precision"],
        )}  # fmt: skip
        for arm in alone.arms:
            found = train(dataclasses.replace(other, **same), arm)
            expected = train(dataclasses.replace(alone, **same), arm)
            assert found.path.parent != expected.path.parent
            assert found.manifest["snapshots"] == expected.manifest["snapshots"]
            tolerance = 1e-9 if launched["precision"] == "64-true" else 1e-4
            paths = sorted(expected.path.glob("snapshots/*/sae.safetensors"))
            assert len(paths) == len(expected.manifest["snapshots"])
            for path in paths:
                weights = load_file(found.path / path.relative_to(expected.path))
                for name, value in load_file(path).items():
                    torch.testing.assert_close(weights[name], value, rtol=tolerance, atol=tolerance)
