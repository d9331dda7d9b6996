import dataclasses
import functools
import json
import types
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from safetensors.torch import load_file

from ssae.artifact.store import Artifact
from ssae.objective.erm import ERM
from ssae.objective.term import TERM
from ssae.process.fsdp import FSDP, set_rows, share_out
from ssae.study import Study
from ssae.train import train
from ssae.training.trainer import make_trainer

SGD = {"optimizer": functools.partial(torch.optim.SGD)}  # its steps are the gradients
SAVED, CRASH = 4, 6  # steps
LAUNCHES = {"alone": {"devices": 1}, "ddp": {"devices": 2, "strategy": "ddp"}}
LAUNCHES["fsdp"] = {"devices": 2, "strategy": functools.partial(FSDP)}


@pytest.fixture
def studies(make_study, all_saes, tmp_path, monkeypatch):
    """Return a function (folder, launch) -> {name: study}; float64: only real differences show."""
    monkeypatch.setattr(_AcceleratorConnector, "_validate_precision_choice", lambda self: None)
    saes = all_saes(201, 2, [50, 151])  # the two ranks keep 101 and 100 latents; many are dead

    def make(folder: str, launch: str) -> dict[str, Study]:
        base = make_study(tmp_path / folder)
        first = dataclasses.replace(base.arms["first"], num_tokens=10 * 64)
        erm = dataclasses.replace(first, objective=ERM())
        term = dataclasses.replace(first, objective=TERM(tilt=3.0))
        steep = dataclasses.replace(term, lr=0.02)
        then = dataclasses.replace(erm, init_from="term", num_tokens=8 * 64)
        starts = {
            "recycle": dataclasses.replace(then, start="recycle"),
            "residual": dataclasses.replace(then, start="residual"),
        }

        def study(
            name: str, arms: dict[str, Any], training: Any = (), trainer: Any = (),
            sae: str = "topk",
        ) -> Study:  # fmt: skip
            options = {"precision": "64-true", **LAUNCHES[launch], **dict(trainer)}
            settings = {"dead_after_tokens": 20, "checkpoint_every_steps": SAVED, **dict(training)}
            return dataclasses.replace(
                base, name=name, run_dir=tmp_path / folder / name, sae=saes[sae], arms=arms,
                arm=next(iter(arms)), training=dataclasses.replace(base.training, **settings),
                trainer=functools.partial(
                    lightning.Trainer, accelerator="cpu", enable_progress_bar=False, **options,
                ),
            )  # fmt: skip

        resampling = {"resample_every_steps": 7}
        clip = {"gradient_clip_val": 0.05}
        clamp = {"gradient_clip_val": 0.002, "gradient_clip_algorithm": "value"}
        made = [
            study("topk", {"term": term, **starts}, resampling),
            study("batchtopk", {"term": term}, sae="batchtopk"),
            study("matryoshka", {"erm": erm}, sae="matryoshka"),
            study("jumprelu", {"term": term}, resampling, sae="jumprelu"),
            study("relu", {"steep": steep}, SGD, sae="relu"),
            study("gated", {"term": term}, resampling, sae="gated"),
            study("gradients", {"steep": steep}, SGD),
            study("clipped", {"steep": steep}, SGD, clip),
            study("clamped", {"steep": steep}, SGD, clamp),
            study("float32", {"steep": steep}, SGD, {"precision": "32-true"}),
            study("refused", {"term": term}, (), {"precision": "bf16-true"}, sae="jumprelu"),
        ]
        return {study.name: study for study in made}

    return make


def notes(study: Study, arm: str, rank: int) -> dict[str, Any]:
    return json.loads((study.run_dir / f"{arm}_rank{rank}.json").read_text())


def latents(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "latents.safetensors")


def made_by(study: Study, arm: str, folder: Path) -> Artifact:
    """Return what another strategy has trained: it has the same name, and is there."""
    before = sorted((folder / "artifacts" / "train").iterdir())
    found = train(dataclasses.replace(study, artifacts=folder / "artifacts"), arm)
    assert sorted((folder / "artifacts" / "train").iterdir()) == before
    return found


def assert_same(expected: Artifact, found: Artifact, where: str, rtol: float = 1e-9) -> None:
    for name in ("latents.safetensors", "sae.safetensors"):
        tensors = load_file(found.path / name)
        for key, tensor in load_file(expected.path / name).items():
            torch.testing.assert_close(
                tensors[key], tensor, rtol=rtol, atol=rtol / 100,
                msg=lambda m, k=key: f"{where} {k}: {m}",
            )  # fmt: skip


