"""2N steps == N steps, a loss of the process, and N more: to the bit, for everything there is."""

import csv
import dataclasses
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from ssae.activation.datamodule import Shards
from ssae.activation.stream import Stream
from ssae.harvest import harvest_for
from ssae.objective.group_dro import GroupDRO
from ssae.objective.term import TERM
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE
from ssae.study import Study
from ssae.train import train

EVERY, STEPS = 5, 20
COMMON = {"d_sae": 64, "auxk_coefficient": 1 / 32, "k_aux": 8}
TOPK = functools.partial(TopKSAE, k=4, **COMMON)
RELU = functools.partial(ReLUSAE, l1_coefficient=1.0, **COMMON)
CASES: dict[str, dict[str, Any]] = {
    "topk": {"sae": TOPK},
    "topk resampled": {"sae": TOPK, "training": {"resample_every_steps": 4}},
    "batchtopk": {"sae": functools.partial(BatchTopKSAE, k=4, **COMMON)},
    "jumprelu": {
        "sae": functools.partial(
            JumpReLUSAE, l0_coefficient=1.0, target_l0=4.0, bandwidth=1.0, initial_threshold=1.0,
            threshold_lr=1e-2, **COMMON,
        )
    },
    "relu": {"sae": RELU},
    "topk resampled, logged every 4": {
        "sae": TOPK, "training": {"resample_every_steps": 3}, "trainer": {"log_every_n_steps": 4}
    },
    "gated": {"sae": functools.partial(GatedSAE, l1_coefficient=1.0, **COMMON)},
    "matryoshka": {"sae": functools.partial(MatryoshkaSAE, k=4, group_sizes=[16, 48], **COMMON)},
    "residual": {
        "arm": "second", "start": "residual",
        "extra_sae": functools.partial(TopKSAE, d_sae=16, k=2, auxk_coefficient=1 / 32, k_aux=4),
    },
    "recycle": {"arm": "second", "start": "recycle", "training": {"recycle_firing_rate": 0.02}},
    "in warm-ups": {"sae": RELU, "training": {"warmup_steps": 18, "sparsity_warmup_steps": 18}},
    "clipped by norm": {"trainer": {"gradient_clip_val": 1e-2}},
    "clipped by value": {
        "trainer": {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}
    },
    "running normaliser": {"objective": TERM(tilt=2.0, rho=0.1, level="token_type", balance=0.5)},
    "rising tilt": {"objective": TERM(tilt=5.0, schedule="cosine", rise_share=0.9)},
    "group_dro": {"objective": GroupDRO(step_size=0.3, level="document", balance=1)},
    "momentum": {
        "training": {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)}
    },
    "windows": {"activation": Shards(window_tokens=200, block_tokens=8, read_ahead=False)},
    "windows read ahead": {
        "activation": Shards(window_tokens=200, block_tokens=8, read_ahead=True)
    },
    "stream": {
        "activation": Stream(window_tokens=400, lanes=2, calibration_tokens=300, lm_threads=0)
    },
    "stream in the background": {
        "activation": Stream(window_tokens=400, lanes=2, calibration_tokens=300, lm_threads=1)
    },
}  # fmt: skip


class LoseProcess(lightning.Callback):
    """Ends the run before the optimiser of a step has run; leaves what a kill -9 leaves."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the process is gone")


class KeepLast(lightning.Callback):
    """Saves a checkpoint after the last step, and counts the steps and the dead."""

    def __init__(self, path: Path) -> None:
        self.path, self.steps, self.num_dead = path, [], []

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.steps.append(trainer.global_step)
        self.num_dead.append(int(module.dead_latents.dead.sum()))

    def on_train_end(self, trainer, module) -> None:
        trainer.save_checkpoint(self.path)


@pytest.fixture
def make(make_study) -> Callable[..., Study]:
    def make_case(folder: Path, case: str) -> Study:
        changes = dict(CASES[case])
        arm, options = changes.pop("arm", "first"), changes.pop("trainer", {})
        study = make_study(folder, logger=functools.partial(CSVLogger, version=""), arm=arm)
        training = {
            "checkpoint_every_steps": EVERY, "dead_after_tokens": 100, **changes.pop("training", {})
        }  # fmt: skip
        start = changes.pop("start", "fine_tune")
        objective = changes.pop("objective", TERM(tilt=2.0))
        arms = study.arms | {
            arm: dataclasses.replace(study.arms[arm], objective=objective, start=start)
        }
        return dataclasses.replace(
            study, **changes, arms=arms, training=dataclasses.replace(study.training, **training),
            trainer=functools.partial(study.trainer, **options),
        )  # fmt: skip

    return make_case


def run(study: Study, callback: lightning.Callback, number: int = 0) -> Path:
    """Train; each attempt has logs of its own."""
    own = functools.partial(study.trainer, callbacks=[callback])
    folder = study.run_dir / str(number)
    return train(dataclasses.replace(study, trainer=own, run_dir=folder), study.arm).path


def different(first: Any, second: Any, where: str = "") -> list[str]:
    """Return the places in which two nested structures of tensors and numbers differ."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{where}: {sorted(map(str, first.keys() ^ second.keys()))}"]
        return [x for key in first for x in different(first[key], second[key], f"{where}.{key}")]
    if isinstance(first, list | tuple):
        pairs = list(zip(first, second, strict=True))
        return [x for i, pair in enumerate(pairs) for x in different(*pair, f"{where}.{i}")]
    if torch.is_tensor(first):
        same = first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [where]
    return [] if first == second else [f"{where}: {first} {second}"]


def logged(run_dir: Path, arm: str) -> list[dict[int, dict[str, str]]]:
    """Return {step: values} of every attempt."""
    attempts = []
    for path in sorted(run_dir.glob(f"*/logs/{arm}/metrics.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row.pop("train/tokens_per_second")
        # A column that an attempt did not come to is as an empty one.
        attempts.append({int(row["step"]): {k: v for k, v in row.items() if v} for row in rows})
    return attempts


def fail(message: str) -> None:
    raise RuntimeError(message)


@pytest.mark.parametrize("case", [case for case in CASES if "logged" not in case])
def test_a_run_lost_and_continued_is_the_uninterrupted_one_to_the_bit(make, tmp_path, case):
    keep = KeepLast(tmp_path / "whole.ckpt")
    whole, study = make(tmp_path / "whole", case), make(tmp_path / "parts", case)
    if study.arm == "second":
        train(whole, "first")
        train(study, "first")
    expected = run(whole, keep)
    assert keep.steps == list(range(1, STEPS + 1))
    for number, step in enumerate((3, 9, 15)):  # none yet; in between; right after a checkpoint
        with pytest.raises(RuntimeError, match="the process is gone"):
            run(study, LoseProcess(step), number)
    last = KeepLast(tmp_path / "parts.ckpt")
    found = run(study, last, 3)
    assert last.steps == list(range(16, STEPS + 1))

    states = [torch.load(path, weights_only=True) for path in (keep.path, last.path)]
    assert not different(*states)
    assert states[0]["global_step"] == STEPS
    for path in sorted(path for path in expected.iterdir() if path.suffix == ".safetensors"):
        assert path.read_bytes() == (found / path.name).read_bytes(), path.name

    [rows] = logged(whole.run_dir, study.arm)
    attempts = logged(study.run_dir, study.arm)
    assert [list(attempt) for attempt in attempts] == [
        list(range(4)), list(range(10)), list(range(5, 16)), list(range(15, 20))
    ]  # fmt: skip
    for attempt in attempts:
        assert attempt == {step: rows[step] for step in attempt}
    if case in ("topk", "topk resampled", "batchtopk", "matryoshka"):
        assert max(keep.num_dead) > 0  # the auxk loss took part
    if "resample_every_steps" in CASES[case].get("training", {}):
        assert any(float(row["train/resampled"]) for row in rows.values())


def test_the_progress_of_a_run_that_continues_is_that_of_the_whole(
    make_study, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # elsewhere lines are logged
    study = make_study(tmp_path)
    shown = functools.partial(
        study.trainer.func, **study.trainer.keywords | {"enable_progress_bar": True}
    )
    lost = functools.partial(shown.func, **shown.keywords | {"callbacks": [LoseProcess(13)]})
    with pytest.raises(RuntimeError, match="the process is gone"):
        train(dataclasses.replace(study, trainer=lost), "first")
    capsys.readouterr()
    train(dataclasses.replace(study, trainer=shown), "first")
    lines = re.split(r"[\r\n]", "".join(capsys.readouterr()))
    bars = [line for line in lines if line.startswith("first:")]
    assert re.match(r"first:\s+50%.* 10/20 ", bars[0])  # the checkpoint is that of step 10
    assert re.match(r"first: 100%.* 20/20 ", bars[-1])


def test_values_logged_every_few_steps_are_the_same_after_a_loss_in_between(make, tmp_path):
    """What was resampled since the last row travels in the checkpoint."""
    case = "topk resampled, logged every 4"
    whole, study = make(tmp_path / "whole", case), make(tmp_path / "parts", case)
    run(whole, KeepLast(tmp_path / "whole.ckpt"))
    with pytest.raises(RuntimeError, match="the process is gone"):
        run(study, LoseProcess(11), 0)
    run(study, KeepLast(tmp_path / "parts.ckpt"), 1)
    [rows] = logged(whole.run_dir, "first")
    attempts = logged(study.run_dir, "first")
    assert [list(attempt) for attempt in attempts] == [[3, 7, 11], [11, 15, 19]]
    assert attempts[0] | attempts[1] == rows == attempts[1] | attempts[0]
    assert any(float(row["train/resampled"]) for row in rows.values())


def test_a_run_lost_after_its_last_step_only_has_to_be_written(make, tmp_path, monkeypatch):
    """The checkpoint of the last step is there until the artifact is."""
    expected = run(make(tmp_path / "whole", "topk"), KeepLast(tmp_path / "whole.ckpt"))
    study, steps = make(tmp_path / "parts", "topk"), KeepLast(tmp_path / "parts.ckpt")
    harvest_for(study, "first")
    with monkeypatch.context() as patch:
        patch.setattr("ssae.artifact.together.seal", lambda *_: fail("in the very end"))
        with pytest.raises(RuntimeError, match="in the very end"):
            run(study, steps, 0)
    assert len(steps.steps) == STEPS
    again = KeepLast(tmp_path / "again.ckpt")
    found = run(study, again, 1)
    assert again.steps == []
    for name in ("sae.safetensors", "latents.safetensors"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    assert [path for path in found.parent.iterdir() if path.is_dir()] == [found]