@pytest.mark.slow
def test_two_ranks_that_share_an_sae_train_what_one_rank_trains(studies, launch, tmp_path):
    alone, shared = studies("alone", "alone"), studies("shared", "fsdp")
    launch(2, [(study, arm, None) for study in shared.values() for arm in study.arms])
    refused = shared.pop("refused")
    for rank in (0, 1):
        assert "needs weights of one dtype" in notes(refused, "term", rank)["error"]
    for name in shared:
        for arm in alone[name].arms:
            found = made_by(alone[name], arm, tmp_path / "shared")
            rtol = 1e-4 if name == "float32" else 1e-9
            assert_same(train(alone[name], arm), found, f"{name} {arm}", rtol)
    # It did take part: latents of both ranks that start anew, and auxk in the steps of SGD.
    recycled = latents(train(alone["topk"], "term"))["recycled"]
    assert recycled[:101].any()
    assert recycled[101:].any()
    assert (latents(train(alone["gradients"], "steep"))["tokens_since_fired"] > 20).any()
    weights = 8 * (2 * 201 * 16 + 201 + 16)
    for name, factor in (("weights", 1), ("gradients", 1), ("state", 2)):
        parts = [notes(shared["topk"], "term", rank)[name] for rank in (0, 1)]
        assert sum(parts) == factor * weights
        assert max(parts) < 0.51 * factor * weights


class Crash(lightning.Callback):
    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == CRASH:
            raise RuntimeError("crash")


@pytest.mark.slow
def test_a_checkpoint_of_any_strategy_is_continued_under_any_other(
    studies, launch, tmp_path, caplog
):
    # A frozen part, a buffer, two groups of parameters, an optimiser without state.
    arms = {"topk": "residual", "batchtopk": "term", "jumprelu": "term", "gradients": "steep"}
    ways = [("fsdp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "alone"), ("alone", "fsdp")]
    whole = studies("whole", "fsdp")
    runs = [(whole[name], arm, None) for name, arm in arms.items()]
    for first, then in ways:
        before, after = (studies(f"{first}_{then}", launch) for launch in (first, then))
        if first == "alone":
            train(before["topk"], "term")
            for name, arm in arms.items():
                trainer = functools.partial(before[name].trainer, callbacks=[Crash()])
                with pytest.raises(RuntimeError, match="crash"):
                    train(dataclasses.replace(before[name], trainer=trainer), arm)
        else:
            runs.append((before["topk"], "term", None))
            runs += [(before[name], arm, CRASH) for name, arm in arms.items()]
        if then != "alone":
            runs += [(after[name], arm, None) for name, arm in arms.items()]
    launch(2, runs)
    checkpoints = list((tmp_path / "fsdp_alone").rglob("*.ckpt"))
    assert len(checkpoints) == len(arms)
    for path in checkpoints:
        assert_whole(torch.load(path, weights_only=True))
    alone = studies("alone", "alone")
    for first, then in ways:
        folder = f"{first}_{then}"
        for name, arm in arms.items():
            where = f"{folder} {name} {arm}"
            if then == "alone":
                caplog.clear()
                with caplog.at_level("INFO"):
                    found = train(studies(folder, "alone")[name], arm)
                assert "continuing from" in caplog.text, where
            else:
                found = made_by(alone[name], arm, tmp_path / folder)
                own = studies(folder, then)[name]
                assert notes(own, arm, 0)["first_step"] == notes(own, arm, 1)["first_step"] == SAVED
            assert_same(train(alone[name], arm), found, where)
            if folder == "fsdp_fsdp":
                uninterrupted = made_by(alone[name], arm, tmp_path / "whole")
                assert_same(uninterrupted, found, where, rtol=0)


def assert_whole(checkpoint: dict[str, Any]) -> None:
    """No part of a rank: the weights of all latents, and optimiser state of their shapes."""
    weights = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("sae.")}
    [optimizer] = checkpoint["optimizer_states"]
    for tensor in [
        *weights.values(),
        *(v for s in optimizer["state"].values() for v in s.values()),
    ]:
        assert type(tensor) is torch.Tensor
        assert tensor.ndim == 0 or len(tensor) in (201, 50, 16)  # d_sae, a quarter of it, d_in


def test_every_training_run_has_a_strategy_of_its_own(studies):
    study = studies("shared", "fsdp")["float32"]
    first, second = (make_trainer(study, "steep", 10, []).strategy for _ in range(2))
    assert type(first) is type(second) is FSDP
    assert first is not second


def test_tensor_parallelism_is_refused():
    mesh: Any = {"tensor_parallel": types.SimpleNamespace(size=lambda: 4)}
    with pytest.raises(ValueError, match="got tensor_parallel_size 4; set trainer=fsdp"):
        share_out(torch.nn.Linear(2, 2), mesh)


def test_rows_are_set_where_nothing_is_shared_out():
    tensor = torch.zeros(5, 2)
    set_rows(tensor, torch.tensor([4, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    set_rows(tensor, torch.tensor([0]), 7.0)
    assert tensor.tolist() == [[7, 7], [3, 4], [0, 0], [0, 0], [1, 2]]
